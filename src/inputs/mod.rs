//! Inputs of a request: text, images, noise.

pub mod clip_image_processor;
mod color_profile;
pub mod fit;
mod gif;
pub mod image;
mod image_file;
mod jpeg;
pub mod mask;
pub mod noise;
pub mod prompt_weights;
pub mod resize;
pub mod tokenizer;
