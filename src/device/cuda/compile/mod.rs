//! Kernel files: what the build made of them, and their compilation at run time.

#[cfg(feature = "cuda")]
pub(crate) mod cache;
pub mod cubin;
pub mod images;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod log;
#[cfg(feature = "cuda")]
pub(crate) mod nvrtc;
#[cfg(feature = "cuda")]
pub(crate) mod runtime;
#[cfg(feature = "cuda")]
pub(crate) mod search;
pub(crate) mod targets;
