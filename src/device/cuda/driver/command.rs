//! Commands to a driver.

use super::gemm::Gemm;
use super::kernel::Launch;

/// A command of a run.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// A launch of a kernel.
    Launch(Launch),
    /// A product of the library.
    Gemm(Gemm),
    /// A copy within the device: from, to, bytes.
    Copy(u64, u64, usize),
    /// Sets that many bytes from an address on.
    Memset(u64, usize, u8),
}
