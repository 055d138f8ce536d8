//! Convolutions of e4m3 by wgmma, on sm_90a: `convolution_sm90`'s with other operands.

use super::convolution_sm90::{Convolution, ConvolutionSm90Params};
use super::epilogue::with_moments;
use super::kernel::{KernelFile, Pointer, Quantized, kernel};
use super::lowering::Lowering;
use super::tile::Tile;
use super::tile_sm90::{THREADS, shared};
use crate::device::cuda::driver::kernel::{Kernel, Types::Halves};
use crate::device::cuda::driver::tensor_map::TensorMapDesc;
use crate::error::Result;
use crate::tensor::DType;

/// A row of the kernel table.
const fn convolution(name: &'static str, m: u32, n: u32) -> Kernel {
    kernel::<ConvolutionSm90Params>("convolution_fp8_sm90", name, Halves, THREADS, shared(m, n))
}

static CONVOLUTION_128X128: Kernel = convolution("convolution_fp8_sm90_128x128", 128, 128);
static CONVOLUTION_128X160: Kernel = convolution("convolution_fp8_sm90_128x160", 128, 160);
static CONVOLUTION_256X128: Kernel = convolution("convolution_fp8_sm90_256x128", 256, 128);
static CONVOLUTION_256X160: Kernel = convolution("convolution_fp8_sm90_256x160", 256, 160);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile {
    kernels: &[&CONVOLUTION_128X128, &CONVOLUTION_128X160, &CONVOLUTION_256X128, &CONVOLUTION_256X160],
    // They are `convolution_sm90`'s.
    structs: &[],
};

/// The same convolution with channels by pairs of e4m3.
fn pairs(convolution: &Convolution) -> Convolution {
    Convolution { channels: convolution.channels.map(|channels| channels / 2), ..*convolution }
}

/// The greatest side of an image, whose rows and columns the kernels hold in 16 bits.
const MAX_SIDE: usize = (1 << 14) - 1;

/// Whether the kernels take such a convolution: of one source that [`Convolution::fits`] by pairs.
pub(super) fn fits(convolution: &Convolution) -> bool {
    let sides = convolution.image.iter().all(|side| *side <= MAX_SIDE);
    convolution.channels[1] == 0 && sides && pairs(convolution).fits()
}

/// The parameters of a kernel of that tile, and what the maps in them describe. `convolution` has the sizes and what follows; its
/// factors are not read.
pub fn params(
    convolution: &Convolution,
    [x, w]: [Quantized; 2],
    dtype: DType,
    tile: Tile,
) -> (ConvolutionSm90Params, Vec<(usize, TensorMapDesc)>) {
    let (params, maps) = Convolution { x: [x.at, 0], w: w.at, ..pairs(convolution) }.params(dtype, tile);
    (ConvolutionSm90Params { x_scales: Pointer(x.scales), w_scales: Pointer(w.scales), ..params }, maps)
}

/// Launches a convolution that [`fits`].
///
/// # Errors
/// [`crate::Error::Graph`] where a map breaks a rule of the driver.
pub(super) fn launch(
    l: &mut Lowering<'_>,
    convolution: &Convolution,
    operands: [Quantized; 2],
    tile: Tile,
) -> Result<()> {
    let kernel = match (tile.m, tile.n) {
        (256, 160) => &CONVOLUTION_256X160,
        (256, _) => &CONVOLUTION_256X128,
        (_, 160) => &CONVOLUTION_128X160,
        _ => &CONVOLUTION_128X128,
    };
    let convolution = Convolution { finish: with_moments(l, convolution.finish), ..*convolution };
    let (params, maps) = params(&convolution, operands, l.options.dtype, tile);
    l.launch_with_tensor_maps(kernel, convolution.grid(tile, l.options.multiprocessors), params, maps)
}
