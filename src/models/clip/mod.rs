//! CLIP: the text encoders of SDXL and the image encoders of IP-Adapters.

mod config;
mod infer;
mod layer;
pub mod text;
pub mod vision;

pub use config::{Activation, ClipTextConfig, ClipVisionConfig};
