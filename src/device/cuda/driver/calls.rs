//! Counts of the calls to a driver.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of the calls to a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCounts {
    /// Kernels launched one by one.
    pub launches: u64,
    /// Products of the library, called one by one.
    pub gemms: u64,
    /// Captured graphs launched.
    pub graph_launches: u64,
    /// Copies to the device, from it and within it.
    pub copies: u64,
    /// Allocations of device memory.
    pub allocations: u64,
    /// Times that the host waited for all of the device's work.
    pub synchronizations: u64,
    /// Times that the host waited for an event.
    pub waits: u64,
    /// Graphs captured.
    pub captures: u64,
}

/// Counts calls; for drivers.
#[derive(Debug, Default)]
pub struct CallCounter([AtomicU64; 8]);

/// The calls that a [`CallCounter`] counts, in the order of the fields of [`CallCounts`].
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)] // Calls explains them.
pub enum Call {
    Launch,
    Gemm,
    GraphLaunch,
    Copy,
    Allocation,
    Synchronize,
    EventSynchronize,
    Capture,
}

impl CallCounter {
    /// One more.
    pub fn count(&self, call: Call) {
        self.0[call as usize].fetch_add(1, Relaxed);
    }

    /// The counts so far.
    pub fn calls(&self) -> CallCounts {
        let [launches, gemms, graph_launches, copies, allocations, synchronizations, waits, captures] =
            std::array::from_fn(|i| self.0[i].load(Relaxed));
        CallCounts { launches, gemms, graph_launches, copies, allocations, synchronizations, waits, captures }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_kind() {
        let counter = CallCounter::default();
        counter.count(Call::Launch);
        counter.count(Call::Synchronize);
        counter.count(Call::Synchronize);
        assert_eq!(counter.calls(), CallCounts { launches: 1, synchronizations: 2, ..CallCounts::default() });
    }
}
