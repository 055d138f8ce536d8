//! SDXL's UNet with decoupled cross-attention (diffusers' `UNet2DConditionModel`).
//!
//! [`conditioning`] runs once a request, [`denoiser`] once a step; [`interface`] declares what the one hands to the other.

mod conditioning;
mod config;
mod denoiser;
mod infer;
pub mod interface;
mod tensors;
mod topology;

pub use conditioning::{conditioning, image_tokens_output};
pub use config::UnetConfig;
pub use denoiser::denoiser;
pub use interface::{DenoiserInterface, UnetShape};
pub use topology::{BlockId, CrossLayer, Resnet, Transformer, UnetLayer};
