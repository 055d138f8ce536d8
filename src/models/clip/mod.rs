//! CLIP: the text encoders of SDXL and the image encoders of IP-Adapters.

mod config;
mod infer;
mod layer;
mod text;
mod vision;

pub use config::{Activation, ClipTextConfig, ClipVisionConfig};
pub use text::{ClipTextShape, clip_text};
pub use vision::{VisionOutputs, clip_vision};
