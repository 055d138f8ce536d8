//! The memory of a device: global memory, the shared memory of a block, and the shadows that find races in both.

mod allocation;
mod block_races;
mod global;
mod shared;
mod thread_races;

pub(crate) use allocation::{Allocation, Allocations};
pub(crate) use block_races::Tag;
pub use global::GlobalMemory;
pub(crate) use shared::SharedMemory;
pub(crate) use thread_races::{AccessKind, Accessor};
