//! Operations that go element by element or row by row.

use super::bindings::OperandRole;
use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32, to_i64};
use super::lowering::{Lowering, OpLowering, ResultSlot, misrouted};
use crate::device::cuda::driver::command::Command;
use crate::device::cuda::driver::kernel::{
    Kernel,
    Types::{All, Halves},
};
use crate::error::Result;
use crate::graph::{Activation, Graph, LinearWeights, Node, NodeId, Op};

param_structs! {
    /// Parameters of `silu`, `gelu`, `quick_gelu`, `relu`, `soft_clamp`, `scale_shift`, `from_f32` and `to_f32`.
    UnaryParams: 32 {
        x: Pointer = 0,
        out: Pointer = 8,
        count: i64 = 16,
        scale: f32 = 24,
        shift: f32 = 28,
    }

    /// Parameters of `geglu`.
    GegluParams: 32 {
        x: Pointer = 0,
        out: Pointer = 8,
        rows: i64 = 16,
        channels: i32 = 24,
        reserved: i32 = 28,
    }

    /// Parameters of `add`.
    AddParams: 56 {
        a: Pointer = 0,
        b: Pointer = 8,
        out: Pointer = 16,
        rows: i64 = 24,
        each: i64 = 32,
        rows_b: i64 = 40,
        channels: i32 = 48,
        reserved: i32 = 52,
    }

    /// Parameters of `scale_rows`.
    ScaleRowsParams: 48 {
        x: Pointer = 0,
        factors: Pointer = 8,
        out: Pointer = 16,
        rows: i64 = 24,
        rows_factors: i64 = 32,
        channels: i32 = 40,
        reserved: i32 = 44,
    }

    /// Parameters of `concat`.
    ConcatParams: 40 {
        a: Pointer = 0,
        b: Pointer = 8,
        out: Pointer = 16,
        rows: i64 = 24,
        channels0: i32 = 32,
        channels: i32 = 36,
    }

    /// Parameters of `upsample`.
    UpsampleParams: 40 {
        x: Pointer = 0,
        out: Pointer = 8,
        images: i32 = 16,
        height: i32 = 20,
        width: i32 = 24,
        result_height: i32 = 28,
        result_width: i32 = 32,
        channels: i32 = 36,
    }

    /// Parameters of `timestep_embedding`.
    TimestepEmbeddingParams: 32 {
        x: Pointer = 0,
        out: Pointer = 8,
        rows: i32 = 16,
        channels: i32 = 20,
        flip: i32 = 24,
        shift: f32 = 28,
    }

    /// Parameters of `embedding`.
    EmbeddingParams: 56 {
        ids: Pointer = 0,
        table: Pointer = 8,
        positions: Pointer = 16,
        out: Pointer = 24,
        rows: i64 = 32,
        tokens: i32 = 40,
        channels: i32 = 44,
        vocabulary: i32 = 48,
        reserved: i32 = 52,
    }

    /// Parameters of `prepend_class_token`.
    PrependClassTokenParams: 48 {
        x: Pointer = 0,
        token: Pointer = 8,
        positions: Pointer = 16,
        out: Pointer = 24,
        rows: i64 = 32,
        tokens: i32 = 40,
        channels: i32 = 44,
    }

    /// Parameters of `scale_channels`.
    ScaleChannelsParams: 40 {
        x: Pointer = 0,
        factors: Pointer = 8,
        out: Pointer = 16,
        rows: i64 = 24,
        channels: i32 = 32,
        reserved: i32 = 36,
    }

    /// Parameters of `gather`.
    GatherParams: 40 {
        x: Pointer = 0,
        index: Pointer = 8,
        out: Pointer = 16,
        rows: i32 = 24,
        tokens: i32 = 28,
        channels: i32 = 32,
        reserved: i32 = 36,
    }
}

static SILU: Kernel = kernel::<UnaryParams>("pointwise", "silu", Halves, 256, 0);
static GELU: Kernel = kernel::<UnaryParams>("pointwise", "gelu", Halves, 256, 0);
static QUICK_GELU: Kernel = kernel::<UnaryParams>("pointwise", "quick_gelu", Halves, 256, 0);
static RELU: Kernel = kernel::<UnaryParams>("pointwise", "relu", All, 256, 0);
static SOFT_CLAMP: Kernel = kernel::<UnaryParams>("pointwise", "soft_clamp", All, 256, 0);
static SCALE_SHIFT: Kernel = kernel::<UnaryParams>("pointwise", "scale_shift", All, 256, 0);
static FROM_F32: Kernel = kernel::<UnaryParams>("pointwise", "from_f32", All, 256, 0);
static TO_F32: Kernel = kernel::<UnaryParams>("pointwise", "to_f32", All, 256, 0);
static GEGLU: Kernel = kernel::<GegluParams>("pointwise", "geglu", Halves, 256, 0);
static ADD: Kernel = kernel::<AddParams>("pointwise", "add", All, 256, 0);
static SCALE_ROWS: Kernel = kernel::<ScaleRowsParams>("pointwise", "scale_rows", Halves, 256, 0);
static CONCAT: Kernel = kernel::<ConcatParams>("pointwise", "concat", Halves, 256, 0);
static UPSAMPLE: Kernel = kernel::<UpsampleParams>("pointwise", "upsample", Halves, 256, 0);
static TIMESTEP_EMBEDDING: Kernel =
    kernel::<TimestepEmbeddingParams>("pointwise", "timestep_embedding", Halves, 256, 0);
static EMBEDDING: Kernel = kernel::<EmbeddingParams>("pointwise", "embedding", Halves, 256, 0);
static PREPEND_CLASS_TOKEN: Kernel =
    kernel::<PrependClassTokenParams>("pointwise", "prepend_class_token", Halves, 256, 0);
static SCALE_CHANNELS: Kernel = kernel::<ScaleChannelsParams>("pointwise", "scale_channels", Halves, 256, 0);
static GATHER: Kernel = kernel::<GatherParams>("pointwise", "gather", Halves, 256, 0);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile {
    kernels: &[
        &SILU,
        &GELU,
        &QUICK_GELU,
        &RELU,
        &SOFT_CLAMP,
        &SCALE_SHIFT,
        &FROM_F32,
        &TO_F32,
        &GEGLU,
        &ADD,
        &SCALE_ROWS,
        &CONCAT,
        &UPSAMPLE,
        &TIMESTEP_EMBEDDING,
        &EMBEDDING,
        &PREPEND_CLASS_TOKEN,
        &GATHER,
        &SCALE_CHANNELS,
    ],
    structs: STRUCTS,
};

/// [`Op::Activation`].
pub(crate) static ACTIVATION_OP: OpLowering = OpLowering::new(|l, node, out| {
    let Op::Activation(kind) = node.op else { return Err(misrouted(node)) };
    let x = l.place(node.inputs[0]);
    activation(l, kind, x, out.at, node.len())
});

/// [`Op::Relu`].
pub(crate) static RELU_OP: OpLowering = OpLowering::new(|l, node, out| {
    let x = l.place(node.inputs[0]);
    unary(l, &RELU, x, out.at, node.len(), [1.0, 0.0])
});

/// [`Op::SoftClamp`].
pub(crate) static SOFT_CLAMP_OP: OpLowering = OpLowering::new(|l, node, out| {
    let Op::SoftClamp { bound } = node.op else { return Err(misrouted(node)) };
    let x = l.place(node.inputs[0]);
    unary(l, &SOFT_CLAMP, x, out.at, node.len(), [bound, 0.0])
});

/// [`Op::ScaleShift`].
pub(crate) static SCALE_SHIFT_OP: OpLowering = OpLowering::new(|l, node, out| {
    let Op::ScaleShift { scale, shift } = node.op else { return Err(misrouted(node)) };
    let x = l.place(node.inputs[0]);
    unary(l, &SCALE_SHIFT, x, out.at, node.len(), [scale, shift])
});

/// The role of operands of which the second holds factors of f32.
fn factors_role(_: &Graph, _: &Node, k: usize) -> OperandRole {
    if k == 1 { OperandRole::Float } else { OperandRole::Storage }
}

/// [`Op::ScaleChannels`].
pub(crate) static SCALE_CHANNELS_OP: OpLowering =
    OpLowering { operand_role: factors_role, ..OpLowering::new(scale_channels) };

/// [`Op::Geglu`].
pub(crate) static GEGLU_OP: OpLowering = OpLowering::new(|l, node, out| {
    let x = l.place(node.inputs[0]);
    geglu(l, x, out.at, rows(node), node.channels())
});

/// [`Op::Add`].
pub(crate) static ADD_OP: OpLowering = OpLowering::new(|l, node, out| {
    let (a, b, c) = (node.inputs[0], node.inputs[1], node.channels());
    let rows_b = l.graph.node(b).len() / c;
    let [a, b] = [a, b].map(|id| l.place(id));
    add(l, [a, b, out.at], [rows(node), 1, rows_b], c)
});

/// [`Op::BroadcastAdd`].
pub(crate) static BROADCAST_ADD_OP: OpLowering = OpLowering::new(|l, node, out| {
    let ([a, b], images) = ([0, 1].map(|k| l.place(node.inputs[k])), node.shape[0]);
    add(l, [a, b, out.at], [rows(node), rows(node) / images, images], node.channels())
});

/// [`Op::ScaleRows`]. The factors are f32.
pub(crate) static SCALE_ROWS_OP: OpLowering = OpLowering { operand_role: factors_role, ..OpLowering::new(scale_rows) };

/// [`Op::Concat`].
pub(crate) static CONCAT_OP: OpLowering =
    OpLowering::new(|l, node, out| concat(l, node.inputs[0], node.inputs[1], out.at));

/// [`Op::Upsample`].
pub(crate) static UPSAMPLE_OP: OpLowering = OpLowering::new(|l, node, out| {
    let shape = &l.graph.node(node.inputs[0]).shape;
    let from = [shape[0], shape[1], shape[2], shape[3]];
    let x = l.place(node.inputs[0]);
    upsample(l, x, from, [node.shape[1], node.shape[2]], out.at)
});

/// [`Op::TimestepEmbedding`].
pub(crate) static TIMESTEP_EMBEDDING_OP: OpLowering =
    OpLowering { operand_role: |_, _, _| OperandRole::Float, ..OpLowering::new(timestep_embedding) };

/// [`Op::Embedding`].
pub(crate) static EMBEDDING_OP: OpLowering = OpLowering::new(embedding);

/// [`Op::PrependClassToken`].
pub(crate) static PREPEND_CLASS_TOKEN_OP: OpLowering = OpLowering::new(prepend_class_token);

/// [`Op::Repeat`].
pub(crate) static REPEAT_OP: OpLowering = OpLowering::new(repeat);

/// [`Op::Gather`].
pub(crate) static GATHER_OP: OpLowering = OpLowering::new(gather);

/// Rows of a node's result.
fn rows(node: &Node) -> usize {
    node.len() / node.channels()
}

/// Blocks of 256 units of 8 channels.
fn units(rows: usize, channels: usize) -> [u32; 3] {
    [blocks(rows * channels.div_ceil(8), 256), 1, 1]
}

/// Adds an operation of one value each.
fn unary(
    l: &mut Lowering<'_>,
    kernel: &'static Kernel,
    x: u64,
    out: u64,
    count: usize,
    [scale, shift]: [f32; 2],
) -> Result<()> {
    let params = UnaryParams { x: Pointer(x), out: Pointer(out), count: to_i64(count), scale, shift };
    l.launch(kernel, [blocks(count, 2048), 1, 1], params)
}

/// Converts f32 to the storage type.
pub(crate) fn from_f32(l: &mut Lowering<'_>, x: u64, out: u64, count: usize) -> Result<()> {
    unary(l, &FROM_F32, x, out, count, [1.0, 0.0])
}

/// Converts the storage type to f32.
pub(crate) fn to_f32(l: &mut Lowering<'_>, x: u64, out: u64, count: usize) -> Result<()> {
    unary(l, &TO_F32, x, out, count, [1.0, 0.0])
}

/// Makes a tensor available as f32: an input as it was given, a node's result as a copy in scratch.
pub(crate) fn as_f32(l: &mut Lowering<'_>, id: NodeId) -> Result<u64> {
    if let Some(at) = l.f32_input(id) {
        return Ok(at);
    }
    let count = l.graph.node(id).len();
    let to = l.scratch(count * 4);
    let from = l.place(id);
    to_f32(l, from, to, count)?;
    Ok(to)
}

/// Applies an activation.
pub(super) fn activation(l: &mut Lowering<'_>, kind: Activation, x: u64, out: u64, count: usize) -> Result<()> {
    let kernel = match kind {
        Activation::Silu => &SILU,
        Activation::Gelu => &GELU,
        Activation::QuickGelu => &QUICK_GELU,
    };
    unary(l, kernel, x, out, count, [1.0, 0.0])
}

/// Multiplies the first half of the channels by GELU of the second; `c` is the width of the result.
pub(super) fn geglu(l: &mut Lowering<'_>, x: u64, out: u64, rows: usize, c: usize) -> Result<()> {
    let params = GegluParams { x: Pointer(x), out: Pointer(out), rows: to_i64(rows), channels: to_i32(c), reserved: 0 };
    l.launch(&GEGLU, units(rows, c), params)
}

/// Adds to `a [rows, c]` the row `r / each % rows_b` of b. The addresses are of a, b and the result.
pub(super) fn add(
    l: &mut Lowering<'_>,
    [a, b, out]: [u64; 3],
    [rows, each, rows_b]: [usize; 3],
    c: usize,
) -> Result<()> {
    let params = AddParams {
        a: Pointer(a),
        b: Pointer(b),
        out: Pointer(out),
        rows: to_i64(rows),
        each: to_i64(each),
        rows_b: to_i64(rows_b),
        channels: to_i32(c),
        reserved: 0,
    };
    l.launch(&ADD, units(rows, c), params)
}

fn scale_rows(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let (rows, channels) = (rows(node), node.channels());
    let params = ScaleRowsParams {
        x: Pointer(l.place(node.inputs[0])),
        factors: Pointer(as_f32(l, node.inputs[1])?),
        out: Pointer(out.at),
        rows: to_i64(rows),
        rows_factors: to_i64(l.graph.node(node.inputs[1]).len()),
        channels: to_i32(channels),
        reserved: 0,
    };
    l.launch(&SCALE_ROWS, units(rows, channels), params)
}

fn concat(l: &mut Lowering<'_>, a: NodeId, b: NodeId, out: u64) -> Result<()> {
    let (channels0, channels) = (l.width(a), l.width(a) + l.width(b));
    let rows = l.graph.node(a).len() / channels0;
    let params = ConcatParams {
        a: Pointer(l.place(a)),
        b: Pointer(l.place(b)),
        out: Pointer(out),
        rows: to_i64(rows),
        channels0: to_i32(channels0),
        channels: to_i32(channels),
    };
    l.launch(&CONCAT, units(rows, channels), params)
}

/// Joins the channels of two operands, in scratch.
pub(super) fn joined(l: &mut Lowering<'_>, a: NodeId, b: NodeId) -> Result<u64> {
    let len = l.graph.node(a).len() + l.graph.node(b).len();
    let to = l.scratch(len * l.size());
    concat(l, a, b, to)?;
    Ok(to)
}

/// Enlarges images `[images, h, w, c]` to another height and width.
pub(super) fn upsample(
    l: &mut Lowering<'_>,
    x: u64,
    [images, h, w, c]: [usize; 4],
    [height, width]: [usize; 2],
    out: u64,
) -> Result<()> {
    let params = UpsampleParams {
        x: Pointer(x),
        out: Pointer(out),
        images: to_i32(images),
        height: to_i32(h),
        width: to_i32(w),
        result_height: to_i32(height),
        result_width: to_i32(width),
        channels: to_i32(c),
    };
    l.launch(&UPSAMPLE, units(images * height * width, c), params)
}

fn timestep_embedding(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Op::TimestepEmbedding { flip, shift, .. } = node.op else { return Err(misrouted(node)) };
    let (rows, c) = (rows(node), node.channels());
    let x = as_f32(l, node.inputs[0])?;
    let params = TimestepEmbeddingParams {
        x: Pointer(x),
        out: Pointer(out.at),
        rows: to_i32(rows),
        channels: to_i32(c),
        flip: i32::from(flip),
        shift,
    };
    l.launch(&TIMESTEP_EMBEDDING, [blocks(rows * (c / 2), 256), 1, 1], params)
}

fn embedding(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Op::Embedding { table, positions } = &node.op else { return Err(misrouted(node)) };
    let (rows, c) = (rows(node), node.channels());
    let vocabulary = table.iter().map(|part| part.shape()[0]).sum();
    let parts: Vec<LinearWeights> = table.iter().cloned().map(LinearWeights::from).collect();
    let (table, positions) = (l.weights.joined(&parts, c, 1, c), l.weights.matrix(positions));
    let params = EmbeddingParams {
        ids: Pointer(l.indices(node.inputs[0])),
        table: Pointer(l.weight(table)),
        positions: Pointer(l.weight(positions)),
        out: Pointer(out.at),
        rows: to_i64(rows),
        tokens: to_i32(node.shape[node.shape.len() - 2]),
        channels: to_i32(c),
        vocabulary: to_i32(vocabulary),
        reserved: 0,
    };
    l.launch(&EMBEDDING, units(rows, c), params)
}

fn prepend_class_token(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Op::PrependClassToken { token, positions } = &node.op else { return Err(misrouted(node)) };
    let (rows, c) = (rows(node), node.channels());
    let (token, positions) = (l.weights.vector(token), l.weights.matrix(positions));
    let params = PrependClassTokenParams {
        x: Pointer(l.place(node.inputs[0])),
        token: Pointer(l.weight(token)),
        positions: Pointer(l.weight(positions)),
        out: Pointer(out.at),
        rows: to_i64(rows),
        tokens: to_i32(node.shape[1]),
        channels: to_i32(c),
    };
    l.launch(&PREPEND_CLASS_TOKEN, units(rows, c), params)
}

fn repeat(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Op::Repeat { weight, count } = &node.op else { return Err(misrouted(node)) };
    let bytes = weight.len() * l.size();
    let at = l.weights.matrix(weight);
    let from = l.weight(at);
    l.commands.extend((0..*count).map(|i| Command::Copy(from, out.at + (i * bytes) as u64, bytes)));
    Ok(())
}

fn scale_channels(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Op::ScaleChannels { start } = node.op else { return Err(misrouted(node)) };
    let (rows, c) = (rows(node), node.channels());
    let factors = as_f32(l, node.inputs[1])?;
    let params = ScaleChannelsParams {
        x: Pointer(l.place(node.inputs[0])),
        factors: Pointer(factors + start as u64 * 4),
        out: Pointer(out.at),
        rows: to_i64(rows),
        channels: to_i32(c),
        reserved: 0,
    };
    l.launch(&SCALE_CHANNELS, units(rows, c), params)
}

fn gather(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let (rows, c) = (rows(node), node.channels());
    let index = node.inputs.get(1).map_or(0, |id| l.indices(*id));
    let params = GatherParams {
        x: Pointer(l.place(node.inputs[0])),
        index: Pointer(index),
        out: Pointer(out.at),
        rows: to_i32(rows),
        tokens: to_i32(l.graph.node(node.inputs[0]).len() / (rows * c)),
        channels: to_i32(c),
        reserved: 0,
    };
    l.launch(&GATHER, units(rows, c), params)
}
