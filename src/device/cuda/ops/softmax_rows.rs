//! Attention of heads that no fused kernel takes, such as the VAE's one of 512: scores, their softmax, and a second product.

use super::epilogue::EpilogueParams;
use super::gemm::{GemmShape, LeftOperand, gemm};
use super::kernel::{KernelFile, Pointer, blocks, kernel, param_structs, to_i32, to_i64};
use super::layout::transpose;
use super::lowering::{Lowering, unsupported};
use super::strided_tensor::{self, StridedTensor, softmax_scale};
use crate::device::cuda::driver::kernel::{Kernel, Types::All};
use crate::error::Result;
use crate::graph::{Attention, KvBranch, Node};

param_structs! {
    /// Parameters of `softmax_rows`.
    SoftmaxParams: 40 {
        scores: Pointer = 0,
        out: Pointer = 8,
        scores_stride: i64 = 16,
        out_stride: i64 = 24,
        columns: i32 = 32,
        scale: f32 = 36,
    }
}

static SOFTMAX_ROWS: Kernel = kernel::<SoftmaxParams>("softmax_rows", "softmax_rows", All, 256, 0);

/// The kernel file.
pub(crate) static FILE: KernelFile = KernelFile { kernels: &[&SOFTMAX_ROWS], structs: STRUCTS };

/// The address of a token of a head.
fn at(r: &StridedTensor, image: usize, head: usize, token: usize, size: usize) -> u64 {
    let element = r.batch * to_i64(image) + r.head_stride * to_i64(head) + r.row * to_i64(token);
    r.data.0 + element as u64 * size as u64
}

fn stride(r: &StridedTensor) -> usize {
    usize::try_from(r.row).unwrap_or(0)
}

/// Scratch memory for a chunk of queries.
struct Chunk {
    /// Scores, f32.
    scores: u64,
    /// Their softmax.
    weights: u64,
    /// The values, transposed.
    values: u64,
    /// Elements of a row of each.
    pitch: usize,
    keys: usize,
    dim: usize,
}

/// Computes scores in f32 for a chunk of queries, their softmax, and its product with the transposed values.
pub(super) fn unfused_attention(
    l: &mut Lowering<'_>,
    node: &Node,
    a: &Attention,
    branch: &KvBranch,
    out: u64,
) -> Result<()> {
    if a.causal || branch.length.is_some() || !a.dim.is_multiple_of(8) {
        let what = format!("heads of {}; a multiple of 8 is needed, and up to 112 where tokens are masked", a.dim);
        return Err(unsupported(node, &what));
    }
    let operand = |c| strided_tensor::operand(l, node, c, a.dim);
    let [q, k, v] = [a.query, branch.keys, branch.values].map(operand);
    let (rows, queries) = strided_tensor::result(node, a, out);
    let keys = strided_tensor::tokens(l, node, branch.keys);
    let pitch = keys.next_multiple_of(8);
    let step = (l.options.limits.scores / (pitch * 4)).next_multiple_of(64).min(queries).max(1);
    let size = l.size();
    let chunk = Chunk {
        scores: l.scratch(step * pitch * 4),
        weights: l.scratch(step * pitch * size),
        values: l.scratch(a.dim * pitch * size),
        pitch,
        keys,
        dim: a.dim,
    };
    for image in 0..node.shape[0] {
        for head in 0..a.heads {
            let place = |r: &StridedTensor, token| at(r, image, head, token, size);
            transpose(l, (place(&v, 0), stride(&v)), keys, a.dim, (chunk.values, pitch))?;
            for first in (0..queries).step_by(step) {
                let m = step.min(queries - first);
                let left = LeftOperand::one(place(&q, first), a.dim, stride(&q));
                attend(l, &chunk, m, left, (place(&k, 0), stride(&k)), (place(&rows, first), rows.row))?;
            }
        }
    }
    Ok(())
}

/// Attends with `m` queries of one head to all keys.
fn attend(
    l: &mut Lowering<'_>,
    chunk: &Chunk,
    m: usize,
    queries: LeftOperand,
    keys: (u64, usize),
    (out, out_stride): (u64, i64),
) -> Result<()> {
    let Chunk { scores, weights, values, pitch, keys: count, dim } = *chunk;
    let epilogue = EpilogueParams {
        out: Pointer(scores),
        out_stride: to_i64(pitch),
        rows_of_image: to_i32(m),
        out_f32: 1,
        ..EpilogueParams::default()
    };
    gemm(l, queries, keys, GemmShape { m, n: count, k: dim }, epilogue)?;
    let softmax = SoftmaxParams {
        scores: Pointer(scores),
        out: Pointer(weights),
        scores_stride: to_i64(pitch),
        out_stride: to_i64(pitch),
        columns: to_i32(count),
        scale: softmax_scale(dim),
    };
    l.launch(&SOFTMAX_ROWS, [blocks(m, 1), 1, 1], softmax)?;
    let epilogue =
        EpilogueParams { out: Pointer(out), out_stride, rows_of_image: to_i32(m), ..EpilogueParams::default() };
    gemm(l, LeftOperand::one(weights, pitch, pitch), (values, pitch), GemmShape { m, n: dim, k: pitch }, epilogue)
}
