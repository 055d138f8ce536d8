//! Attention with heads of 64 values by wgmma, on sm_90a.

use super::kernel::{KernelFile, kernel, param_structs, to_i32};
use super::lowering::Lowering;
use super::strided_tensor::{StridedTensor, softmax_scale};
use super::tile_sm90::THREADS;
use crate::device::cuda::driver::kernel::{Kernel, Types::Halves};
use crate::device::cuda::driver::tensor_map::{Swizzle, TensorMap, TensorMapDesc};
use crate::error::Result;
use crate::tensor::DType;
use std::mem::offset_of;

param_structs! {
    /// Parameters of `attention_sm90`'s kernel.
    AttentionSm90Params: 576 {
        q: TensorMap = 0,
        k: TensorMap = 128,
        v: TensorMap = 256,
        out: TensorMap = 384,
        queries: i32 = 512,
        keys: i32 = 516,
        heads: i32 = 520,
        batch: i32 = 524,
        scale: f32 = 528,
        padding: [i32; 11] = 532,
    }
}

/// Values of a head.
pub const DIM: usize = 64;
/// Queries of a block, and keys of a step.
pub(super) const QUERIES: u32 = 128;
/// Queries of a group of warps.
pub(super) const STORED: u32 = 64;

/// Q, the result, and four stages of K and of V, each 128 rows of 128 bytes; two barriers for Q and for each stage.
const SHARED: u32 = 10 * 128 * 128 + 8 * 18;

static ATTENTION_64: Kernel =
    kernel::<AttentionSm90Params>("attention_sm90", "attention_sm90_64", Halves, THREADS, SHARED);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile { kernels: &[&ATTENTION_64], structs: STRUCTS };

/// Attention as the kernel takes it: every query sees every key.
#[derive(Debug, Clone, Copy)]
pub struct FullAttention {
    /// The queries.
    pub q: StridedTensor,
    /// The keys.
    pub k: StridedTensor,
    /// The values.
    pub v: StridedTensor,
    /// The result.
    pub out: StridedTensor,
    /// Queries of an image.
    pub queries: usize,
    /// Keys of an image.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Images.
    pub images: usize,
}

impl FullAttention {
    /// The parameters, and what the maps in them describe.
    pub fn params(&self, dtype: DType) -> (AttentionSm90Params, Vec<(usize, TensorMapDesc)>) {
        let Self { queries, keys, heads, images, .. } = *self;
        let map = |tensor, tokens, rows| tokens_map(tensor, dtype, [tokens, heads, images], rows);
        let maps = vec![
            (offset_of!(AttentionSm90Params, q), map(self.q, queries, QUERIES)),
            (offset_of!(AttentionSm90Params, k), map(self.k, keys, QUERIES)),
            (offset_of!(AttentionSm90Params, v), map(self.v, keys, QUERIES)),
            (offset_of!(AttentionSm90Params, out), map(self.out, queries, STORED)),
        ];
        let [queries, keys, heads, batch] = [queries, keys, heads, images].map(to_i32);
        let scale = softmax_scale(DIM);
        (AttentionSm90Params { queries, keys, heads, batch, scale, ..AttentionSm90Params::default() }, maps)
    }
}

/// The map of an operand of `[tokens, heads, images]` rows of a head, by boxes of so many tokens.
pub(super) fn tokens_map(
    tensor: StridedTensor,
    dtype: DType,
    [tokens, heads, images]: [usize; 3],
    rows: u32,
) -> TensorMapDesc {
    let stride = |elements: i64| usize::try_from(elements).unwrap_or(0);
    let dims = [
        (DIM, 1, DIM as u32),
        (tokens, stride(tensor.row), rows),
        (heads, stride(tensor.head_stride), 1),
        (images, stride(tensor.batch), 1),
    ];
    TensorMapDesc::tiled(tensor.data.0, dtype, &dims, Swizzle::Bytes128)
}

/// Whether this kernel, and that of decoupled attention, takes an attention of so many queries by heads of that width on such a device: by
/// one image's alone and whatever the branches, as a result does not depend on the other images of a batch.
pub fn takes(queries: usize, dim: usize, capability: (u32, u32)) -> bool {
    capability == (9, 0) && dim == DIM && queries >= QUERIES as usize
}

/// Launches an attention.
///
/// # Errors
/// [`crate::Error::Graph`] where a map breaks a rule of the driver.
pub(super) fn launch(l: &mut Lowering<'_>, attention: &FullAttention) -> Result<()> {
    let FullAttention { queries, heads, images, .. } = *attention;
    // A block stays and takes tile after tile.
    let tiles = queries.div_ceil(QUERIES as usize).saturating_mul(heads).saturating_mul(images);
    let grid = [tiles.min(l.options.multiprocessors.max(1)) as u32, 1, 1];
    let (params, maps) = attention.params(l.options.dtype);
    l.launch_with_tensor_maps(&ATTENTION_64, grid, params, maps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attentions_by_wgmma() {
        assert!(takes(4096, 64, (9, 0)) && takes(256, 64, (9, 0)));
        // Another device, another width, hardly a tile.
        assert!(
            !takes(4096, 64, (8, 0)) && !takes(4096, 64, (10, 0)) && !takes(257, 80, (9, 0)) && !takes(77, 64, (9, 0))
        );
    }
}
