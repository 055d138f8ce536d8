//! The memory that holds an executable's results.

use crate::device::DeviceBuffer;
use crate::device::cuda::driver::allocation::DeviceAllocation;
use crate::device::cuda::driver::interface::Driver;
use crate::device::cuda::driver::stream_lock::{StreamLock, lock_stream};
use crate::error::Result;
use bytemuck::cast_slice_mut;
use std::sync::Arc;

/// An allocation with results, which other executables may read, and the host when the stream is free.
pub(crate) struct Results {
    allocation: DeviceAllocation,
    stream_lock: StreamLock,
}

impl Results {
    pub(crate) fn new(allocation: DeviceAllocation, stream_lock: StreamLock) -> Self {
        Self { allocation, stream_lock }
    }

    pub(crate) fn address(&self) -> u64 {
        self.allocation.address()
    }

    /// Whether they lie on the device of that driver.
    pub(crate) fn belongs_to(&self, driver: &Arc<dyn Driver>) -> bool {
        Arc::ptr_eq(self.allocation.driver(), driver)
    }
}

impl DeviceBuffer for Results {
    fn read(&self, start: usize, to: &mut [f32]) -> Result<()> {
        let _locked = lock_stream(&self.stream_lock);
        self.allocation.driver().download(self.address() + start as u64 * 4, cast_slice_mut(to))
    }
}
