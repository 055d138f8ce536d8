//! Stable Diffusion XL with IP-Adapter image prompts.
//!
//! [`Pipeline::load`] takes the published files, [`Pipeline::generate`] a [`Request`]. README.md and examples/ show how;
//! docs/architecture.md says how the parts fit.

pub mod compat;
pub mod device;
pub mod error;
pub mod graph;
pub mod inputs;
pub mod inspect;
pub mod memory;
pub mod models;
pub mod output;
pub mod pipeline;
pub mod schedulers;
pub mod synthetic;
pub mod tensor;
pub mod weights;

pub use compat::Compat;
pub use error::{Error, Result};
pub use pipeline::{ImagePrompt, Pipeline, PipelineOptions, ReferenceImage, Request};

/// The README's example, compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
