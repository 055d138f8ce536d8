//! The branches of decoupled attention, as its kernels take them.

use super::kernel::{Pointer, param_structs};
use super::strided_tensor::StridedTensor;

/// The most branches: the text and 16 image branches.
pub const MAX_BRANCHES: usize = 17;

param_structs! {
    /// Keys and values of one branch.
    KvBranch: 88 {
        k: StridedTensor = 0,
        v: StridedTensor = 32,
        /// A factor for each query of an image, f32, or null: an image prompt's mask limits it to a part of the result.
        mask: Pointer = 64,
        mask_batch: i64 = 72,
        capacity: i32 = 80,
        reserved: i32 = 84,
    }

    /// Parameters of `decoupled`'s kernels.
    DecoupledParams: 1600 {
        q: StridedTensor = 0,
        out: StridedTensor = 32,
        counts: Pointer = 64,
        scales: Pointer = 72,
        queries: i32 = 80,
        dim: i32 = 84,
        branches: i32 = 88,
        batch: i32 = 92,
        scale: f32 = 96,
        reserved: i32 = 100,
        branch: [KvBranch; MAX_BRANCHES] = 104,
    }
}
