//! Decoupled cross-attention with heads of 64 values by wgmma, on sm_90a.

use super::attention_sm90::{QUERIES, STORED, tokens_map};
use super::branches::DecoupledParams;
use super::kernel::{KernelFile, kernel, param_structs, to_i32};
use super::lowering::Lowering;
use super::tile_sm90::THREADS;
use crate::device::cuda::driver::kernel::{Kernel, Types::Halves};
use crate::device::cuda::driver::tensor_map::{TensorMap, TensorMapDesc};
use crate::error::Result;
use crate::tensor::DType;
use std::mem::offset_of;

param_structs! {
    /// Parameters of `decoupled_sm90`'s kernel.
    DecoupledSm90Params: 1920 {
        q: TensorMap = 0,
        out: TensorMap = 128,
        of: DecoupledParams = 256,
        heads: i32 = 1856,
        padding: [i32; 15] = 1860,
    }
}

/// The result, two stages of Q, of 320 keys and values and of the list of branches, and two barriers for each stage of either.
const SHARED: u32 = 3 * 128 * 128 + 2 * (2 * 320 * 128 + 512) + 8 * 8;

static DECOUPLED_64: Kernel =
    kernel::<DecoupledSm90Params>("decoupled_sm90", "decoupled_sm90_64", Halves, THREADS, SHARED);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile { kernels: &[&DECOUPLED_64], structs: STRUCTS };

/// Tiles of queries of all images and heads.
pub fn tiles(of: &DecoupledParams, heads: usize) -> usize {
    let [queries, images] = [of.queries, of.batch].map(|count| usize::try_from(count).unwrap_or(0));
    queries.div_ceil(QUERIES as usize).saturating_mul(heads).saturating_mul(images)
}

/// The parameters of an attention of so many heads, and what the maps in them describe.
pub fn params(of: DecoupledParams, heads: usize, dtype: DType) -> (DecoupledSm90Params, Vec<(usize, TensorMapDesc)>) {
    let [queries, images] = [of.queries, of.batch].map(|count| usize::try_from(count).unwrap_or(0));
    let sizes = [queries, heads, images];
    let maps = vec![
        (offset_of!(DecoupledSm90Params, q), tokens_map(of.q, dtype, sizes, QUERIES)),
        (offset_of!(DecoupledSm90Params, out), tokens_map(of.out, dtype, sizes, STORED)),
    ];
    (DecoupledSm90Params { of, heads: to_i32(heads), ..DecoupledSm90Params::default() }, maps)
}

/// Launches an attention of so many heads.
///
/// # Errors
/// [`crate::Error::Graph`] where a map breaks a rule of the driver.
pub(super) fn launch(l: &mut Lowering<'_>, of: DecoupledParams, heads: usize) -> Result<()> {
    // A block stays and takes its share of the tiles.
    let grid = [tiles(&of, heads).min(l.options.multiprocessors.max(1)) as u32, 1, 1];
    let (params, maps) = params(of, heads, l.options.dtype);
    l.launch_with_tensor_maps(&DECOUPLED_64, grid, params, maps)
}
