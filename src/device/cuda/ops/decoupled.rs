//! Decoupled cross-attention: text and image branches, each with a softmax of its own, in one launch.

use super::attention_sm90;
use super::branches::{DecoupledParams, KvBranch, MAX_BRANCHES};
use super::decoupled_sm90;
use super::kernel::{KernelFile, Pointer, blocks, kernel, to_i32};
use super::lowering::{Lowering, unsupported};
use super::pointwise::as_f32;
use super::strided_tensor::{self, softmax_scale};
use crate::device::cuda::driver::kernel::{Kernel, Types::Halves};
use crate::error::Result;
use crate::graph::{self, Attention, Node};

/// Queries of a block.
pub const QUERIES: usize = 64;

/// Bytes of shared memory of a block: Q and two stages of K and V, rows of `dim` and 8 of padding.
const fn shared(dim: u32) -> u32 {
    (QUERIES as u32 + 4 * 64) * (dim + 8) * 2
}

static DECOUPLED_64: Kernel = kernel::<DecoupledParams>("decoupled", "decoupled_64", Halves, 128, shared(64));
static DECOUPLED_80: Kernel = kernel::<DecoupledParams>("decoupled", "decoupled_80", Halves, 128, shared(80));
static DECOUPLED_112: Kernel = kernel::<DecoupledParams>("decoupled", "decoupled_112", Halves, 128, shared(112));

/// The kernel file.
pub(crate) static FILE: KernelFile =
    KernelFile { kernels: &[&DECOUPLED_64, &DECOUPLED_80, &DECOUPLED_112], structs: &[] };

/// Chooses the kernel for heads of that width; `None` where no kernel takes it: above 112, or not a multiple of 8.
pub fn choose(dim: usize) -> Option<&'static Kernel> {
    match dim {
        _ if dim == 0 || !dim.is_multiple_of(8) => None,
        ..=64 => Some(&DECOUPLED_64),
        65..=80 => Some(&DECOUPLED_80),
        81..=112 => Some(&DECOUPLED_112),
        _ => None,
    }
}

/// Lowers an attention of several branches, or of one with a weight.
pub(super) fn lower(l: &mut Lowering<'_>, node: &Node, a: &Attention, out: u64) -> Result<()> {
    let Some(kernel) = choose(a.dim) else {
        return Err(unsupported(node, &format!("heads of {}; a multiple of 8 up to 112 is needed", a.dim)));
    };
    if a.causal {
        return Err(unsupported(node, "several branches that are causal"));
    }
    let (counts, rows) = strided_tensor::counts_table(l, node);
    // One more than there are branches: an empty one goes first.
    let shift = rows.len().saturating_sub(a.branches.len());
    if rows.len() > MAX_BRANCHES || a.branches.is_empty() {
        return Err(unsupported(node, &format!("{} branches; at most {MAX_BRANCHES} are allowed", rows.len())));
    }
    let (out, queries) = strided_tensor::result(node, a, out);
    let scales = scales(l, node, &a.branches[1 - shift..])?;
    let mut params = DecoupledParams {
        q: strided_tensor::operand(l, node, a.query, a.dim),
        out,
        counts: Pointer(counts),
        scales: Pointer(scales),
        queries: to_i32(queries),
        dim: to_i32(a.dim),
        branches: to_i32(rows.len()),
        batch: to_i32(node.shape[0]),
        scale: softmax_scale(a.dim),
        ..DecoupledParams::default()
    };
    for (to, branch) in params.branch[shift..].iter_mut().zip(&a.branches) {
        let mask = branch.mask.map_or(Ok(0), |operand| as_f32(l, node.inputs[operand]))?;
        *to = KvBranch {
            k: strided_tensor::operand(l, node, branch.keys, a.dim),
            v: strided_tensor::operand(l, node, branch.values, a.dim),
            mask: Pointer(mask),
            capacity: to_i32(strided_tensor::tokens(l, node, branch.keys)),
            ..KvBranch::default()
        };
    }
    if attention_sm90::takes(queries, a.dim, l.options.capability) {
        return decoupled_sm90::launch(l, params, a.heads);
    }
    let grid = [blocks(queries, QUERIES), blocks(a.heads, 1), blocks(node.shape[0], 1)];
    l.launch(kernel, grid, params)
}

/// The address of the weights of these branches, one row of images after the other.
fn scales(l: &mut Lowering<'_>, node: &Node, branches: &[graph::KvBranch]) -> Result<u64> {
    let images = node.shape[0];
    if branches.iter().all(|branch| branch.scale.is_none()) {
        let ones = l.weights.ones((branches.len() * images).max(1))?;
        return Ok(l.weight(ones));
    }
    let first = branches.first().and_then(|branch| branch.scale);
    let Some((operand, start)) = first else {
        return Err(unsupported(node, "some branches have a weight, some none"));
    };
    for (s, branch) in branches.iter().enumerate() {
        if branch.scale != Some((operand, start + s * images)) {
            return Err(unsupported(node, "the weights of the branches must follow one another"));
        }
    }
    Ok(as_f32(l, node.inputs[operand])? + (start * 4) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_by_head_width() {
        let chosen = |dim| choose(dim).map(|kernel| kernel.name);
        assert_eq!(chosen(64), Some("decoupled_64"));
        assert_eq!([chosen(72), chosen(112)], [Some("decoupled_80"), Some("decoupled_112")]);
        assert_eq!([chosen(0), chosen(20), chosen(120)], [None; 3]);
    }
}
