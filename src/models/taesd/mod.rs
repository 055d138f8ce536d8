//! TAESD, the tiny autoencoder (diffusers' `AutoencoderTiny`).

mod config;
mod graphs;

pub use config::{TaesdConfig, TaesdSide};
pub use graphs::taesd;
