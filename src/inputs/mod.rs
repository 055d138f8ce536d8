//! What a request brings: text, pictures, noise.

pub mod tokenizer;
pub mod clip;
pub mod noise;
pub mod picture;
pub mod resize;
