//! IP-Adapter: image prompts for the UNet's cross-attentions.

mod config;
mod projection;
mod resampler;
mod scales;

pub use config::{AdapterConfig, ResamplerConfig};
pub use projection::Adapter;
pub(crate) use scales::layout_block;
pub use scales::{LayerScale, Scales};
