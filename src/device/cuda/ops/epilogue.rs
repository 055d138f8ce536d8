//! The epilogue of products and convolutions: `activation(x W^T + bias + rows) + residual`, `rows` being
//! the per-image bias.

use super::kernel::{Pointer, param_structs, to_i32, to_i64};
use super::lowering::{Lowering, ResultSlot};
use crate::graph::{Activation, EpilogueActivation, ImplicitGemm, Node};

param_structs! {
    /// Parameters of the epilogue, within those of the kernels that end with it.
    EpilogueParams: 72 {
        bias: Pointer = 0,
        rows: Pointer = 8,
        residual: Pointer = 16,
        out: Pointer = 24,
        moments: Pointer = 32,
        residual_stride: i64 = 40,
        out_stride: i64 = 48,
        rows_of_image: i32 = 56,
        activation: i32 = 60,
        out_f32: i32 = 64,
        reserved: i32 = 68,
    }
}

/// An activation in an epilogue, as the kernels number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum ActivationCode {
    /// None.
    None = 0,
    /// x * sigmoid(x).
    Silu = 1,
    /// The exact GELU.
    Gelu = 2,
    /// x * sigmoid(1.702 x).
    QuickGelu = 3,
}

/// The code of an epilogue's activation; GEGLU is a kernel of its own.
fn code(activation: EpilogueActivation) -> ActivationCode {
    match activation {
        EpilogueActivation::Pointwise(Activation::Silu) => ActivationCode::Silu,
        EpilogueActivation::Pointwise(Activation::Gelu) => ActivationCode::Gelu,
        EpilogueActivation::Pointwise(Activation::QuickGelu) => ActivationCode::QuickGelu,
        EpilogueActivation::None | EpilogueActivation::Geglu => ActivationCode::None,
    }
}

/// An epilogue that stores moments of the result, too, where a norm reads them.
pub(super) fn with_moments(l: &mut Lowering<'_>, finish: EpilogueParams) -> EpilogueParams {
    let rows = usize::try_from(finish.rows_of_image).unwrap_or(0);
    EpilogueParams { moments: l.store_moments(finish.out, rows), ..finish }
}

/// The epilogue of a node, with its weights laid out, and the residual at that address; none where it is 0.
pub(super) fn epilogue(
    l: &mut Lowering<'_>,
    node: &Node,
    gemm: ImplicitGemm<'_>,
    rows_of_image: usize,
    out: ResultSlot,
    residual: u64,
) -> EpilogueParams {
    let bias = l.weights.biases(gemm.parts).map_or(0, |at| l.weight(at));
    let rows = gemm.per_image_bias().map_or(0, |operand| l.place(node.inputs[operand]));
    let n = gemm.outputs();
    EpilogueParams {
        bias: Pointer(bias),
        rows: Pointer(rows),
        residual: Pointer(residual),
        out: Pointer(out.at),
        residual_stride: if residual != 0 { to_i64(n) } else { 0 },
        out_stride: to_i64(n),
        rows_of_image: to_i32(rows_of_image),
        activation: code(gemm.epilogue.activation) as i32,
        out_f32: i32::from(out.float),
        ..EpilogueParams::default()
    }
}
