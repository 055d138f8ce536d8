//! Commands to a driver.

use super::gemm::Gemm;
use super::kernel::Launch;

/// One thing that a run does.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// A launch of a kernel.
    Launch(Launch),
    /// A product of the library.
    Gemm(Gemm),
    /// A copy within the device: from, to, bytes.
    Copy(u64, u64, usize),
    /// Sets so many bytes from that address on.
    Memset(u64, usize, u8),
}
