//! Stable Diffusion XL with IP-Adapter image prompts.

pub mod error;
pub mod inputs;
pub mod models;
pub mod output;
pub mod schedulers;
pub mod tensor;
pub mod weights;

pub use error::{Error, Result};
