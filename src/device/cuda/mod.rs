//! The CUDA kernels: what was built of `kernels/`, the parameters that they take, and how work is cut for them.

pub mod kernels;
pub mod params;
pub mod tiles;
