//! Weights on the device: their layout there, their upload, and the cache that executables share.

pub(crate) mod addresses;
pub(crate) mod cache;
pub(crate) mod layout;
mod upload;
