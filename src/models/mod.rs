//! The models, a folder each: the configuration, how it is read, and the functions that build a graph from it and a
//! scope of weights.
//!
//! Tensor names are those of diffusers' and transformers' checkpoints. A pipeline runs five kinds of graph: text
//! ([`clip::clip_text`]), image ([`clip::clip_vision`]), condition ([`unet::conditioning()`], the step-invariant part),
//! denoise ([`unet::denoiser()`]) and decode ([`vae::vae_decoder`]).

pub mod clip;
pub mod compatibility;
pub mod ip_adapter;
mod probe;
pub mod published;
pub mod taesd;
#[cfg(test)]
mod tests;
pub mod unet;
pub mod vae;
