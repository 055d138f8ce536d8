//! cuBLASLt: matrix products of the library, and the choice of an algorithm for each.

mod autotune;
mod descriptors;
mod handle;
pub(crate) mod plans;
pub(crate) mod search;
mod trial;
