//! cuBLASLt: matrix products of the library, and the choice of an algorithm for each.

pub(crate) mod autotune;
pub(crate) mod handle;
mod trial;
