//! The stages of a request, one after the other: each takes the results of those before it, and data never flows back.

mod channels;
pub(super) mod condition;
pub(super) mod decode;
pub(super) mod denoise;
pub(super) mod image;
pub(super) mod init_image;
mod initial_latents;
pub(super) mod text;
mod text_rows;
mod upcast;
