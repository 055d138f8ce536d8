//! Weight files, memory-mapped and never copied whole.
//!
//! A reader ([`safetensors`], [`torch`], or [`open()`] which picks one) turns a file into [`Weights`]: names and
//! [`Weight`] views into the mapping. Key maps rename and slice such views; a [`Scope`] hands them to a model by the
//! dotted names of the published checkpoints.

pub mod adapter;
mod contents;
pub mod detect;
mod finite;
mod format;
mod fp8;
mod hash;
pub(crate) mod keymap;
pub mod lora;
mod mmap;
mod open;
pub mod safetensors;
mod scope;
pub mod single_file;
pub mod taesd_file;
mod taesd_names;
pub mod textual_inversion;
pub mod torch;
pub mod vae_file;
mod weight;

pub use format::{FileFormat, sniff};
pub use mmap::MappedBytes;
#[cfg(all(unix, feature = "cli"))]
pub(crate) use mmap::with_mapped_file;
pub use open::{OpenOptions, open};
pub use scope::{Scope, TensorTable};
pub use weight::{Weight, Weights};
