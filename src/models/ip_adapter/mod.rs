//! IP-Adapter: image prompts for the UNet's cross-attentions.

mod config;
mod projection;
mod resampler;
mod scales;

pub use config::{AdapterConfig, ResamplerConfig};
pub use projection::Adapter;
pub use scales::Scales;
pub(crate) use scales::{LayerScale, layout_block};
