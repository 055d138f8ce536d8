//! The memory of a device: global memory, the shared memory of a block, and the shadows that find races in both.

mod allocation;
mod block_races;
mod global;
mod shared;
mod tensor_map;
mod thread_races;
mod under_way;

pub(crate) use allocation::{Allocation, Allocations};
pub(crate) use block_races::Tag;
pub use global::GlobalMemory;
pub(crate) use shared::SharedMemory;
pub use tensor_map::{Im2col, Swizzle, TENSOR_MAP_BYTES, TensorMap};
pub(crate) use tensor_map::{MapField, TENSOR_MAP_ALIGN, element_bytes};
pub(crate) use thread_races::{AccessKind, Accessor, Proxy};
pub(crate) use under_way::{BulkCopy, CHUNK, Chunk, Mbarrier, SharedPlace};
