//! Low-rank updates of products and convolutions: `sum_i t_i up_i^T` is made in scratch, and the main product adds it as its
//! residual.

use super::epilogue::{self, EpilogueParams};
use super::gemm::{self, GemmShape, LeftOperand};
use super::kernel::{Pointer, to_i32, to_i64};
use super::lowering::{Lowering, ResultSlot, unsupported};
use crate::error::Result;
use crate::graph::{EpilogueActivation, ImplicitGemm, Node};

/// Adds the updates' products and gives the address of their sum, `[rows of the result, columns before GEGLU]`; `residual` is the
/// address of a tensor of that shape that is added, or 0.
pub(super) fn update(
    l: &mut Lowering<'_>,
    node: &Node,
    gemm: ImplicitGemm<'_>,
    operand: usize,
    residual: u64,
) -> Result<u64> {
    let (columns, rank, m) = (gemm.columns(), gemm.rank(), node.len() / node.channels());
    let (x, size) = (l.place(node.inputs[operand]), l.size());
    let sum = l.scratch(m * columns * size);
    let (mut channel, mut column) = (0usize, 0usize);
    for part in gemm.parts {
        let n = part.weight.shape()[0];
        if !column.is_multiple_of(8) && (n | columns).is_multiple_of(8) {
            let what = format!("a low-rank update of {n} of {columns} columns, from column {column} on");
            return Err(unsupported(node, &format!("{what}; a multiple of 8 is needed")));
        }
        let ups = part.low_rank.iter().flat_map(|low_rank| &low_rank.up);
        for (i, up) in ups.enumerate() {
            let r = up.shape()[1];
            if !r.is_multiple_of(8) {
                return Err(unsupported(node, &format!("a low-rank update of rank {r}; a multiple of 8 is needed")));
            }
            let out = sum + (column * size) as u64;
            // Each thread reads what it writes, so a sum may grow where it lies.
            let before = match i {
                0 if residual == 0 => 0,
                0 => residual + (column * size) as u64,
                _ => out,
            };
            let finish = EpilogueParams {
                residual: Pointer(before),
                residual_stride: if before == 0 { 0 } else { to_i64(columns) },
                out: Pointer(out),
                out_stride: to_i64(columns),
                rows_of_image: to_i32(m),
                ..EpilogueParams::default()
            };
            let left = LeftOperand::one(x + (channel * size) as u64, r, rank);
            let w = l.weights.matrix(up);
            let w = (l.weight(w), r);
            gemm::gemm(l, left, w, GemmShape { m, n, k: r }, finish)?;
            channel += r;
        }
        column += n;
    }
    Ok(sum)
}

/// The epilogue of a node, with its weights laid out. Low-rank updates become its residual, and hold the node's own one.
pub(super) fn epilogue(
    l: &mut Lowering<'_>,
    node: &Node,
    gemm: ImplicitGemm<'_>,
    rows_of_image: usize,
    out: ResultSlot,
) -> Result<EpilogueParams> {
    let mut residual = gemm.residual().map_or(0, |operand| l.place(node.inputs[operand]));
    if let Some(operand) = gemm.low_rank() {
        if gemm.epilogue.activation != EpilogueActivation::None {
            return Err(unsupported(node, "a low-rank update before an activation of a convolution"));
        }
        residual = update(l, node, gemm, operand, residual)?;
    }
    Ok(epilogue::epilogue(l, node, gemm, rows_of_image, out, residual))
}
