//! SDXL's UNet with decoupled cross-attention (diffusers' `UNet2DConditionModel`).
//!
//! [`conditioning()`] runs once a request, [`denoiser()`] once a step; [`DenoiserInterface`] declares what the one hands to
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

pub use conditioning::conditioning;
pub use config::UnetConfig;
pub use denoiser::denoiser;
pub use interface::{BranchShape, DenoiserInput, DenoiserInterface, InputRole, UnetShape};
pub use pruned::PrunedBlocks;
pub use topology::{BlockId, CrossLayer, Resnet, Transformer, UnetLayer};
