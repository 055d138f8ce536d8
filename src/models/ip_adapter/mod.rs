//! IP-Adapter: image prompts for the UNet's cross-attentions.

mod config;
mod scales;

pub use config::AdapterConfig;
pub use scales::Scales;
