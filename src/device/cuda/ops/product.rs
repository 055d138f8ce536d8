//! The lowering of fully connected layers, and of everything that is computed as one.

use super::epilogue::epilogue;
use super::gemm::{self, LeftOperand};
use super::low_rank;
use super::lowering::{Lowering, OpLowering, ResultSlot, misrouted};
use super::pointwise::{activation, add, geglu};
use crate::error::Result;
use crate::graph::{Epilogue, EpilogueActivation, ImplicitGemm, Node};

/// [`crate::graph::Op::Linear`].
pub(crate) static OP: OpLowering =
    OpLowering { writes_f32: |_, node| node.op.implicit_gemm().is_some_and(writes_f32), ..OpLowering::new(lower) };

/// Whether [`product`] can give its result as f32: an activation after a low-rank update, and GEGLU, give the type's.
pub(super) fn writes_f32(gemm: ImplicitGemm<'_>) -> bool {
    match gemm.epilogue.activation {
        EpilogueActivation::None => true,
        EpilogueActivation::Pointwise(_) => gemm.low_rank().is_none(),
        EpilogueActivation::Geglu => false,
    }
}

fn lower(l: &mut Lowering<'_>, node: &Node, out: ResultSlot) -> Result<()> {
    let Some(gemm) = node.op.implicit_gemm() else { return Err(misrouted(node)) };
    let left = gemm::sources(l, node, gemm)?;
    let inputs = gemm::channels(l.graph, node, gemm);
    product(l, node, gemm, left, (1, inputs), out)
}

/// Lowers a node as a product of matrices; its weights have `taps` times `inputs` values a row.
pub(super) fn product(
    l: &mut Lowering<'_>,
    node: &Node,
    gemm: ImplicitGemm<'_>,
    left: LeftOperand,
    (taps, inputs): (usize, usize),
    out: ResultSlot,
) -> Result<()> {
    let m = node.len() / node.channels();
    let finish = match gemm.low_rank() {
        Some(operand) if gemm.epilogue.activation != EpilogueActivation::None => {
            return updated(l, node, gemm, operand, (left, taps, inputs), out);
        }
        _ => low_rank::epilogue(l, node, gemm, m / node.shape[0], out)?,
    };
    gemm::finished_product(l, node, gemm, left, (taps, inputs), finish)
}

/// Lowers a product with a low-rank update and an activation: the sums before the activation lie in scratch.
fn updated(
    l: &mut Lowering<'_>,
    node: &Node,
    gemm: ImplicitGemm<'_>,
    operand: usize,
    (left, taps, inputs): (LeftOperand, usize, usize),
    out: ResultSlot,
) -> Result<()> {
    let (n, columns) = (node.channels(), gemm.columns());
    let m = node.len() / n;
    let bare = Epilogue { activation: EpilogueActivation::None, residual: false, ..gemm.epilogue };
    // Without the updates, which are the residual here.
    let sum = low_rank::update(l, node, gemm, operand, 0)?;
    let plain = ImplicitGemm { epilogue: bare, ..gemm };
    let finish = epilogue(l, node, plain, m / node.shape[0], ResultSlot { at: sum, float: false }, sum);
    gemm::finished_product(l, node, plain, left, (taps, inputs), finish)?;
    let to = if gemm.epilogue.residual { l.scratch(m * n * l.size()) } else { out.at };
    match gemm.epilogue.activation {
        EpilogueActivation::Geglu => geglu(l, sum, to, m, n)?,
        EpilogueActivation::Pointwise(kind) => activation(l, kind, sum, to, m * columns)?,
        EpilogueActivation::None => {}
    }
    match gemm.residual() {
        Some(operand) => {
            let residual = l.place(node.inputs[operand]);
            add(l, [to, residual, out.at], [m, 1, m], n)
        }
        None => Ok(()),
    }
}
