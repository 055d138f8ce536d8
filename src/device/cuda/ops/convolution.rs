//! Convolutions.

use super::bindings::OperandRole;
use super::conv2d::{Conv2dConfig, FEW_IN, config_of, images};
use super::convolution_fp8_sm90;
use super::convolution_narrow;
use super::convolution_sm90::{self, Convolution};
use super::epilogue::EpilogueParams;
use super::gemm::{self, LeftOperand, channels};
use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32};
use super::layout::patches;
use super::low_rank;
use super::lowering::{Lowering, OpLowering, ResultSlot, misrouted, unsupported};
use super::pointwise::{as_f32, joined};
use super::product;
use super::quantize_sm90;
use super::tile::{self, Tile};
use super::tile_sm90;
use crate::device::cuda::driver::kernel::{
    Kernel,
    Types::{All, Halves},
};
use crate::error::Result;
use crate::graph::{Conv2dParams, EpilogueActivation, ImplicitGemm, Node};

param_structs! {
    /// Parameters of `convolution`'s kernels.
    ConvolutionParams: 152 {
        x0: Pointer = 0,
        x1: Pointer = 8,
        w: Pointer = 16,
        finish: EpilogueParams = 24,
        pixels: i32 = 96,
        n: i32 = 100,
        channels0: i32 = 104,
        channels: i32 = 108,
        height: i32 = 112,
        width: i32 = 116,
        result_height: i32 = 120,
        result_width: i32 = 124,
        kernel_y: i32 = 128,
        kernel_x: i32 = 132,
        stride: i32 = 136,
        padding_y: i32 = 140,
        padding_x: i32 = 144,
        phases: i32 = 148,
    }
}

static CONVOLUTION_256X128: Kernel =
    kernel::<ConvolutionParams>("convolution", "convolution_256x128", Halves, 256, tile::shared(256, 128));
static CONVOLUTION_128X128: Kernel =
    kernel::<ConvolutionParams>("convolution", "convolution_128x128", Halves, 128, tile::shared(128, 128));
static CONVOLUTION_128X64: Kernel =
    kernel::<ConvolutionParams>("convolution", "convolution_128x64", All, 128, tile::shared(128, 64));
static CONVOLUTION_64X64: Kernel =
    kernel::<ConvolutionParams>("convolution", "convolution_64x64", All, 128, tile::shared(64, 64));

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile {
    kernels: &[&CONVOLUTION_256X128, &CONVOLUTION_128X128, &CONVOLUTION_128X64, &CONVOLUTION_64X64],
    structs: STRUCTS,
};

/// [`crate::graph::Op::Conv2d`].
pub(crate) static OP: OpLowering = OpLowering {
    operand_role: |graph, node, k| {
        let cut = k == 0 && config_of(graph, node) == Some(Conv2dConfig::Patches);
        if cut { OperandRole::Float } else { OperandRole::Storage }
    },
    writes_f32: |graph, node| {
        let Some(gemm) = node.op.implicit_gemm() else { return false };
        match config_of(graph, node) {
            Some(Conv2dConfig::FewIn) => gemm.is_bare(),
            Some(_) => product::writes_f32(gemm),
            None => false,
        }
    },
    ..OpLowering::new(lower)
};

fn lower(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Some(gemm) = node.op.implicit_gemm() else { return Err(misrouted(node)) };
    let Some(conv) = gemm.conv else { return Err(misrouted(node)) };
    let c = channels(l.graph, node, gemm);
    match config_of(l.graph, node) {
        Some(Conv2dConfig::Gemm) => {
            let left = gemm::sources(l, node, gemm)?;
            product::product(l, node, gemm, left, (1, c), out)
        }
        Some(Conv2dConfig::Patches) => patched(l, node, gemm, conv.kernel, out),
        Some(Conv2dConfig::Implicit) => implicit(l, node, gemm, &conv, out),
        Some(config @ (Conv2dConfig::FewIn | Conv2dConfig::FewOut)) => {
            convolution_narrow::lower(l, node, gemm, (&conv, config), out)
        }
        None => {
            let what =
                format!("{c} input channels; a multiple of 8 is needed, or few: {FEW_IN} with all taps of the kernel");
            Err(unsupported(node, &what))
        }
    }
}

/// Cuts images into patches of that side, and multiplies them.
fn patched(l: &mut Lowering<'_>, node: &Node, gemm: ImplicitGemm<'_>, side: usize, out: ResultSlot) -> Result<()> {
    let shape = &l.graph.node(node.inputs[0]).shape;
    let shape = [shape[0], shape[1], shape[2], shape[3]];
    let pitch = (side * side * shape[3]).next_multiple_of(8);
    let to = l.scratch(node.len() / node.channels() * pitch * l.size());
    let x = as_f32(l, node.inputs[0])?;
    patches(l, x, shape, side, (to, pitch))?;
    product::product(l, node, gemm, LeftOperand::one(to, pitch, pitch), (side * side, shape[3]), out)
}

/// The sizes of one launch.
struct Geometry {
    x: [u64; 2],
    image: [usize; 2],
    result: [usize; 2],
    kernel: usize,
    phases: usize,
}

/// The geometry of a convolution after a doubling as four of the images as they are, one for each phase of the result.
fn phased(l: &Lowering<'_>, node: &Node, gemm: ImplicitGemm<'_>) -> Geometry {
    let shape = &l.graph.node(node.inputs[0]).shape;
    let size = [shape[1], shape[2]];
    let second = if gemm.sources == 2 { l.place(node.inputs[1]) } else { 0 };
    let x = [l.place(node.inputs[0]), second];
    Geometry { x, image: size, result: size, kernel: 2, phases: 4 }
}

/// The geometry as the graph has it; images are enlarged first where it says so.
fn direct(l: &mut Lowering<'_>, node: &Node, gemm: ImplicitGemm<'_>, conv: &Conv2dParams) -> Result<Geometry> {
    let (x, image) = images(l, node, gemm, conv)?;
    Ok(Geometry { x, image, result: [node.shape[1], node.shape[2]], kernel: conv.kernel, phases: 1 })
}

/// Lowers a convolution that gathers its pixels on the way.
fn implicit(
    l: &mut Lowering<'_>,
    node: &Node,
    gemm: ImplicitGemm<'_>,
    conv: &Conv2dParams,
    out: ResultSlot,
) -> Result<()> {
    let shape = &l.graph.node(node.inputs[0]).shape;
    let (count, height, width) = (shape[0], shape[1], shape[2]);
    let (n, c) = (node.channels(), channels(l.graph, node, gemm));
    let doubled =
        conv.resize == Some((2 * height, 2 * width)) && (conv.kernel, conv.stride, conv.padding) == (3, 1, [1; 2]);
    let single = gemm.parts.len() == 1 && gemm.parts[0].weight.shape().len() == 4;
    let geometry = if doubled && single { phased(l, node, gemm) } else { direct(l, node, gemm, conv)? };
    let Geometry { mut x, image, result, kernel, phases } = geometry;
    let mut channels0 = l.width(node.inputs[0]);
    if !channels0.is_multiple_of(8) {
        if phases == 4 || conv.resize.is_some() {
            return Err(l.uneven(node, gemm.sources));
        }
        x = [joined(l, node.inputs[0], node.inputs[1])?, 0];
        channels0 = c;
    }
    let mut all = Convolution {
        x,
        channels: [channels0, c - channels0],
        w: 0,
        images: count,
        image,
        result,
        n,
        kernel,
        stride: conv.stride,
        padding: conv.padding[0],
        phases,
        finish: EpilogueParams::default(),
    };
    let pixels = result[0] * result[1];
    let bare = gemm.epilogue.activation == EpilogueActivation::None && !out.float && !l.is_f32();
    if bare && convolution_fp8_sm90::fits(&all) && quantize_sm90::takes(l, gemm, c) {
        all.finish = low_rank::epilogue(l, node, gemm, pixels, out)?;
        return fp8(l, gemm, &all);
    }
    let weight = match phases {
        4 => l.weights.phases(&gemm.parts[0].weight),
        _ => l.weights.joined(gemm.parts, c, kernel * kernel, kernel * kernel * c),
    };
    all.w = l.weight(weight);
    all.finish = low_rank::epilogue(l, node, gemm, pixels, out)?;
    // As for one image, so that its result does not depend on those that share its batch.
    if bare && all.fits() && tile_sm90::takes(pixels * phases, n, l.options.tile_device()) {
        let tile = tile_sm90::choose(count * pixels * phases, n, l.options.tile_device());
        return convolution_sm90::launch(l, &all, tile);
    }
    tiled(l, &all)
}

/// Rounds the pixels of a convolution to e4m3 and multiplies them.
fn fp8(l: &mut Lowering<'_>, gemm: ImplicitGemm<'_>, all: &Convolution) -> Result<()> {
    let (c, taps) = (all.channels[0], all.kernel * all.kernel);
    let w = match all.phases {
        4 => l.weights.quantized_phases(&gemm.parts[0].weight),
        _ => l.weights.quantized(gemm.parts, c, taps),
    };
    let rows = all.images * all.image[0] * all.image[1];
    let operands = [quantize_sm90::quantized(l, all.x[0], [rows, c])?, l.quantized_weight(w)];
    let m = all.images * all.result[0] * all.result[1] * all.phases;
    // A tap's last channels take a whole step.
    let k = taps * c.next_multiple_of(tile_sm90::STEP_FP8);
    let tile = tile_sm90::choose_fp8((m, all.n, k), l.options.tile_device());
    convolution_fp8_sm90::launch(l, all, operands, tile)
}

/// Launches a convolution by the kernels of every architecture.
fn tiled(l: &mut Lowering<'_>, all: &Convolution) -> Result<()> {
    let pixels = all.images * all.result[0] * all.result[1];
    let params = ConvolutionParams {
        x0: Pointer(all.x[0]),
        x1: Pointer(all.x[1]),
        w: Pointer(all.w),
        finish: all.finish,
        pixels: to_i32(pixels),
        n: to_i32(all.n),
        channels0: to_i32(all.channels[0]),
        channels: to_i32(all.channels[0] + all.channels[1]),
        height: to_i32(all.image[0]),
        width: to_i32(all.image[1]),
        result_height: to_i32(all.result[0]),
        result_width: to_i32(all.result[1]),
        kernel_y: to_i32(all.kernel),
        kernel_x: to_i32(all.kernel),
        stride: to_i32(all.stride),
        padding_y: to_i32(all.padding),
        padding_x: to_i32(all.padding),
        phases: to_i32(all.phases),
    };
    let tile = gemm::tile_for(pixels * all.phases, all.n, l.options.dtype, l.options.tile_device());
    let kernel = match tile {
        Tile::TALL => &CONVOLUTION_256X128,
        Tile::LARGE => &CONVOLUTION_128X128,
        Tile::MEDIUM => &CONVOLUTION_128X64,
        _ => &CONVOLUTION_64X64,
    };
    let [x, y] = tile.grid(pixels, all.n);
    l.launch(kernel, [x, y, blocks(all.phases, 1)], params)
}
