//! SDXL's UNet with decoupled cross-attention (diffusers' `UNet2DConditionModel`).

pub mod conditioning;
mod config;
pub mod denoiser;
mod infer;

pub use config::UnetConfig;
