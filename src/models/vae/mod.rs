//! The VAE (diffusers' `AutoencoderKL`).

mod blocks;
mod config;
mod decoder;
mod encoder;
mod infer;

pub use config::VaeConfig;
pub use decoder::vae_decoder;
pub use encoder::{encoder_weights, vae_encoder};
