//! Products of e4m3 by wgmma, on sm_90a: `gemm_sm90`'s with other operands.

use super::epilogue::with_moments;
use super::gemm_sm90::{GemmSm90Params, Product, Rows};
use super::kernel::{KernelFile, Pointer, Quantized, kernel};
use super::lowering::Lowering;
use super::tile::Tile;
use super::tile_sm90::{THREADS, grid, shared};
use crate::device::cuda::driver::kernel::{Kernel, Types::Halves};
use crate::device::cuda::driver::tensor_map::TensorMapDesc;
use crate::error::Result;
use crate::tensor::DType;

/// A row of the kernel table.
const fn product(name: &'static str, m: u32, n: u32) -> Kernel {
    kernel::<GemmSm90Params>("gemm_fp8_sm90", name, Halves, THREADS, shared(m, n))
}

static GEMM_128X128: Kernel = product("gemm_fp8_sm90_128x128", 128, 128);
static GEMM_128X160: Kernel = product("gemm_fp8_sm90_128x160", 128, 160);
static GEMM_256X128: Kernel = product("gemm_fp8_sm90_256x128", 256, 128);
static GEMM_256X160: Kernel = product("gemm_fp8_sm90_256x160", 256, 160);
static GEGLU_128X128: Kernel = product("gemm_geglu_fp8_sm90_128x128", 128, 128);
static GEGLU_128X160: Kernel = product("gemm_geglu_fp8_sm90_128x160", 128, 160);
static GEGLU_256X128: Kernel = product("gemm_geglu_fp8_sm90_256x128", 256, 128);
static GEGLU_256X160: Kernel = product("gemm_geglu_fp8_sm90_256x160", 256, 160);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile {
    kernels: &[
        &GEMM_128X128,
        &GEMM_128X160,
        &GEMM_256X128,
        &GEMM_256X160,
        &GEGLU_128X128,
        &GEGLU_128X160,
        &GEGLU_256X128,
        &GEGLU_256X160,
    ],
    // They are `gemm_sm90`'s.
    structs: &[],
};

/// The parameters of `x` `[m, k]` by W `[n, k]`, with GEGLU `[2 n, k]`, for a kernel of that tile, and what the maps in them describe.
/// `product` has the sizes and what follows; its factors are not read.
pub fn params(
    product: &Product,
    k: usize,
    [x, w]: [Quantized; 2],
    dtype: DType,
    tile: Tile,
    geglu: bool,
) -> (GemmSm90Params, Vec<(usize, TensorMapDesc)>) {
    // By pairs.
    let rows = Rows { at: x.at, columns: k / 2, stride: k / 2 };
    let pairs = Product { x: [rows, Rows::default()], w: w.at, ..*product };
    let (params, maps) = pairs.params(dtype, tile, geglu);
    (GemmSm90Params { x_scales: Pointer(x.scales), w_scales: Pointer(w.scales), ..params }, maps)
}

/// Launches a product as [`params`] has it.
///
/// # Errors
/// [`crate::Error::Graph`] where a map breaks a rule of the driver.
pub(super) fn launch(
    l: &mut Lowering<'_>,
    product: &Product,
    k: usize,
    operands: [Quantized; 2],
    tile: Tile,
    geglu: bool,
) -> Result<()> {
    let kernel = match (geglu, tile.m, tile.n) {
        (false, 256, 160) => &GEMM_256X160,
        (false, 256, _) => &GEMM_256X128,
        (false, _, 160) => &GEMM_128X160,
        (false, ..) => &GEMM_128X128,
        (true, 256, 160) => &GEGLU_256X160,
        (true, 256, _) => &GEGLU_256X128,
        (true, _, 160) => &GEGLU_128X160,
        (true, ..) => &GEGLU_128X128,
    };
    let finish = if geglu { product.finish } else { with_moments(l, product.finish) };
    let product = &Product { finish, ..*product };
    let columns = if geglu { 2 * product.n } else { product.n };
    let grid = grid([product.m.div_ceil(tile.m), columns.div_ceil(tile.n)], l.options.multiprocessors);
    let (params, maps) = params(product, k, operands, l.options.dtype, tile, geglu);
    l.launch_with_tensor_maps(kernel, grid, params, maps)
}
