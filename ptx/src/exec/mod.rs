//! The execution of blocks: scheduling of warps, divergence of lanes, and the operations.

mod access;
mod alu;
mod atomic;
pub(crate) mod block;
mod bulk;
mod cluster;
mod collective;
mod convergence;
mod copy;
pub(crate) mod env;
mod landing;
mod matrix;
mod mbarrier;
mod step;
mod tensor_map;
pub(crate) mod warp;
mod wgmma;
