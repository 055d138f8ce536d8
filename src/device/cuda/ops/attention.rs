//! Attention over one branch, in one launch; other attentions go to their own files from here.

use super::attention_sm90::{self, FullAttention};
use super::bindings::OperandRole;
use super::branches::{self, DecoupledParams};
use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32};
use super::lowering::{Lowering, OpLowering, ResultSlot, misrouted, unsupported};
use super::strided_tensor::{self, StridedTensor, softmax_scale};
use super::{decoupled, decoupled_sm90, softmax_rows};
use crate::device::cuda::driver::kernel::{Kernel, Types::Halves};
use crate::error::Result;
use crate::graph::{Attention, KvBranch, Node, Op};

param_structs! {
    /// Parameters of `attention`'s kernels.
    AttentionParams: 160 {
        q: StridedTensor = 0,
        k: StridedTensor = 32,
        v: StridedTensor = 64,
        out: StridedTensor = 96,
        counts: Pointer = 128,
        queries: i32 = 136,
        keys: i32 = 140,
        dim: i32 = 144,
        causal: i32 = 148,
        scale: f32 = 152,
        reserved: i32 = 156,
    }
}

/// Bytes of shared memory of a block: Q and two stages of K and V, rows of `dim` and 8 of padding.
const fn shared(queries: u32, dim: u32) -> u32 {
    (queries + 4 * 64) * (dim + 8) * 2
}

static ATTENTION_64: Kernel = kernel::<AttentionParams>("attention", "attention_64", Halves, 128, shared(128, 64));
static ATTENTION_80: Kernel = kernel::<AttentionParams>("attention", "attention_80", Halves, 128, shared(128, 80));
static ATTENTION_112: Kernel = kernel::<AttentionParams>("attention", "attention_112", Halves, 128, shared(64, 112));

/// The kernel file.
pub(crate) static FILE: KernelFile =
    KernelFile { kernels: &[&ATTENTION_64, &ATTENTION_80, &ATTENTION_112], structs: STRUCTS };

/// [`Op::Attention`].
pub(crate) static OP: OpLowering = OpLowering {
    operand_role: |_, node, k| match &node.op {
        Op::Attention(a) => strided_tensor::operand_role(a, k),
        _ => OperandRole::Storage,
    },
    token_counts: strided_tensor::token_counts,
    ..OpLowering::new(lower)
};

/// The kernel for heads of a width, and the queries that a block takes.
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Queries of a block.
    pub queries: usize,
}

/// Chooses the kernel for heads of that width; `None` where no kernel takes it: above 112, or not a multiple of 8.
pub fn choose(dim: usize) -> Option<AttentionConfig> {
    let (kernel, queries) = match dim {
        _ if dim == 0 || !dim.is_multiple_of(8) => return None,
        ..=64 => (&ATTENTION_64, 128),
        65..=80 => (&ATTENTION_80, 128),
        81..=112 => (&ATTENTION_112, 64),
        _ => return None,
    };
    Some(AttentionConfig { kernel, queries })
}

fn lower(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Op::Attention(a) = &node.op else { return Err(misrouted(node)) };
    let columns = a.branches.iter().flat_map(|branch| [branch.keys, branch.values]).chain([a.query]);
    for c in columns {
        if !c.start.is_multiple_of(8) || !l.width(node.inputs[c.operand]).is_multiple_of(8) {
            let (width, start) = (l.width(node.inputs[c.operand]), c.start);
            let what = format!("an operand of {width} channels, read from {start} on; multiples of 8 are needed");
            return Err(unsupported(node, &what));
        }
    }
    match a.branches.as_slice() {
        // There is no kernel of f32 but the products.
        [branch] if branch.is_plain() => match choose(a.dim).filter(|_| !l.is_f32()) {
            Some(config) => fused(l, node, a, branch, config, out.at),
            None => softmax_rows::unfused_attention(l, node, a, branch, out.at),
        },
        _ => decoupled::lower(l, node, a, out.at),
    }
}

fn fused(
    l: &mut Lowering<'_>,
    node: &Node,
    a: &Attention,
    branch: &KvBranch,
    config: AttentionConfig,
    out: u64,
) -> Result<()> {
    let (rows, queries) = strided_tensor::result(node, a, out);
    let keys = strided_tensor::tokens(l, node, branch.keys);
    let [q, k, v] = [a.query, branch.keys, branch.values].map(|c| strided_tensor::operand(l, node, c, a.dim));
    let (counts, rows_of_counts) = strided_tensor::counts_table(l, node);
    if rows_of_counts.is_empty() && !a.causal && attention_sm90::takes(queries, a.dim, l.options.capability) {
        let full = FullAttention { q, k, v, out: rows, queries, keys, heads: a.heads, images: node.shape[0] };
        return attention_sm90::launch(l, &full);
    }
    // By the kernel of several branches, whose one branch has the bytes that it has among others.
    if !a.causal && attention_sm90::takes(queries, a.dim, l.options.capability) {
        let mut of = DecoupledParams {
            q,
            out: rows,
            counts: Pointer(counts),
            queries: to_i32(queries),
            dim: to_i32(a.dim),
            branches: 1,
            batch: to_i32(node.shape[0]),
            scale: softmax_scale(a.dim),
            ..DecoupledParams::default()
        };
        of.branch[0] = branches::KvBranch { k, v, capacity: to_i32(keys), ..branches::KvBranch::default() };
        return decoupled_sm90::launch(l, of, a.heads);
    }
    let params = AttentionParams {
        q,
        k,
        v,
        out: rows,
        counts: Pointer(counts),
        queries: to_i32(queries),
        keys: to_i32(keys),
        dim: to_i32(a.dim),
        causal: i32::from(a.causal),
        scale: softmax_scale(a.dim),
        reserved: 0,
    };
    let grid = [blocks(queries, config.queries), blocks(a.heads, 1), blocks(node.shape[0], 1)];
    l.launch(config.kernel, grid, params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_by_head_width() {
        let chosen = |dim| choose(dim).map(|config| (config.kernel.name, config.queries));
        assert_eq!(chosen(64), Some(("attention_64", 128)));
        assert_eq!(chosen(8), Some(("attention_64", 128)));
        assert_eq!(chosen(80), Some(("attention_80", 128)));
        assert_eq!(chosen(104), Some(("attention_112", 64)));
        assert_eq!([chosen(0), chosen(20), chosen(120), chosen(512)], [None; 4]);
    }
}
