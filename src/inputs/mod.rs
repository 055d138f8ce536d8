//! What a request brings: text, pictures, noise.

pub mod clip;
pub mod image;
pub mod noise;
pub mod resize;
pub mod tokenizer;
