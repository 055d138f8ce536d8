//! Operations on a GPU, a file each, named after the kernel file that it launches.
//!
//! A file holds the parameter structs (byte for byte those of `kernels/`), the kernels, the choice between them, and the
//! lowering of the graph's operation. `registry` names each of them once.

pub mod attention;
pub mod attention_sm90;
pub(crate) mod bindings;
pub mod branches;
pub mod conv2d;
pub mod convolution;
pub mod convolution_fp8_sm90;
pub mod convolution_narrow;
pub mod convolution_sm90;
pub mod decoupled;
pub mod decoupled_sm90;
pub mod epilogue;
pub mod gemm;
pub mod gemm_fp8_sm90;
pub mod gemm_sm90;
pub mod group_norm;
pub mod kernel;
pub mod layer_norm;
pub mod layout;
mod low_rank;
pub(crate) mod lowering;
pub(crate) mod memory_layout;
pub mod moments;
pub mod pointwise;
mod product;
pub mod quantize_sm90;
pub mod registry;
pub mod softmax_rows;
pub mod step;
pub mod strided_tensor;
pub mod tile;
pub mod tile_sm90;
