//! Operands of attention: heads side by side in rows, read through strides.

use super::bindings::{Bindings, OperandRole, TokenCount};
use super::kernel::{Pointer, param_structs, to_i32, to_i64};
use super::lowering::Lowering;
use crate::graph::{Attention, ChannelSlice, Graph, KvBranch, Node, Op};

param_structs! {
    /// An operand of attention: element (image, token, head, i) is `data[image * batch + token * row + head * head_stride + i]`.
    StridedTensor: 32 {
        data: Pointer = 0,
        batch: i64 = 8,
        row: i64 = 16,
        head_stride: i64 = 24,
    }
}

/// The factor of attention's exponent: log2(e) / sqrt(dim).
pub fn softmax_scale(dim: usize) -> f32 {
    (std::f64::consts::LOG2_E / (dim as f64).sqrt()) as f32
}

/// Tokens of an operand.
pub(super) fn tokens(l: &Lowering<'_>, node: &Node, c: ChannelSlice) -> usize {
    l.graph.node(node.inputs[c.operand]).tokens()
}

/// Heads side by side in the rows of an operand.
pub(super) fn operand(l: &Lowering<'_>, node: &Node, c: ChannelSlice, dim: usize) -> StridedTensor {
    let id = node.inputs[c.operand];
    let width = l.width(id);
    StridedTensor {
        data: Pointer(l.place(id) + (c.start * l.size()) as u64),
        batch: to_i64(tokens(l, node, c) * width),
        row: to_i64(width),
        head_stride: to_i64(dim),
    }
}

/// The result at an address, and its queries.
pub(super) fn result(node: &Node, a: &Attention, out: u64) -> (StridedTensor, usize) {
    let width = a.heads * a.dim;
    let queries = node.len() / (node.shape[0] * width);
    let rows = StridedTensor {
        data: Pointer(out),
        batch: to_i64(queries * width),
        row: to_i64(width),
        head_stride: to_i64(a.dim),
    };
    (rows, queries)
}

/// The role of an operand: weights and masks of branches are f32.
pub(super) fn operand_role(a: &Attention, k: usize) -> OperandRole {
    let float = |branch: &KvBranch| branch.mask == Some(k) || branch.scale.is_some_and(|(operand, _)| operand == k);
    if a.branches.iter().any(float) {
        return OperandRole::Float;
    }
    OperandRole::Storage
}

/// The rows of counts that an attention needs; none where every token counts and no weight is asked for.
pub(super) fn token_counts(bindings: &Bindings, graph: &Graph, node: &Node) -> Option<Vec<TokenCount>> {
    let Op::Attention(a) = &node.op else { return None };
    if let [branch] = a.branches.as_slice()
        && branch.is_plain()
    {
        let length = branch.length?;
        return Some(vec![TokenCount::Input(bindings.input_of(graph, node.inputs[length])?)]);
    }
    // The kernel's first branch has no weight of its own: an empty one goes before a first branch that has.
    let mut rows = Vec::new();
    if a.branches.first().is_some_and(|branch| branch.scale.is_some()) {
        rows.push(TokenCount::Fixed(0));
    }
    for branch in &a.branches {
        rows.push(match branch.length {
            Some(operand) => TokenCount::Input(bindings.input_of(graph, node.inputs[operand])?),
            None => TokenCount::Fixed(to_i32(graph.node(node.inputs[branch.keys.operand]).tokens())),
        });
    }
    Some(rows)
}

/// The address of the table of counts that the bindings hold for this attention, or 0, and its rows.
pub(super) fn counts_table(l: &Lowering<'_>, node: &Node) -> (u64, Vec<TokenCount>) {
    let rows = token_counts(&l.bindings, l.graph, node).unwrap_or_default();
    let at = if rows.is_empty() { None } else { l.bindings.find_counts(&rows, node.shape[0]) };
    (at.map_or(0, |at| l.integers(at)), rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_in_base_two() {
        assert!((softmax_scale(64) - 0.180_336_9).abs() < 1e-7);
    }
}
