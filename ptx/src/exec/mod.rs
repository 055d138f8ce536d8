//! The execution of blocks: scheduling of warps, divergence of lanes, and the operations.

mod access;
mod alu;
mod atomic;
pub(crate) mod block;
mod collective;
mod convergence;
mod copy;
pub(crate) mod env;
mod matrix;
mod step;
pub(crate) mod warp;
