//! The memory that a device has of its own.

/// The memory that holds a device's tensors and weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceMemory {
    /// In the host's memory; weights stay in the mapped files.
    Host,
    /// In the device's own memory.
    Dedicated {
        /// Bytes that can be allocated now.
        free: u64,
    },
}

/// Bytes of a device's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryRequirement {
    /// Bytes that the executables hold; weights that several read count once.
    pub bytes: u64,
    /// The most that compiling one of them takes for a moment.
    pub staging: u64,
}
