//! The stages of a request, one after the other: each takes what the ones before it gave, and nothing goes back.

pub(super) mod condition;
pub(super) mod decode;
pub(super) mod denoise;
pub(super) mod image;
pub(super) mod text;
