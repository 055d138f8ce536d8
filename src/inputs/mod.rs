//! What a request brings: text, pictures, noise.

pub mod clip;
pub mod noise;
pub mod picture;
pub mod resize;
pub mod tokenizer;
