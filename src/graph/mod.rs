//! A model as data: nodes in topological order, static shapes, channels-last.
//!
//! A tensor is `[N, H, W, C]` or `[N, T, C]`: the same bytes, so [`Op::Reshape`] costs nothing. A node knows its operation,
//! its operands and its shape; weights are views into mapped files. What a device does with it is the device's affair.
//! Values are f32 on the CPU; token ids, indices and lengths are inputs of i32, which no operation computes.

mod attention;
mod builder;
mod fuse;
mod gemm;
mod memory_plan;
mod nodes;
mod op;
mod op_info;
#[cfg(test)]
mod tests;

pub use attention::{Attention, ChannelSlice, KvBranch};
pub use builder::{Builder, LORA_SCALES};
pub use fuse::fuse;
pub use gemm::{Activation, Conv2d, Conv2dParams, Epilogue, EpilogueActivation, ImplicitGemm, Linear, LinearWeights};
pub use memory_plan::{Life, Location, MemoryPlan, place};
pub use nodes::{Graph, Node, NodeId};
pub use op::Op;
pub use op_info::{Inferred, InputType, OpCost, OpLabel, OpShapes};
