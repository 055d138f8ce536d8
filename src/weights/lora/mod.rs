//! LoRA files: low-rank updates of a model's matrices and kernels.
//!
//! [`Lora::read`] finds the modules of a file in the model, whatever names it gives them; a [`LoraSet`] joins the LoRAs of one part
//! of the model. Nothing is merged into the model's weights: a graph multiplies the factors beside them, by scales that a
//! request sets.

mod alpha;
mod family;
mod file;
pub(super) mod keys;
mod set;
mod targets;
#[cfg(test)]
mod tests;

pub use file::{ExaminedLora, Lora, LoraModule, Misfit};
pub use set::{LoraSet, LowRank};
pub use targets::{LoraComponent, LoraTargets};
