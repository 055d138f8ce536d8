//! Group normalisation.

use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32};
use super::lowering::{Lowering, OpLowering, ResultSlot, misrouted};
use super::moments::RUN;
use crate::device::cuda::driver::kernel::{
    Kernel,
    Types::{All, F32},
};
use crate::error::Result;
use crate::graph::{Node, Op};

param_structs! {
    /// Parameters of `group_norm`'s kernels.
    GroupNormParams: 96 {
        x0: Pointer = 0,
        x1: Pointer = 8,
        weight: Pointer = 16,
        bias: Pointer = 24,
        moments0: Pointer = 32,
        moments1: Pointer = 40,
        lines: Pointer = 48,
        out: Pointer = 56,
        pixels: i32 = 64,
        channels0: i32 = 68,
        channels: i32 = 72,
        groups: i32 = 76,
        chunk: i32 = 80,
        chunks: i32 = 84,
        silu: i32 = 88,
        eps: f32 = 92,
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
    let widths = [channels0, c - channels0];
    let stored: Vec<_> = node.inputs.iter().map(|id| l.moments_of(*id)).collect();
    let part = if stored.iter().any(Option::is_some) { RUN } else { pixels_of_part(pixels) };
    let parts = pixels.div_ceil(part);
    let (weight, bias) = (l.weights.floats(weight), l.weights.floats(bias));
    let (mut x, mut moments, mut missing) = ([Pointer(0); 2], [Pointer(0); 2], Vec::new());
    for (s, stored) in stored.into_iter().enumerate() {
        x[s] = Pointer(l.place(node.inputs[s]));
        moments[s] = stored.unwrap_or_else(|| {
            missing.push(s);
            Pointer(l.scratch(images * parts * 2 * widths[s] * 4))
        });
    }
    let lines = l.scratch(images * 2 * c * 4);
    let params = GroupNormParams {
        x0: x[0],
        x1: x[1],
        weight: Pointer(l.weight(weight)),
        bias: Pointer(l.weight(bias)),
        moments0: moments[0],
        moments1: moments[1],
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
    match missing[..] {
        [] => {}
        [s] => {
            let [channels0, channels] = [to_i32(widths[s]); 2];
            let alone = GroupNormParams { x0: x[s], moments0: moments[s], channels0, channels, ..params };
            l.launch(&MOMENTS, [blocks(parts, 1), blocks(widths[s], 128), z], alone)?;
        }
        _ => l.launch(&MOMENTS, [blocks(parts, 1), y, z], params)?,
    }
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
