//! Attention: one launch for heads that the kernels take, products and a softmax for wider ones.

use super::super::params::{
    AttentionParams, DecoupledParams, EpilogueParams, MAX_STRANDS, Pointer, SoftmaxParams, Strand as StrandParams,
    StridedTensor,
};
use super::super::tiles::{self, blocks};
use super::product::LeftOperand;
use super::{Lowering, int, long, refused};
use crate::device::cuda::exec::bindings::TokenCount;
use crate::error::Result;
use crate::graph::{Attention, ChannelSlice, KvBranch, Node};

/// Bytes of scores that a chunk of queries of a wide head may take.
const SCORES: usize = 64 << 20;

impl Lowering<'_> {
    pub(super) fn attention(&mut self, i: usize, node: &Node, a: &Attention) -> Result<()> {
        let columns = a.branches.iter().flat_map(|s| [s.keys, s.values]).chain([a.query]);
        for c in columns {
            if !c.start.is_multiple_of(8) || !self.width(node.inputs[c.operand]).is_multiple_of(8) {
                let (width, start) = (self.width(node.inputs[c.operand]), c.start);
                let what = format!("an operand of {width} channels, read from {start} on; multiples of 8 are needed");
                return Err(refused(node, &what));
            }
        }
        let out = self.result(i).at;
        match a.branches.as_slice() {
            // There is no kernel of f32 but the products.
            [strand] if strand.scale.is_none() => match tiles::attention(a.dim).filter(|_| !self.is_f32()) {
                Some((kernel, queries)) => self.plain(node, a, strand, (kernel, queries), out),
                None => self.unfused_attention(node, a, strand, out),
            },
            _ => self.decoupled(node, a, out),
        }
    }

    /// Tokens of an operand.
    fn tokens(&self, node: &Node, c: ChannelSlice) -> usize {
        self.graph.node(node.inputs[c.operand]).tokens()
    }

    /// Heads side by side in the rows of an operand.
    fn heads_of(&self, node: &Node, c: ChannelSlice, dim: usize) -> StridedTensor {
        let id = node.inputs[c.operand];
        let width = self.width(id);
        StridedTensor {
            data: Pointer(self.place(id) + (c.start * self.size()) as u64),
            batch: long(self.tokens(node, c) * width),
            row: long(width),
            head_stride: long(dim),
        }
    }

    fn result_rows(node: &Node, a: &Attention, out: u64) -> (StridedTensor, usize) {
        let width = a.heads * a.dim;
        let queries = node.len() / (node.shape[0] * width);
        let rows = StridedTensor {
            data: Pointer(out),
            batch: long(queries * width),
            row: long(width),
            head_stride: long(a.dim),
        };
        (rows, queries)
    }

    /// The address of the table of counts that the bindings hold for this attention, or 0.
    fn counts(&self, node: &Node) -> (u64, Vec<TokenCount>) {
        let rows = self.bindings.counts_of(self.graph, node).unwrap_or_default();
        let at = if rows.is_empty() { None } else { self.bindings.find(&rows, node.shape[0]) };
        (at.map_or(0, |at| self.integers(at)), rows)
    }

    fn plain(
        &mut self,
        node: &Node,
        a: &Attention,
        strand: &KvBranch,
        (kernel, block): (&str, usize),
        out: u64,
    ) -> Result<()> {
        let (rows, queries) = Self::result_rows(node, a, out);
        let params = AttentionParams {
            q: self.heads_of(node, a.query, a.dim),
            k: self.heads_of(node, strand.keys, a.dim),
            v: self.heads_of(node, strand.values, a.dim),
            out: rows,
            counts: Pointer(self.counts(node).0),
            queries: int(queries),
            keys: int(self.tokens(node, strand.keys)),
            dim: int(a.dim),
            causal: i32::from(a.causal),
            scale: tiles::attention_scale(a.dim),
            reserved: 0,
        };
        self.launch(kernel, [blocks(queries, block), blocks(a.heads, 1), blocks(node.shape[0], 1)], params)
    }

    fn decoupled(&mut self, node: &Node, a: &Attention, out: u64) -> Result<()> {
        let Some((kernel, block)) = tiles::decoupled(a.dim) else {
            return Err(refused(node, &format!("heads of {}; a multiple of 8 up to 112 is needed", a.dim)));
        };
        if a.causal {
            return Err(refused(node, "several strands that are causal"));
        }
        let (counts, rows) = self.counts(node);
        // One more than there are strands: an empty one goes first.
        let shift = rows.len().saturating_sub(a.branches.len());
        if rows.len() > MAX_STRANDS || a.branches.is_empty() {
            return Err(refused(node, &format!("{} strands; at most {MAX_STRANDS} are allowed", rows.len())));
        }
        let (out, queries) = Self::result_rows(node, a, out);
        let mut params = DecoupledParams {
            q: self.heads_of(node, a.query, a.dim),
            out,
            counts: Pointer(counts),
            scales: Pointer(self.scales(node, &a.branches[1 - shift..])?),
            queries: int(queries),
            dim: int(a.dim),
            strands: int(rows.len()),
            batch: int(node.shape[0]),
            scale: tiles::attention_scale(a.dim),
            ..DecoupledParams::default()
        };
        for (to, strand) in params.strand[shift..].iter_mut().zip(&a.branches) {
            *to = StrandParams {
                k: self.heads_of(node, strand.keys, a.dim),
                v: self.heads_of(node, strand.values, a.dim),
                capacity: int(self.tokens(node, strand.keys)),
                ..StrandParams::default()
            };
        }
        let grid = [blocks(queries, block), blocks(a.heads, 1), blocks(node.shape[0], 1)];
        self.launch(kernel, grid, params)
    }

    /// Where the weights of these strands lie, one row of images after the other.
    fn scales(&mut self, node: &Node, strands: &[KvBranch]) -> Result<u64> {
        let images = node.shape[0];
        if strands.iter().all(|s| s.scale.is_none()) {
            let ones = self.jobs.ones((strands.len() * images).max(1))?;
            return Ok(self.weight(ones));
        }
        let first = strands.first().and_then(|s| s.scale);
        let Some((operand, start)) = first else { return Err(refused(node, "some strands have a weight, some none")) };
        for (s, strand) in strands.iter().enumerate() {
            if strand.scale != Some((operand, start + s * images)) {
                return Err(refused(node, "the weights of the strands must follow one another"));
            }
        }
        Ok(self.floats(node.inputs[operand])? + (start * 4) as u64)
    }

    /// Heads that no kernel takes, such as the VAE's one of 512: scores in f32 for a chunk of queries, their softmax, and its
    /// product with the transposed values.
    fn unfused_attention(&mut self, node: &Node, a: &Attention, strand: &KvBranch, out: u64) -> Result<()> {
        if a.causal || strand.length.is_some() || !a.dim.is_multiple_of(8) {
            let what = format!("heads of {}; a multiple of 8 is needed, and up to 112 where tokens are masked", a.dim);
            return Err(refused(node, &what));
        }
        let (q, k) = (self.heads_of(node, a.query, a.dim), self.heads_of(node, strand.keys, a.dim));
        let v = self.heads_of(node, strand.values, a.dim);
        let (rows, queries) = Self::result_rows(node, a, out);
        let keys = self.tokens(node, strand.keys);
        let pitch = keys.next_multiple_of(8);
        let chunk = (SCORES / (pitch * 4)).next_multiple_of(64).min(queries).max(1);
        let size = self.size();
        let scores = self.scratch(chunk * pitch * 4);
        let weights = self.scratch(chunk * pitch * size);
        let values = self.scratch(a.dim * pitch * size);
        let at = |r: &StridedTensor, image: usize, head: usize, token: usize| {
            let element = r.batch * long(image) + r.head_stride * long(head) + r.row * long(token);
            r.data.0 + element as u64 * size as u64
        };
        let stride = |r: &StridedTensor| usize::try_from(r.row).unwrap_or(0);
        for image in 0..node.shape[0] {
            for head in 0..a.heads {
                self.transpose((at(&v, image, head, 0), stride(&v)), keys, a.dim, (values, pitch))?;
                for first in (0..queries).step_by(chunk) {
                    let m = chunk.min(queries - first);
                    let left = LeftOperand::one(at(&q, image, head, first), a.dim, stride(&q));
                    let finish = EpilogueParams {
                        out: Pointer(scores),
                        out_stride: long(pitch),
                        rows_of_image: int(m),
                        out_f32: 1,
                        ..EpilogueParams::default()
                    };
                    self.gemm(left, (at(&k, image, head, 0), stride(&k)), [m, keys, a.dim], finish)?;
                    let softmax = SoftmaxParams {
                        scores: Pointer(scores),
                        out: Pointer(weights),
                        scores_stride: long(pitch),
                        out_stride: long(pitch),
                        columns: int(keys),
                        scale: tiles::attention_scale(a.dim),
                    };
                    self.launch("softmax_rows", [blocks(m, 1), 1, 1], softmax)?;
                    let finish = EpilogueParams {
                        out: Pointer(at(&rows, image, head, first)),
                        out_stride: rows.row,
                        rows_of_image: int(m),
                        ..EpilogueParams::default()
                    };
                    self.gemm(LeftOperand::one(weights, pitch, pitch), (values, pitch), [m, a.dim, pitch], finish)?;
                }
            }
        }
        Ok(())
    }
}
