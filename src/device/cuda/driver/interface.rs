//! The trait that a driver implements.
//!
//! Everything happens in the order of the calls, as on one stream. Addresses are plain numbers.

use super::calls::CallCounts;
use super::gemm::{Gemm, GemmPlan};
use super::kernel::{Function, Kernel, Launch};
use super::tensor_map::{TensorMap, TensorMapDesc};
use crate::error::Result;

/// The properties of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProperties {
    /// Its name, e.g. `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Its compute capability, e.g. (9, 0).
    pub capability: (u32, u32),
    /// Its multiprocessors.
    pub multiprocessors: usize,
    /// Whether [`Driver::prepare_gemm`] works, that is, whether a library for products was found.
    pub gemm: bool,
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Bytes that can be allocated now.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A graph that a driver has captured: its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphExec(pub u64);

/// Events of a driver: the steps that the host may be ahead of the device.
pub const EVENTS: usize = 2;

/// Host memory that copies are staged in.
pub trait Staging: Send {
    /// Its bytes.
    fn bytes(&mut self) -> &mut [u8];
}

/// Ordinary memory as staging.
impl Staging for Vec<u8> {
    fn bytes(&mut self) -> &mut [u8] {
        self
    }
}

/// A device that runs the kernels of `kernels/`.
///
/// Calls take `&self`; the caller sees to it that the work of two threads does not mix (see `stream_lock`).
///
/// # Errors
/// Every method gives [`crate::Error::Memory`] where memory is short and [`crate::Error::Fault`] for everything else. After a fault that
/// marks the device lost every further call gives that fault too.
pub trait Driver: Send + Sync {
    /// The properties of the device.
    fn properties(&self) -> &DeviceProperties;

    /// Refuses a device that was lost, without asking it anything.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The device's memory at this moment.
    fn memory_info(&self) -> Result<MemoryInfo>;

    /// Allocates so many bytes, aligned to 256. Whatever was there before is in them.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Allocates so many bytes, all zero, aligned to 256.
    fn allocate_zeroed(&self, bytes: usize) -> Result<u64> {
        let address = self.allocate(bytes)?;
        match self.memset(address, bytes.max(1), 0) {
            Ok(()) => Ok(address),
            Err(error) => {
                self.free(address);
                Err(error)
            }
        }
    }

    /// Frees an allocation, once the device is done with it. A failure shows at the next call.
    fn free(&self, address: u64);

    /// Host memory from which copies are fast; ordinary memory where there is no better.
    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>> {
        let hint = || "free memory of the host".into();
        let memory: Vec<u8> = crate::memory::zeroed("loading", bytes, bytes as u64, hint)?;
        Ok(Box::new(memory))
    }

    /// Copies to the device. The bytes may change once the call has returned.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Copies to the device, and may read the bytes until an event that is recorded after the call has been passed.
    ///
    /// # Safety
    /// Until then, or until [`Driver::synchronize`], the bytes stay where and as they are.
    unsafe fn upload_async(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.upload(to, bytes)
    }

    /// Waits for everything before it and copies to the host.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Copies within the device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets bytes of the device.
    fn memset(&self, to: u64, bytes: usize, value: u8) -> Result<()>;

    /// Finds a kernel by the name of one of its entry points.
    fn function(&self, kernel: &Kernel, entry: &str) -> Result<Function>;

    /// Encodes a tensor map, which keeps the tensor's address: where that moves, it is encoded anew.
    fn encode_tensor_map(&self, map: &TensorMapDesc) -> Result<TensorMap>;

    /// Launches a kernel; `early`: it may begin before the call before this one, which is a launch, too, has ended. Only for a
    /// [`Function`] that may.
    fn launch(&self, launch: &Launch, early: bool) -> Result<()>;

    /// Chooses how a product is computed; by its sizes without the batch, so that a result does not depend on it. May try several
    /// ways on memory of its own; leaves the operands alone. Not between `begin_capture` and `end_capture`.
    fn prepare_gemm(&self, gemm: &Gemm) -> Result<GemmPlan>;

    /// Computes a prepared product.
    fn gemm(&self, plan: GemmPlan) -> Result<()>;

    /// Releases a prepared product.
    fn release_gemm(&self, plan: GemmPlan);

    /// Begins to record launches, products, copies within the device and memsets instead of doing them. `false`: this driver
    /// does not capture, and does them at once.
    fn begin_capture(&self) -> Result<bool>;

    /// Ends what `begin_capture` began.
    fn end_capture(&self) -> Result<GraphExec>;

    /// Launches a captured graph.
    fn launch_graph(&self, graph: GraphExec) -> Result<()>;

    /// Destroys a captured graph.
    fn destroy_graph(&self, graph: GraphExec);

    /// Records an event at this point of the device's work; `which` is below [`EVENTS`].
    fn record_event(&self, which: usize) -> Result<()>;

    /// Waits until the device has passed the point where that event was last recorded.
    fn synchronize_event(&self, which: usize) -> Result<()>;

    /// Waits for the device.
    fn synchronize(&self) -> Result<()>;

    /// The counts of its calls so far.
    fn calls(&self) -> CallCounts;
}
