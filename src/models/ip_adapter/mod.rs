//! IP-Adapter: image prompts for the UNet's cross-attentions.

mod config;
mod projection;
mod scales;

pub use config::AdapterConfig;
pub use projection::Adapter;
pub use scales::Scales;
