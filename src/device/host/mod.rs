//! The denoise loop and the image decoder over any executable, in the host's arithmetic: the reference for every device.

mod denoise_loop;
mod image_decoder;

pub use denoise_loop::HostDenoiseLoop;
pub use image_decoder::HostImageDecoder;
