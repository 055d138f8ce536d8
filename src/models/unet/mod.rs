//! SDXL's UNet with decoupled cross-attention (diffusers' `UNet2DConditionModel`).
//!
//! [`conditioning()`] runs once for what it follows from, [`denoiser()`] once a step; [`DenoiserInterface`] declares what the one hands to
//! the other.

mod conditioning;
mod config;
mod denoiser;
mod infer;
mod interface;
mod pruned;
mod quantization;
mod tensors;
mod topology;

pub use conditioning::{ConditioningPart, conditioning};
pub use config::UnetConfig;
pub use denoiser::denoiser;
pub use interface::{BranchShape, DenoiserInput, DenoiserInterface, InputRole, UnetShape, image_tokens_output};
pub use pruned::PrunedBlocks;
pub use topology::{BlockId, CrossLayer, Resnet, Transformer, UnetLayer};
