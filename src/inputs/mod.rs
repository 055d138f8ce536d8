//! What a request brings: text, pictures, noise.

pub mod tokenizer;
