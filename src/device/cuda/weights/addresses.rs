//! The addresses of an executable's weights.

use crate::device::cuda::driver::allocation::DeviceAllocation;
use std::sync::Arc;

/// The addresses of an executable's blocks by their offset, and the allocations that hold them for as long as it lives.
#[derive(Default)]
pub(crate) struct WeightAddresses {
    /// Offset in the layout and address, in order once [`WeightAddresses::sort`] was called.
    addresses: Vec<(usize, u64)>,
    allocations: Vec<Arc<DeviceAllocation>>,
}

impl WeightAddresses {
    /// The address of the block of that offset.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.addresses.binary_search_by_key(&offset, |(at, _)| *at).map_or(0, |i| self.addresses[i].1)
    }

    /// Address and bytes of each allocation.
    pub(crate) fn allocations(&self) -> impl Iterator<Item = (u64, usize)> {
        self.allocations.iter().map(|held| (held.address(), held.bytes()))
    }

    /// Adds the address of the block of that offset.
    pub(crate) fn insert(&mut self, offset: usize, address: u64) {
        self.addresses.push((offset, address));
    }

    /// Sorts the addresses for lookup.
    pub(crate) fn sort(&mut self) {
        self.addresses.sort_unstable();
    }

    /// Keeps an allocation alive.
    pub(crate) fn keep(&mut self, allocation: Arc<DeviceAllocation>) {
        if !self.allocations.iter().any(|held| Arc::ptr_eq(held, &allocation)) {
            self.allocations.push(allocation);
        }
    }
}
