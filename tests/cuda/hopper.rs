//! A device of compute capability 9.0 on which small layers are worth its own kernels: it has few multiprocessors, or says so.

use super::block_of_sm90::MULTIPROCESSORS;
use super::device::{Where, chosen, cuda, skip};
use super::ptx::PtxDriver;
use braid::Result;
use braid::device::cuda::driver::{
    CallCounts, DeviceProperties, Driver, Function, Gemm, GemmPlan, GraphExec, Kernel, Launch, MemoryInfo, Staging,
    TensorMap, TensorMapDesc,
};
use braid_ptx::Schedule;
use std::sync::Arc;

/// The interpreter with a schedule, or the GPU that BRAID_TEST_DRIVER names; none, with a word, where that is of another kind.
pub fn hopper(schedule: Schedule) -> Option<Arc<dyn Driver>> {
    if !matches!(chosen(), Where::Cuda | Where::Both) {
        return Some(Arc::new(PtxDriver::new().device((9, 0), MULTIPROCESSORS).schedule(schedule)));
    }
    let driver = cuda()?;
    let properties = DeviceProperties { multiprocessors: MULTIPROCESSORS, ..driver.properties().clone() };
    if properties.capability != (9, 0) {
        skip("kernels of sm_90a, on another GPU");
        return None;
    }
    Some(Arc::new(Narrow { driver, properties }))
}

/// A GPU of which a part of the multiprocessors is told.
struct Narrow {
    driver: Arc<dyn Driver>,
    properties: DeviceProperties,
}

/// Hands calls on.
macro_rules! handed_on {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $name(&self, $($argument: $type),*) $(-> $result)? {
            self.driver.$name($($argument),*)
        })*
    };
}

impl Driver for Narrow {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    unsafe fn upload_async(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.driver.upload_async(to, bytes) }
    }

    handed_on! {
        check() -> Result<()>;
        memory_info() -> Result<MemoryInfo>;
        allocate(bytes: usize) -> Result<u64>;
        allocate_zeroed(bytes: usize) -> Result<u64>;
        free(address: u64);
        staging(bytes: usize) -> Result<Box<dyn Staging>>;
        upload(to: u64, bytes: &[u8]) -> Result<()>;
        download(from: u64, bytes: &mut [u8]) -> Result<()>;
        copy(from: u64, to: u64, bytes: usize) -> Result<()>;
        memset(to: u64, bytes: usize, value: u8) -> Result<()>;
        function(kernel: &Kernel, entry: &str) -> Result<Function>;
        encode_tensor_map(map: &TensorMapDesc) -> Result<TensorMap>;
        launch(launch: &Launch, early: bool) -> Result<()>;
        prepare_gemm(gemm: &Gemm) -> Result<GemmPlan>;
        gemm(plan: GemmPlan) -> Result<()>;
        release_gemm(plan: GemmPlan);
        begin_capture() -> Result<bool>;
        end_capture() -> Result<GraphExec>;
        launch_graph(graph: GraphExec) -> Result<()>;
        destroy_graph(graph: GraphExec);
        record_event(which: usize) -> Result<()>;
        synchronize_event(which: usize) -> Result<()>;
        synchronize() -> Result<()>;
        calls() -> CallCounts;
    }
}
