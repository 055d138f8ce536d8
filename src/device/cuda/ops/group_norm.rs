//! Group normalisation.

use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32};
use super::lowering::{Lowering, OpLowering, ResultSlot, misrouted};
use crate::device::cuda::driver::kernel::{
    Kernel,
    Types::{All, F32},
};
use crate::error::Result;
use crate::graph::{Node, Op};

param_structs! {
    /// Parameters of `group_norm`'s kernels.
    GroupNormParams: 88 {
        x0: Pointer = 0,
        x1: Pointer = 8,
        weight: Pointer = 16,
        bias: Pointer = 24,
        moments: Pointer = 32,
        lines: Pointer = 40,
        out: Pointer = 48,
        pixels: i32 = 56,
        channels0: i32 = 60,
        channels: i32 = 64,
        groups: i32 = 68,
        chunk: i32 = 72,
        chunks: i32 = 76,
        silu: i32 = 80,
        eps: f32 = 84,
    }
}

static MOMENTS: Kernel = kernel::<GroupNormParams>("group_norm", "group_norm_moments", All, 256, 0);
static LINES: Kernel = kernel::<GroupNormParams>("group_norm", "group_norm_lines", F32, 256, 0);
static APPLY: Kernel = kernel::<GroupNormParams>("group_norm", "group_norm_apply", All, 256, 0);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile { kernels: &[&MOMENTS, &LINES, &APPLY], structs: STRUCTS };

/// [`Op::GroupNorm`].
pub(crate) static OP: OpLowering = OpLowering::new(lower);

/// Pixels whose statistics a block takes: about 64 such parts an image, of 32 to 512 pixels. It depends on the image alone, so an
/// image's result does not depend on what shares its batch.
pub fn pixels_of_part(pixels: usize) -> usize {
    (pixels / 64).next_power_of_two().clamp(32, 512)
}

fn lower(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Op::GroupNorm { groups, eps, weight, bias, silu } = &node.op else { return Err(misrouted(node)) };
    let (c, images) = (node.channels(), node.shape[0]);
    let pixels = node.len() / (c * images);
    let channels0 = l.width(node.inputs[0]);
    if !c.is_multiple_of(8) || !channels0.is_multiple_of(8) {
        return Err(l.uneven(node, node.inputs.len()));
    }
    let part = pixels_of_part(pixels);
    let parts = pixels.div_ceil(part);
    let (weight, bias) = (l.weights.floats(weight), l.weights.floats(bias));
    let moments = l.scratch(images * parts * 2 * c * 4);
    let lines = l.scratch(images * 2 * c * 4);
    let params = GroupNormParams {
        x0: Pointer(l.place(node.inputs[0])),
        x1: Pointer(node.inputs.get(1).map_or(0, |id| l.place(*id))),
        weight: Pointer(l.weight(weight)),
        bias: Pointer(l.weight(bias)),
        moments: Pointer(moments),
        lines: Pointer(lines),
        out: Pointer(out.at),
        pixels: to_i32(pixels),
        channels0: to_i32(channels0),
        channels: to_i32(c),
        groups: to_i32(*groups),
        chunk: to_i32(part),
        chunks: to_i32(parts),
        silu: i32::from(*silu),
        eps: *eps,
    };
    let (y, z) = (blocks(c, 128), blocks(images, 1));
    l.launch(&MOMENTS, [blocks(parts, 1), y, z], params)?;
    l.launch(&LINES, [blocks(*groups, 1), z, 1], params)?;
    l.launch(&APPLY, [blocks(pixels, 128), y, z], params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_an_image() {
        assert_eq!([1, 1024, 4096, 16_384, 1 << 20].map(pixels_of_part), [32, 32, 64, 256, 512]);
    }
}
