//! The list of kernel files and that of the graph's operations, one line each.

use super::kernel::KernelFile;
use super::lowering::OpLowering;
use super::{
    attention, attention_sm90, branches, convolution, convolution_fp8_sm90, convolution_narrow, convolution_sm90,
    decoupled, decoupled_sm90, epilogue, gemm, gemm_fp8_sm90, gemm_sm90, group_norm, layer_norm, layout, pointwise,
    product, quantize_sm90, softmax_rows, step, strided_tensor,
};
use crate::device::cuda::driver::kernel::Kernel;
use crate::graph::Op;

/// Every kernel file.
pub static KERNEL_FILES: &[&KernelFile] = &[
    &attention::FILE,
    &attention_sm90::FILE,
    &convolution::FILE,
    &convolution_fp8_sm90::FILE,
    &convolution_narrow::FILE,
    &convolution_sm90::FILE,
    &decoupled::FILE,
    &decoupled_sm90::FILE,
    &gemm::FILE,
    &gemm_fp8_sm90::FILE,
    &gemm_sm90::FILE,
    &group_norm::FILE,
    &layer_norm::FILE,
    &layout::FILE,
    &pointwise::FILE,
    &quantize_sm90::FILE,
    &softmax_rows::FILE,
    &step::FILE,
    // Headers: structs within those of the kernels.
    &KernelFile { kernels: &[], structs: branches::STRUCTS },
    &KernelFile { kernels: &[], structs: epilogue::STRUCTS },
    &KernelFile { kernels: &[], structs: strided_tensor::STRUCTS },
];

/// Every kernel.
pub fn kernels() -> impl Iterator<Item = &'static Kernel> {
    KERNEL_FILES.iter().flat_map(|file| file.kernels.iter().copied())
}

/// The lowering of an operation; `None` where there is nothing to compute, or no kernel.
pub(crate) fn lowering_of(op: &Op) -> Option<&'static OpLowering> {
    Some(match op {
        Op::Linear(_) => &product::OP,
        Op::Conv2d(_) => &convolution::OP,
        Op::Attention(_) => &attention::OP,
        Op::GroupNorm { .. } => &group_norm::OP,
        Op::LayerNorm { .. } => &layer_norm::OP,
        Op::Embedding { .. } => &pointwise::EMBEDDING_OP,
        Op::PrependClassToken { .. } => &pointwise::PREPEND_CLASS_TOKEN_OP,
        Op::Repeat { .. } => &pointwise::REPEAT_OP,
        Op::Activation(_) => &pointwise::ACTIVATION_OP,
        Op::Geglu => &pointwise::GEGLU_OP,
        Op::Add => &pointwise::ADD_OP,
        Op::BroadcastAdd => &pointwise::BROADCAST_ADD_OP,
        Op::ScaleRows => &pointwise::SCALE_ROWS_OP,
        Op::Concat => &pointwise::CONCAT_OP,
        Op::Upsample { .. } => &pointwise::UPSAMPLE_OP,
        Op::TimestepEmbedding { .. } => &pointwise::TIMESTEP_EMBEDDING_OP,
        Op::Gather => &pointwise::GATHER_OP,
        Op::Relu => &pointwise::RELU_OP,
        Op::SoftClamp { .. } => &pointwise::SOFT_CLAMP_OP,
        Op::ScaleShift { .. } => &pointwise::SCALE_SHIFT_OP,
        Op::ScaleChannels { .. } => &pointwise::SCALE_CHANNELS_OP,
        Op::Input(_) | Op::Reshape | Op::VectorNorm => return None,
    })
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
