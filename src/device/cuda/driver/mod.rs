//! The interface between the layers above and a device: memory, launches, a library's products, captured graphs.
//!
//! Two drivers exist: `nvidia`, and an interpreter of PTX in the tests; the layers above cannot tell them apart.

pub(crate) mod allocation;
pub(crate) mod calls;
pub(crate) mod command;
pub(crate) mod gemm;
pub(crate) mod interface;
pub(crate) mod kernel;
#[cfg(feature = "cuda")]
pub(crate) mod nvidia;
pub(crate) mod stream_lock;
pub(crate) mod tensor_map;

pub use calls::{Call, CallCounter, CallCounts};
pub use gemm::{Gemm, GemmEpilogue, GemmPlan, MatrixRef};
pub use interface::{DeviceProperties, Driver, EVENTS, GraphExec, MemoryInfo, Staging};
pub use kernel::{Function, Kernel, Launch, Types};
pub use tensor_map::{Swizzle, TensorMap, TensorMapDesc, TensorMapMode};
