//! The VAE (diffusers' `AutoencoderKL`).

mod config;
pub mod decoder;
mod infer;

pub use config::VaeConfig;
