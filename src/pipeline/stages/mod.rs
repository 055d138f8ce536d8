//! The stages of a request, one after the other: each takes the results of those before it, and data never flows back.

pub(super) mod condition;
pub(super) mod decode;
pub(super) mod denoise;
pub(super) mod image;
pub(super) mod text;
