//! Layer normalisation.

use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32};
use super::lowering::{Lowering, OpLowering, ResultSlot, misrouted, unsupported};
use crate::device::cuda::driver::kernel::{Kernel, Types::Halves};
use crate::error::Result;
use crate::graph::{Node, Op};

param_structs! {
    /// Parameters of `layer_norm`.
    LayerNormParams: 48 {
        x: Pointer = 0,
        weight: Pointer = 8,
        bias: Pointer = 16,
        out: Pointer = 24,
        rows: i32 = 32,
        channels: i32 = 36,
        eps: f32 = 40,
        reserved: i32 = 44,
    }
}

static LAYER_NORM: Kernel = kernel::<LayerNormParams>("layer_norm", "layer_norm", Halves, 256, 0);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile { kernels: &[&LAYER_NORM], structs: STRUCTS };

/// [`Op::LayerNorm`].
pub(crate) static OP: OpLowering = OpLowering::new(lower);

/// Channels that the kernel takes at most.
const MAX_CHANNELS: usize = 2048;

fn lower(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Op::LayerNorm { eps, weight, bias } = &node.op else { return Err(misrouted(node)) };
    let c = node.channels();
    let rows = node.len() / c;
    if !c.is_multiple_of(8) || c > MAX_CHANNELS {
        let what = format!("{c} channels; a multiple of 8 is needed, at most {MAX_CHANNELS}");
        return Err(unsupported(node, &what));
    }
    let (weight, bias) = (l.weights.floats(weight), l.weights.floats(bias));
    let params = LayerNormParams {
        x: Pointer(l.place(node.inputs[0])),
        weight: Pointer(l.weight(weight)),
        bias: Pointer(l.weight(bias)),
        out: Pointer(out.at),
        rows: to_i32(rows),
        channels: to_i32(c),
        eps: *eps,
        reserved: 0,
    };
    l.launch(&LAYER_NORM, [blocks(rows, 8), 1, 1], params)
}
