//! Normalisations and operations that go element by element or row by row.

use super::super::params::{
    AddParams, ClassTokenParams, ConcatParams, EmbedParams, GegluParams, GroupNormParams, LayerNormParams, Pointer,
    SinusoidParams, TakeRowParams, UpsampleParams,
};
use super::super::tiles::{self, blocks};
use super::{Lowering, int, long, refused};
use crate::error::Result;
use crate::graph::{Activation, Node, NodeId, Op};
use crate::weights::Weight;

/// Channels that [`super::super::kernels`]' layer norm takes at most.
const LAYER_NORM: usize = 2048;

/// The kernel of an activation.
pub(super) fn activation(kind: Activation) -> &'static str {
    match kind {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::QuickGelu => "quick_gelu",
    }
}

/// Blocks of 256 units of 8 channels.
fn units(rows: usize, channels: usize) -> [u32; 3] {
    [blocks(rows * channels.div_ceil(8), 256), 1, 1]
}

impl Lowering<'_> {
    pub(super) fn pointwise(&mut self, i: usize, node: &Node) -> Result<()> {
        let out = Pointer(self.result(i).at);
        let c = node.channels();
        let rows = node.len() / c;
        let first = node.inputs.first().copied().unwrap_or(NodeId(0));
        match &node.op {
            Op::GroupNorm { groups, eps, weight, bias, silu } => {
                self.group_norm(i, node, *groups, *eps, (weight, bias), *silu)
            }
            Op::LayerNorm { eps, weight, bias } => {
                if !c.is_multiple_of(8) || c > LAYER_NORM {
                    let what = format!("{c} channels; a multiple of 8 is needed, at most {LAYER_NORM}");
                    return Err(refused(node, &what));
                }
                let (weight, bias) = (self.jobs.floats(weight), self.jobs.floats(bias));
                let params = LayerNormParams {
                    x: Pointer(self.place(first)),
                    weight: Pointer(self.weight(weight)),
                    bias: Pointer(self.weight(bias)),
                    out,
                    rows: int(rows),
                    channels: int(c),
                    eps: *eps,
                    reserved: 0,
                };
                self.launch("layer_norm", [blocks(rows, 8), 1, 1], params)
            }
            Op::Embedding { table, positions } => {
                let vocabulary = table.shape().first().copied().unwrap_or(0);
                let (table, positions) = (self.jobs.matrix(table), self.jobs.matrix(positions));
                let params = EmbedParams {
                    ids: Pointer(self.indices(first)),
                    table: Pointer(self.weight(table)),
                    positions: Pointer(self.weight(positions)),
                    out,
                    rows: long(rows),
                    tokens: int(node.shape[node.shape.len() - 2]),
                    channels: int(c),
                    vocabulary: int(vocabulary),
                    reserved: 0,
                };
                self.launch("embed", units(rows, c), params)
            }
            Op::PrependClassToken { token, positions } => {
                let (token, positions) = (self.jobs.vector(token), self.jobs.matrix(positions));
                let params = ClassTokenParams {
                    x: Pointer(self.place(first)),
                    token: Pointer(self.weight(token)),
                    positions: Pointer(self.weight(positions)),
                    out,
                    rows: long(rows),
                    tokens: int(node.shape[1]),
                    channels: int(c),
                };
                self.launch("class_token", units(rows, c), params)
            }
            Op::Activation(kind) => self.unary(activation(*kind), self.place(first), out.0, node.len(), 1.0, 0.0),
            Op::ScaleShift { scale, shift } => {
                self.unary("scale_shift", self.place(first), out.0, node.len(), *scale, *shift)
            }
            Op::Geglu => self.geglu(self.place(first), out.0, rows, c),
            Op::Add => {
                let b = node.inputs[1];
                let rows_b = self.graph.node(b).len() / c;
                self.add(self.place(first), self.place(b), out.0, [rows, 1, rows_b], c)
            }
            Op::BroadcastAdd => {
                let images = node.shape[0];
                self.add(self.place(first), self.place(node.inputs[1]), out.0, [rows, rows / images, images], c)
            }
            Op::Concat => self.concat(first, node.inputs[1], out.0),
            Op::Upsample => self.upsample(first, [node.shape[1], node.shape[2]], out.0),
            Op::TimestepEmbedding { flip, shift } => {
                let x = self.floats(first)?;
                let params = SinusoidParams {
                    x: Pointer(x),
                    out,
                    rows: int(rows),
                    channels: int(c),
                    flip: i32::from(*flip),
                    shift: *shift,
                };
                self.launch("sinusoid", [blocks(rows * (c / 2), 256), 1, 1], params)
            }
            Op::Gather => {
                let index = node.inputs.get(1).map_or(0, |id| self.indices(*id));
                let params = TakeRowParams {
                    x: Pointer(self.place(first)),
                    index: Pointer(index),
                    out,
                    rows: int(rows),
                    tokens: int(self.graph.node(first).len() / (rows * c)),
                    channels: int(c),
                    reserved: 0,
                };
                self.launch("take_row", units(rows, c), params)
            }
            _ => Err(refused(node, "there is no kernel for this operation")),
        }
    }

    /// The integers that an input was turned into.
    fn indices(&self, id: NodeId) -> u64 {
        let input = self.bindings.input_of(self.graph, id);
        self.integers(input.and_then(|k| self.bindings.inputs[k].integer).unwrap_or(0))
    }

    fn group_norm(
        &mut self,
        i: usize,
        node: &Node,
        groups: usize,
        eps: f32,
        (weight, bias): (&Weight, &Weight),
        silu: bool,
    ) -> Result<()> {
        let (c, images) = (node.channels(), node.shape[0]);
        let pixels = node.len() / (c * images);
        let channels0 = self.width(node.inputs[0]);
        if !c.is_multiple_of(8) || !channels0.is_multiple_of(8) {
            return Err(self.uneven(node, node.inputs.len()));
        }
        let slab = tiles::group_norm_pixels(pixels);
        let slabs = pixels.div_ceil(slab);
        let (weight, bias) = (self.jobs.floats(weight), self.jobs.floats(bias));
        let moments = self.scratch(images * slabs * 2 * c * 4);
        let lines = self.scratch(images * 2 * c * 4);
        let params = GroupNormParams {
            x0: Pointer(self.place(node.inputs[0])),
            x1: Pointer(node.inputs.get(1).map_or(0, |id| self.place(*id))),
            weight: Pointer(self.weight(weight)),
            bias: Pointer(self.weight(bias)),
            moments: Pointer(moments),
            lines: Pointer(lines),
            out: Pointer(self.result(i).at),
            pixels: int(pixels),
            channels0: int(channels0),
            channels: int(c),
            groups: int(groups),
            slab: int(slab),
            slabs: int(slabs),
            silu: i32::from(silu),
            eps,
        };
        let (y, z) = (blocks(c, 128), blocks(images, 1));
        self.launch("group_norm_moments", [blocks(slabs, 1), y, z], params)?;
        self.launch("group_norm_lines", [blocks(groups, 1), z, 1], params)?;
        self.launch("group_norm_apply", [blocks(pixels, 128), y, z], params)
    }

    pub(super) fn geglu(&mut self, x: u64, out: u64, rows: usize, c: usize) -> Result<()> {
        let params = GegluParams { x: Pointer(x), out: Pointer(out), rows: long(rows), channels: int(c), reserved: 0 };
        self.launch("geglu", units(rows, c), params)
    }

    /// `a [rows, c]` plus row `r / each % rows_b` of b.
    pub(super) fn add(&mut self, a: u64, b: u64, out: u64, [rows, each, rows_b]: [usize; 3], c: usize) -> Result<()> {
        let params = AddParams {
            a: Pointer(a),
            b: Pointer(b),
            out: Pointer(out),
            rows: long(rows),
            each: long(each),
            rows_b: long(rows_b),
            channels: int(c),
            reserved: 0,
        };
        self.launch("add", units(rows, c), params)
    }

    pub(super) fn concat(&mut self, a: NodeId, b: NodeId, out: u64) -> Result<()> {
        let (channels0, channels) = (self.width(a), self.width(a) + self.width(b));
        let rows = self.graph.node(a).len() / channels0;
        let params = ConcatParams {
            a: Pointer(self.place(a)),
            b: Pointer(self.place(b)),
            out: Pointer(out),
            rows: long(rows),
            channels0: int(channels0),
            channels: int(channels),
        };
        self.launch("concat", units(rows, channels), params)
    }

    pub(super) fn upsample(&mut self, x: NodeId, [height, width]: [usize; 2], out: u64) -> Result<()> {
        let shape = &self.graph.node(x).shape;
        let (images, h, w, c) = (shape[0], shape[1], shape[2], shape[3]);
        self.upsample_at(self.place(x), [images, h, w, c], [height, width], out)
    }

    pub(super) fn upsample_at(
        &mut self,
        x: u64,
        [images, h, w, c]: [usize; 4],
        [height, width]: [usize; 2],
        out: u64,
    ) -> Result<()> {
        let params = UpsampleParams {
            x: Pointer(x),
            out: Pointer(out),
            images: int(images),
            height: int(h),
            width: int(w),
            result_height: int(height),
            result_width: int(width),
            channels: int(c),
        };
        self.launch("upsample", units(images * height * width, c), params)
    }

    /// Two operands with their channels joined, in scratch.
    pub(super) fn joined(&mut self, a: NodeId, b: NodeId) -> Result<u64> {
        let len = self.graph.node(a).len() + self.graph.node(b).len();
        let to = self.scratch(len * self.size());
        self.concat(a, b, to)?;
        Ok(to)
    }
}
