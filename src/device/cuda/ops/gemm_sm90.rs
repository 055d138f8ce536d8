//! Products of halves by wgmma, on sm_90a.

use super::epilogue::{EpilogueParams, with_moments};
use super::kernel::{KernelFile, Pointer, kernel, param_structs, to_i32};
use super::lowering::Lowering;
use super::tile::Tile;
use super::tile_sm90::{THREADS, grid, shared};
use crate::device::cuda::driver::kernel::{Kernel, Types::Halves};
use crate::device::cuda::driver::tensor_map::{Swizzle, TensorMap, TensorMapDesc};
use crate::error::Result;
use crate::tensor::DType;
use std::mem::offset_of;

param_structs! {
    /// Parameters of `gemm_sm90`'s kernels.
    GemmSm90Params: 640 {
        x0: TensorMap = 0,
        x1: TensorMap = 128,
        w: TensorMap = 256,
        out: TensorMap = 384,
        finish: EpilogueParams = 512,
        m: i32 = 584,
        n: i32 = 588,
        k: i32 = 592,
        k0: i32 = 596,
        x_scales: Pointer = 600,
        w_scales: Pointer = 608,
        padding: [i32; 6] = 616,
    }
}

/// Columns of X and W in a box: 128 bytes. Those of e4m3 are copied by pairs, as values of two bytes.
pub(super) const DEPTH: u32 = 64;
/// Rows of a box of the result.
const RESULT_ROWS: u32 = 64;

/// The map by which a tile of a result `[m, n]` leaves, in boxes of so many columns.
pub(super) fn result_map(finish: &EpilogueParams, dtype: DType, [m, n]: [usize; 2], columns: u32) -> TensorMapDesc {
    let stride = usize::try_from(finish.out_stride).unwrap_or(0);
    let swizzle = if columns == 16 { Swizzle::Bytes32 } else { Swizzle::Bytes64 };
    TensorMapDesc::tiled(finish.out.0, dtype, &[(n, 1, columns), (m, stride, RESULT_ROWS)], swizzle)
}

/// A row of the kernel table.
const fn product(name: &'static str, m: u32, n: u32) -> Kernel {
    kernel::<GemmSm90Params>("gemm_sm90", name, Halves, THREADS, shared(m, n))
}

static GEMM_128X128: Kernel = product("gemm_sm90_128x128", 128, 128);
static GEMM_128X160: Kernel = product("gemm_sm90_128x160", 128, 160);
static GEMM_256X160: Kernel = product("gemm_sm90_256x160", 256, 160);
static GEMM_128X256: Kernel = product("gemm_sm90_128x256", 128, 256);
static GEGLU_128X128: Kernel = product("gemm_geglu_sm90_128x128", 128, 128);
static GEGLU_128X160: Kernel = product("gemm_geglu_sm90_128x160", 128, 160);
static GEGLU_256X160: Kernel = product("gemm_geglu_sm90_256x160", 256, 160);
static GEGLU_128X256: Kernel = product("gemm_geglu_sm90_128x256", 128, 256);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile {
    kernels: &[
        &GEMM_128X128,
        &GEMM_128X160,
        &GEMM_256X160,
        &GEMM_128X256,
        &GEGLU_128X128,
        &GEGLU_128X160,
        &GEGLU_256X160,
        &GEGLU_128X256,
    ],
    structs: STRUCTS,
};

/// A matrix by rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rows {
    /// Its address, a multiple of 16.
    pub at: u64,
    /// Its columns.
    pub columns: usize,
    /// Elements from row to row, a multiple of 8.
    pub stride: usize,
}

/// A product as the kernels take it: `[m, n]`, with GEGLU `n` being the columns of its result.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// The left factor of `m` rows, in one or in two sources whose columns follow each other; the second has none where there is one.
    pub x: [Rows; 2],
    /// The address of W, `[n, k]`, or with GEGLU `[2 n, k]`, without gaps.
    pub w: u64,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// The bias, the residual and the result; without an activation, and not f32.
    pub finish: EpilogueParams,
}

impl Product {
    /// The parameters of a kernel of that tile, and what the maps in them describe.
    pub fn params(&self, dtype: DType, tile: Tile, geglu: bool) -> (GemmSm90Params, Vec<(usize, TensorMapDesc)>) {
        let Self { x: [first, second], w, m, n, finish } = *self;
        let k = first.columns + second.columns;
        let rows = |x: Rows| {
            // A block of a cluster copies half of the rows for both.
            let dims = [(x.columns, 1, DEPTH), (m, x.stride, tile.m as u32 / 2)];
            TensorMapDesc::tiled(x.at, dtype, &dims, Swizzle::Bytes128)
        };
        let across = tile.n as u32;
        let w = if geglu {
            // Eight rows of one half beside those of the other.
            let dims = [(k, 1, DEPTH), (8, k, 8), (2, n * k, 2), (n / 8, 8 * k, across / 16)];
            TensorMapDesc::tiled(w, dtype, &dims, Swizzle::Bytes128)
        } else {
            TensorMapDesc::tiled(w, dtype, &[(k, 1, DEPTH), (n, k, across)], Swizzle::Bytes128)
        };
        let out = result_map(&finish, dtype, [m, n], if geglu { 16 } else { 32 });
        let maps = vec![
            (offset_of!(GemmSm90Params, x0), rows(first)),
            // Nobody reads a second one that is not there.
            (offset_of!(GemmSm90Params, x1), rows(if second.columns > 0 { second } else { first })),
            (offset_of!(GemmSm90Params, w), w),
            (offset_of!(GemmSm90Params, out), out),
        ];
        let [m, n, k, k0] = [m, n, k, first.columns].map(to_i32);
        (GemmSm90Params { finish, m, n, k, k0, ..GemmSm90Params::default() }, maps)
    }
}

/// Launches a product.
///
/// # Errors
/// [`crate::Error::Graph`] where a map breaks a rule of the driver.
pub(super) fn launch(l: &mut Lowering<'_>, product: &Product, tile: Tile, geglu: bool) -> Result<()> {
    let kernel = match (geglu, tile.m, tile.n) {
        (false, 256, _) => &GEMM_256X160,
        (false, _, 256) => &GEMM_128X256,
        (false, _, 160) => &GEMM_128X160,
        (false, ..) => &GEMM_128X128,
        (true, 256, _) => &GEGLU_256X160,
        (true, _, 256) => &GEGLU_128X256,
        (true, _, 160) => &GEGLU_128X160,
        (true, ..) => &GEGLU_128X128,
    };
    let finish = if geglu { product.finish } else { with_moments(l, product.finish) };
    let product = Product { finish, ..*product };
    let columns = if geglu { 2 * product.n } else { product.n };
    let grid = grid([product.m.div_ceil(tile.m), columns.div_ceil(tile.n)], l.options.multiprocessors);
    let (params, maps) = product.params(l.options.dtype, tile, geglu);
    l.launch_with_tensor_maps(kernel, grid, params, maps)
}
