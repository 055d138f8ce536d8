//! What the launch layer asks of a device: memory, launches by name, products of a library, capture and replay.
//!
//! Everything happens in the order of the calls, as on one stream. Addresses are plain numbers. Two drivers exist:
//! `nvidia`, and an interpreter of PTX in the tests; the layers above cannot tell them apart.

#[cfg(feature = "cuda")]
pub mod nvidia;

use crate::error::Result;
use crate::tensor::DType;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProperties {
    /// Its name, e.g. `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Its compute capability, e.g. (9, 0).
    pub capability: (u32, u32),
    /// Its multiprocessors.
    pub multiprocessors: usize,
    /// Whether [`Driver::prepare_gemm`] works: where a library for products is there.
    pub gemm: bool,
}

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What can be had now.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// A kernel that a driver has found: its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function(pub u64);

/// A product that a driver has prepared: its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmPlan(pub u64);

/// What a driver has captured: its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphExec(pub u64);

/// One launch of a kernel.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The kernel's entry point, e.g. `gemm_64x64_f16`.
    pub entry: String,
    /// What [`Driver::function`] gave for it.
    pub function: Function,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// The bytes of the one parameter struct, in words of 8.
    pub params: Box<[u64]>,
}

impl Launch {
    /// The bytes of the parameter struct.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.params)
    }
}

/// A matrix in device memory, column-major; one for each product of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MatrixRef {
    /// The address of its first element.
    pub data: u64,
    /// Elements from column to column.
    pub leading: usize,
    /// Elements from one product of the batch to the next.
    pub stride: usize,
}

/// What happens to a product before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmEpilogue {
    /// Nothing.
    None,
    /// A bias of `m` values of the storage type at that address is added to every column.
    Bias(u64),
    /// A matrix of D's type and size is added: beta = 1 and C of the library.
    Residual(MatrixRef),
    /// Both.
    BiasResidual(u64, MatrixRef),
}

impl GemmEpilogue {
    /// The bias, where there is one.
    pub fn bias(&self) -> Option<u64> {
        match self {
            Self::Bias(bias) | Self::BiasResidual(bias, _) => Some(*bias),
            _ => None,
        }
    }

    /// The residual, where there is one.
    pub fn residual(&self) -> Option<MatrixRef> {
        match self {
            Self::Residual(matrix) | Self::BiasResidual(_, matrix) => Some(*matrix),
            _ => None,
        }
    }
}

/// Products as cuBLASLt has them, column-major: `D [m, n] = op(A) [m, k] op(B) [k, n] + epilogue`, f32 accumulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gemm {
    /// The type of A, B, the bias and, unless `out_f32`, of C and D.
    pub dtype: DType,
    /// Rows of D.
    pub m: usize,
    /// Columns of D.
    pub n: usize,
    /// The length of the sums.
    pub k: usize,
    /// Products of the batch.
    pub batch: usize,
    /// Whether A is stored `[k, m]`.
    pub transpose_a: bool,
    /// Whether B is stored `[n, k]`.
    pub transpose_b: bool,
    /// The first factor.
    pub a: MatrixRef,
    /// The second factor.
    pub b: MatrixRef,
    /// The result.
    pub d: MatrixRef,
    /// Whether D is f32.
    pub out_f32: bool,
    /// What is added.
    pub epilogue: GemmEpilogue,
}

/// How often a driver was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCounts {
    /// Kernels launched one by one.
    pub launches: u64,
    /// Products of the library, called one by one.
    pub gemms: u64,
    /// Graphs replayed.
    pub replays: u64,
    /// Copies to the device, from it and within it.
    pub copies: u64,
    /// Allocations of device memory.
    pub allocations: u64,
    /// Times that the host waited for all of the device's work.
    pub synchronisations: u64,
    /// Times that the host waited for a mark.
    pub waits: u64,
    /// Graphs captured.
    pub captures: u64,
}

/// Counts calls; for drivers.
#[derive(Debug, Default)]
pub struct CallCounter([AtomicU64; 8]);

/// What a [`CallCounter`] counts, in the order of the fields of [`CallCounts`].
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
        let [launches, gemms, replays, copies, allocations, synchronisations, waits, captures] =
            std::array::from_fn(|i| self.0[i].load(Relaxed));
        CallCounts { launches, gemms, replays, copies, allocations, synchronisations, waits, captures }
    }
}

/// Marks of a driver: how many steps the host may be ahead of the device.
pub const EVENTS: usize = 2;

/// Memory of the host from which and to which copies go.
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

/// A device that runs the kernels of [`super::kernels`].
///
/// Calls take `&self`; the caller sees to it that the work of two threads does not mix (see [`super::CudaDevice`]).
///
/// # Errors
/// Every method gives [`crate::Error::Memory`] where memory is short and [`crate::Error::Fault`] for everything else. After a fault that
/// marks the device lost every further call gives that fault too.
pub trait Driver: Send + Sync {
    /// What the device is.
    fn properties(&self) -> &DeviceProperties;

    /// Its memory at this moment.
    fn memory_info(&self) -> Result<MemoryInfo>;

    /// That many bytes, all zero, aligned to 256.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives an allocation back, once the device is done with it. A failure shows at the next call.
    fn free(&self, address: u64);

    /// Host memory from which copies are fast; ordinary memory where there is no better.
    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>> {
        let hint = || "free memory of the host".into();
        let memory: Vec<u8> = crate::memory::zeroed("loading", bytes, bytes as u64, hint)?;
        Ok(Box::new(memory))
    }

    /// Copies to the device. The bytes may change once the call has returned.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for everything before it and copies to the host.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Copies within the device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets bytes of the device.
    fn memset(&self, to: u64, bytes: usize, value: u8) -> Result<()>;

    /// The kernel of that entry point.
    fn function(&self, entry: &str) -> Result<Function>;

    /// Launches a kernel.
    fn launch(&self, launch: &Launch) -> Result<()>;

    /// Chooses how a product is computed; by its sizes without the batch, so that a result does not depend on it. May try several
    /// ways on memory of its own; leaves the operands alone. Not between `begin_capture` and `end_capture`.
    fn prepare_gemm(&self, gemm: &Gemm) -> Result<GemmPlan>;

    /// Computes a prepared product.
    fn gemm(&self, plan: GemmPlan) -> Result<()>;

    /// Lets a prepared product go.
    fn release_gemm(&self, plan: GemmPlan);

    /// From here on launches, products, copies within the device and fills are recorded and not done. `false`: this driver
    /// does not capture, and they are done as ever.
    fn begin_capture(&self) -> Result<bool>;

    /// Ends what `begin_capture` began.
    fn end_capture(&self) -> Result<GraphExec>;

    /// Does all that was captured.
    fn launch_graph(&self, graph: GraphExec) -> Result<()>;

    /// Lets a captured graph go.
    fn destroy_graph(&self, graph: GraphExec);

    /// Marks this point of the device's work; `which` is below [`EVENTS`].
    fn record_event(&self, which: usize) -> Result<()>;

    /// Waits until the device has come to that mark where it was last set.
    fn synchronize_event(&self, which: usize) -> Result<()>;

    /// Waits for the device.
    fn synchronize(&self) -> Result<()>;

    /// How often it was called.
    fn calls(&self) -> CallCounts;
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
        assert_eq!(counter.calls(), CallCounts { launches: 1, synchronisations: 2, ..CallCounts::default() });
    }
}
