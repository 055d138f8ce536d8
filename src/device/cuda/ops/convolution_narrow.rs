//! Convolutions with few channels on one side; the kernels add the bias alone.

use super::conv2d::{Conv2dConfig, images};
use super::gemm::channels;
use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32};
use super::low_rank;
use super::lowering::{Lowering, ResultSlot};
use super::pointwise::{activation, add, joined};
use crate::device::cuda::driver::kernel::{Kernel, Types::All};
use crate::error::Result;
use crate::graph::{Conv2dParams, EpilogueActivation, ImplicitGemm, Node};

param_structs! {
    /// Parameters of `convolution_narrow`'s kernels.
    NarrowParams: 88 {
        x: Pointer = 0,
        w: Pointer = 8,
        bias: Pointer = 16,
        out: Pointer = 24,
        pixels: i32 = 32,
        n: i32 = 36,
        channels: i32 = 40,
        height: i32 = 44,
        width: i32 = 48,
        result_height: i32 = 52,
        result_width: i32 = 56,
        kernel_y: i32 = 60,
        kernel_x: i32 = 64,
        stride: i32 = 68,
        padding_y: i32 = 72,
        padding_x: i32 = 76,
        out_f32: i32 = 80,
        reserved: i32 = 84,
    }
}

static FEW_IN: Kernel = kernel::<NarrowParams>("convolution_narrow", "convolution_few_in", All, 128, 0);
static FEW_OUT_4: Kernel = kernel::<NarrowParams>("convolution_narrow", "convolution_few_out_4", All, 128, 0);
static FEW_OUT_8: Kernel = kernel::<NarrowParams>("convolution_narrow", "convolution_few_out_8", All, 128, 0);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile { kernels: &[&FEW_IN, &FEW_OUT_4, &FEW_OUT_8], structs: STRUCTS };

/// Lowers a convolution that [`super::conv2d::choose`] gives to these kernels.
pub(super) fn lower(
    l: &mut Lowering<'_>,
    node: &Node,
    gemm: ImplicitGemm<'_>,
    (conv, config): (&Conv2dParams, Conv2dConfig),
    out: ResultSlot,
) -> Result<()> {
    let (n, c) = (node.channels(), channels(l.graph, node, gemm));
    let (m, taps) = (node.len() / n, conv.kernel * conv.kernel);
    let (mut x, [height, width]) = images(l, node, gemm, conv)?;
    if gemm.sources == 2 {
        if conv.resize.is_some() {
            return Err(l.uneven(node, gemm.sources));
        }
        x[0] = joined(l, node.inputs[0], node.inputs[1])?;
    }
    let weight = l.weights.joined(gemm.parts, c, taps, taps * c);
    let finish = low_rank::epilogue(l, node, gemm, m / node.shape[0], out)?;
    let params = NarrowParams {
        x: Pointer(x[0]),
        w: Pointer(l.weight(weight)),
        bias: finish.bias,
        out: Pointer(out.at),
        pixels: to_i32(m),
        n: to_i32(n),
        channels: to_i32(c),
        height: to_i32(height),
        width: to_i32(width),
        result_height: to_i32(node.shape[1]),
        result_width: to_i32(node.shape[2]),
        kernel_y: to_i32(conv.kernel),
        kernel_x: to_i32(conv.kernel),
        stride: to_i32(conv.stride),
        padding_y: to_i32(conv.padding[0]),
        padding_x: to_i32(conv.padding[0]),
        out_f32: i32::from(out.float),
        reserved: 0,
    };
    match config {
        Conv2dConfig::FewOut if n <= 4 => l.launch(&FEW_OUT_4, [blocks(m, 16), 1, 1], params)?,
        Conv2dConfig::FewOut => l.launch(&FEW_OUT_8, [blocks(m, 16), 1, 1], params)?,
        _ => l.launch(&FEW_IN, [blocks(m, 16), blocks(n, 128), 1], params)?,
    }
    // The rest of the epilogue.
    if gemm.epilogue.per_image_bias {
        let images = node.shape[0];
        add(l, [out.at, finish.rows.0, out.at], [m, m / images, images], n)?;
    }
    if let EpilogueActivation::Pointwise(kind) = gemm.epilogue.activation {
        activation(l, kind, out.at, out.at, m * n)?;
    }
    if finish.residual.0 != 0 {
        add(l, [out.at, finish.residual.0, out.at], [m, 1, m], n)?;
    }
    Ok(())
}
