//! The operations, a file for each kernel file of the CUDA side.

mod attention;
mod convolution;
mod epilogue;
mod gemm;
mod gemm_int8;
mod group_norm;
mod layer_norm;
mod online_softmax;
mod pointwise;
mod rounded_rows;
mod winograd;
mod winograd_tiles;

use self::attention::CpuAttention;
use self::gemm::CpuGemm;
use self::gemm_int8::{CpuInt8Gemm, can_be_int8};
use self::group_norm::{CpuGroupNorm, GroupNormParams};
use self::layer_norm::{CpuLayerNorm, CpuVectorNorm};
use self::pointwise::{
    CpuAdd, CpuBroadcastAdd, CpuConcat, CpuEmbedding, CpuGather, CpuGeglu, CpuPrependClassToken, CpuRelu, CpuRepeat,
    CpuScaleChannels, CpuScaleRows, CpuScaleShift, CpuSoftClamp, CpuTimestepEmbedding, CpuUpsample,
};
use self::winograd::{CpuWinograd, form};
use super::fp_math::Operands;
use super::int8_panels::Int8Weights;
use super::op::CpuOp;
use super::pool::Pool;
use crate::graph::{Graph, ImplicitGemm, Node, Op};

/// The arithmetic of products.
#[derive(Clone, Copy)]
pub(super) struct Arithmetic<'a> {
    /// The form of their operands.
    pub(super) operands: Operands,
    /// The quantized weights, where layers that may be quantized are.
    pub(super) int8: Option<&'a Int8Weights>,
}

/// Prepares a fully connected layer or a convolution.
fn prepare_gemm(
    gemm: ImplicitGemm<'_>,
    shapes: &[&[usize]],
    result: &[usize],
    pool: &Pool,
    Arithmetic { operands, int8 }: Arithmetic<'_>,
) -> Box<dyn CpuOp> {
    let threads = pool.threads();
    if let Some(weights) = int8.filter(|_| can_be_int8(gemm)) {
        return Box::new(CpuInt8Gemm::new(gemm, shapes, result, (weights, pool)));
    }
    let prepare = |operands| CpuGemm::new(gemm, shapes, result, threads, operands);
    let channels = || shapes[..gemm.sources].iter().map(|s| s[3]).sum();
    let form = gemm.conv.and_then(|conv| Some((conv, form(conv, channels(), [result[1], result[2]], operands)?)));
    match form {
        Some((conv, form)) => Box::new(CpuWinograd::new(prepare(Operands::F32), form, conv, shapes, result, threads)),
        None => Box::new(prepare(operands)),
    }
}

/// Prepares the operation of a node for its shapes; none where there is nothing to do.
pub(super) fn prepare(graph: &Graph, node: &Node, pool: &Pool, arithmetic: Arithmetic<'_>) -> Option<Box<dyn CpuOp>> {
    let shapes: Vec<&[usize]> = node.inputs.iter().map(|id| graph.node(*id).shape.as_slice()).collect();
    let operands = arithmetic.operands;
    Some(match &node.op {
        Op::Input(_) | Op::Reshape => return None,
        Op::Linear(linear) => prepare_gemm(linear.into(), &shapes, &node.shape, pool, arithmetic),
        Op::Conv2d(conv) => prepare_gemm(conv.into(), &shapes, &node.shape, pool, arithmetic),
        Op::Attention(attention) => Box::new(CpuAttention::new(attention, node, &shapes, operands)),
        &Op::GroupNorm { groups, eps, silu, ref weight, ref bias } => {
            Box::new(CpuGroupNorm::new(&GroupNormParams { groups, eps, silu, weight, bias }, node, &shapes))
        }
        Op::LayerNorm { eps, weight, bias } => {
            Box::new(CpuLayerNorm { weight: weight.to_f32(), bias: bias.to_f32(), eps: *eps })
        }
        Op::Embedding { table, positions } => {
            Box::new(CpuEmbedding { table: table.clone(), positions: positions.to_f32() })
        }
        Op::PrependClassToken { token, positions } => {
            Box::new(CpuPrependClassToken { token: token.to_f32(), positions: positions.to_f32() })
        }
        Op::Repeat { weight, .. } => Box::new(CpuRepeat { weight: weight.to_f32() }),
        Op::Activation(activation) => Box::new(*activation),
        Op::Geglu => Box::new(CpuGeglu),
        Op::Add => Box::new(CpuAdd),
        Op::BroadcastAdd => Box::new(CpuBroadcastAdd),
        Op::ScaleRows => Box::new(CpuScaleRows),
        Op::Concat => Box::new(CpuConcat),
        Op::Upsample { .. } => Box::new(CpuUpsample),
        &Op::TimestepEmbedding { flip, shift, .. } => Box::new(CpuTimestepEmbedding { flip, shift }),
        Op::Gather => Box::new(CpuGather),
        Op::VectorNorm => Box::new(CpuVectorNorm),
        &Op::ScaleChannels { start } => Box::new(CpuScaleChannels { start }),
        Op::Relu => Box::new(CpuRelu),
        &Op::SoftClamp { bound } => Box::new(CpuSoftClamp { bound }),
        &Op::ScaleShift { scale, shift } => Box::new(CpuScaleShift { scale, shift }),
    })
}

/// Bytes that [`prepare`] allocates for the statistics of a node, to be checked before it does.
pub(super) fn statistics_bytes(node: &Node) -> usize {
    match node.op {
        Op::GroupNorm { .. } => CpuGroupNorm::bytes_of(node.channels(), node.shape[0], node.tokens()),
        _ => 0,
    }
}
