//! The driver for GPUs: the CUDA driver's functions through cudarc, loaded when first asked for.
//!
//! cudarc ends the process by a panic where a library or one of its functions is missing, so [`NvidiaDriver::new`] looks for both
//! before it calls anything. cudarc finds the libraries and declares their types; the functions are called by `ffi`, with a stream,
//! memory and graphs of our own.

mod capture_gate;
mod context;
mod cublaslt;
mod error;
mod ffi;
mod modules;
mod pinned;
mod probe;
mod tensor_map;

pub use self::cublaslt::search::libraries;

use self::capture_gate::{Capturing, no_captures};
use self::context::Context;
use self::cublaslt::plans::GemmPlans;
use self::error::{DEVICE, missing};
use self::ffi::StatusCode;
use self::modules::Modules;
use self::pinned::Pinned;
use self::probe::{probe, select};
use super::calls::{Call, CallCounts};
use super::gemm::{Gemm, GemmPlan};
use super::interface::{DeviceProperties, Driver, EVENTS, GraphExec, MemoryInfo, Staging};
use super::kernel::{Function, Kernel, Launch};
use super::tensor_map::{TensorMap, TensorMapDesc};
use crate::error::{Error, Result};
use ::cudarc::driver::sys;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of dynamic shared memory that a kernel may take without asking.
const SHARED: u32 = 48 << 10;

/// A GPU. One stream, on which everything happens in order; its calls may come from any thread, one at a time.
pub struct NvidiaDriver {
    context: Context,
    events: [sys::CUevent; EVENTS],
    cublaslt: Option<GemmPlans>,
    modules: Modules,
    /// Whether launches may begin early: on GPUs from compute capability 9.0 on, by drivers from CUDA 12.3 on, which capture such launches,
    /// unless `BRAID_PDL=0` forbids it for comparison.
    early: bool,
    /// While the stream records and does nothing.
    capturing: Mutex<Option<Capturing>>,
}

// SAFETY: the handles belong to the driver's library, which may be called from every thread; each call first makes the context
// the thread's own. What changes on our side is behind locks and atomics.
unsafe impl Send for NvidiaDriver {}
// SAFETY: as above.
unsafe impl Sync for NvidiaDriver {}

impl NvidiaDriver {
    /// Opens the GPU of that number.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver's library, a GPU of that number or kernels for it are missing, with what to do. A cuBLASLt
    /// that is missing or does not start is a warning.
    pub fn new(ordinal: usize) -> Result<Self> {
        Self::open(ordinal, true)
    }

    /// As [`NvidiaDriver::new`], for a build without NVRTC: every kernel is compiled from its source.
    ///
    /// # Errors
    /// Those of [`NvidiaDriver::new`].
    pub fn from_sources(ordinal: usize) -> Result<Self> {
        Self::open(ordinal, false)
    }

    fn open(ordinal: usize, embedded: bool) -> Result<Self> {
        let (cuda, version) = probe()?;
        let (device, properties) = select(cuda, ordinal)?;
        let early = properties.capability >= (9, 0) && version >= 12_030;
        let mut driver = Self {
            context: Context::retain((cuda, version), device, properties)?,
            events: [std::ptr::null_mut(); EVENTS],
            cublaslt: None,
            modules: Modules::new(embedded),
            early: early && std::env::var_os("BRAID_PDL").is_none_or(|value| value != "0"),
            capturing: Mutex::new(None),
        };
        driver.context.open_stream()?;
        for which in 0..EVENTS {
            // The host sleeps until a step is over; it would keep a core busy otherwise.
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            driver.events[which] =
                driver.context.create_event(flags | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32)?;
        }
        driver.cublaslt = GemmPlans::open(&driver.context);
        driver.context.properties.gemm = driver.cublaslt.is_some();
        // Whether the device takes kernels shows now, while another device can still be chosen.
        driver.modules.get(&driver.context, "pointwise")?;
        Ok(driver)
    }

    fn capturing(&self) -> MutexGuard<'_, Option<Capturing>> {
        self.capturing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the context this thread's own.
    fn enter(&self) -> Result<&Context> {
        self.context.enter()?;
        Ok(&self.context)
    }
}

impl Driver for NvidiaDriver {
    fn properties(&self) -> &DeviceProperties {
        &self.context.properties
    }

    fn check(&self) -> Result<()> {
        self.context.require()
    }

    fn memory_info(&self) -> Result<MemoryInfo> {
        let gpu = self.enter()?;
        let (free, total) = gpu.check("cuMemGetInfo", gpu.free_and_total())?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.context.allocate(bytes)
    }

    fn free(&self, address: u64) {
        self.context.free(address);
    }

    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>> {
        let gpu = self.enter()?;
        let len = bytes.max(1);
        let mut start = std::ptr::null_mut();
        // SAFETY: writes one address; the memory is filled right below and given back in `drop`.
        match unsafe { gpu.cuda.cuMemHostAlloc(&mut start, len, sys::CU_MEMHOSTALLOC_PORTABLE) } {
            Err(StatusCode::MEMORY) => {
                let (need, have) = (len as u64, crate::memory::available().unwrap_or(0));
                let hint = "free memory of the host, or ask for a smaller image".into();
                return Err(Error::Memory { stage: "staging", need, have, hint });
            }
            outcome => gpu.check("cuMemHostAlloc", outcome)?,
        }
        let start = start.cast::<u8>();
        // SAFETY: `start` is the beginning of `len` bytes that are ours alone.
        unsafe { start.write_bytes(0, len) };
        Ok(Box::new(Pinned { cuda: gpu.cuda, start, len, context: gpu.handle, loss: gpu.loss.clone() }))
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.context.upload(to, bytes)
    }

    unsafe fn upload_async(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.context.upload_async(to, bytes) }
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.context.download(from, bytes)
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.context.copy(from, to, bytes)
    }

    fn memset(&self, to: u64, bytes: usize, value: u8) -> Result<()> {
        self.context.memset(to, bytes, value)
    }

    fn function(&self, kernel: &Kernel, entry: &str) -> Result<Function> {
        let gpu = self.enter()?;
        let (module, waits) = self.modules.get(gpu, kernel.module)?;
        let name = CString::new(entry).map_err(|_| Error::Graph(format!("no kernel is called `{entry}`")))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module stays loaded for as long as `self` lives; the name has a terminator; writes one handle.
        let found = unsafe { gpu.cuda.cuModuleGetFunction(&mut function, module, name.as_ptr()) };
        gpu.check(&format!("cuModuleGetFunction ({entry})"), found)?;
        if kernel.shared > SHARED {
            let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            let set = unsafe { gpu.cuda.cuFuncSetAttribute(function, which, kernel.shared as i32) };
            gpu.check(&format!("cuFuncSetAttribute ({entry})"), set)?;
        }
        Ok(Function { handle: function as u64, early: self.early && waits.contains(entry) })
    }

    fn encode_tensor_map(&self, map: &TensorMapDesc) -> Result<TensorMap> {
        tensor_map::encode(self.enter()?, map)
    }

    fn launch(&self, launch: &Launch, early: bool) -> Result<()> {
        let gpu = self.enter()?;
        gpu.counter.count(Call::Launch);
        let [x, y, z] = launch.grid;
        let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: gpu.stream,
            attrs: &mut attribute,
            numAttrs: early.into(),
        };
        // SAFETY: the function is one that `function` gave, its one parameter is a struct of the size that the table of
        // kernels names, which the lowering checked, and the driver copies it before it returns, as it does the configuration and its
        // attribute. That the addresses in it are those of live allocations is the lowering's promise, which the tests check on the
        // interpreter.
        let launched = unsafe {
            let function = launch.function.handle as sys::CUfunction;
            gpu.cuda.cuLaunchKernelEx(&config, function, params.as_mut_ptr(), std::ptr::null_mut())
        };
        match launched {
            Ok(()) => Ok(()),
            Err(code) => gpu.check(&format!("cuLaunchKernelEx ({})", launch.entry), Err(code)),
        }
    }

    fn prepare_gemm(&self, gemm: &Gemm) -> Result<GemmPlan> {
        let gpu = self.enter()?;
        if self.capturing().is_some() {
            return Err(Error::Graph("a product is prepared while launches are captured".into()));
        }
        let _apart = no_captures();
        match &self.cublaslt {
            Some(lt) => lt.prepare(gpu, gemm),
            None => Err(missing("cuBLASLt is not there")),
        }
    }

    fn gemm(&self, plan: GemmPlan) -> Result<()> {
        let gpu = self.enter()?;
        gpu.counter.count(Call::Gemm);
        match &self.cublaslt {
            Some(lt) => lt.run(plan, gpu.stream).or_else(|error| {
                // The library's status does not tell that the device is lost; the driver does.
                if self.capturing().is_none() {
                    gpu.wait()?;
                }
                Err(error)
            }),
            None => Err(missing("cuBLASLt is not there")),
        }
    }

    fn release_gemm(&self, plan: GemmPlan) {
        if let Some(lt) = &self.cublaslt {
            lt.release(plan);
        }
    }

    fn begin_capture(&self) -> Result<bool> {
        let gpu = self.enter()?;
        let capture = Capturing::begin();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        gpu.check("cuStreamBeginCapture", unsafe { gpu.cuda.cuStreamBeginCapture_v2(gpu.stream, mode) })?;
        *self.capturing() = Some(capture);
        Ok(true)
    }

    fn end_capture(&self) -> Result<GraphExec> {
        let capture = self.capturing().take();
        let gpu = self.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: as above; writes one handle.
        let ended = unsafe { gpu.cuda.cuStreamEndCapture(gpu.stream, &mut graph) };
        drop(capture);
        gpu.check("cuStreamEndCapture", ended)?;
        if graph.is_null() {
            let what = "the capture was broken off".to_owned();
            return Err(Error::Fault { device: DEVICE.into(), call: "cuStreamEndCapture".into(), what, lost: false });
        }
        let mut ready: sys::CUgraphExec = std::ptr::null_mut();
        // SAFETY: the graph is the one just captured; writes one handle.
        let made = unsafe { gpu.cuda.cuGraphInstantiateWithFlags(&mut ready, graph, 0) };
        // SAFETY: as above; what was instantiated does not need it any more.
        let gone = unsafe { gpu.cuda.cuGraphDestroy(graph) };
        gpu.check("cuGraphInstantiate", made)?;
        gpu.counter.count(Call::Capture);
        if let Err(error) = gpu.check("cuGraphDestroy", gone) {
            tracing::warn!("{error}");
        }
        Ok(GraphExec(ready as u64))
    }

    fn launch_graph(&self, graph: GraphExec) -> Result<()> {
        let gpu = self.enter()?;
        gpu.counter.count(Call::GraphLaunch);
        // SAFETY: a handle from `end_capture` that has not been released.
        gpu.check("cuGraphLaunch", unsafe { gpu.cuda.cuGraphLaunch(graph.0 as sys::CUgraphExec, gpu.stream) })
    }

    fn destroy_graph(&self, graph: GraphExec) {
        if let Ok(gpu) = self.enter() {
            // SAFETY: a handle from `end_capture`, released once.
            let gone = unsafe { gpu.cuda.cuGraphExecDestroy(graph.0 as sys::CUgraphExec) };
            if let Err(error) = gpu.check("cuGraphExecDestroy", gone) {
                tracing::warn!("{error}");
            }
        }
    }

    fn record_event(&self, which: usize) -> Result<()> {
        let gpu = self.enter()?;
        // SAFETY: event and stream live as long as `self`.
        gpu.check("cuEventRecord", unsafe { gpu.cuda.cuEventRecord(self.events[which % EVENTS], gpu.stream) })
    }

    fn synchronize_event(&self, which: usize) -> Result<()> {
        let gpu = self.enter()?;
        gpu.counter.count(Call::EventSynchronize);
        // SAFETY: the event lives as long as `self`.
        gpu.check("cuEventSynchronize", unsafe { gpu.cuda.cuEventSynchronize(self.events[which % EVENTS]) })
    }

    fn synchronize(&self) -> Result<()> {
        let gpu = self.enter()?;
        gpu.wait()
    }

    fn calls(&self) -> CallCounts {
        self.context.counter.calls()
    }
}

impl Drop for NvidiaDriver {
    fn drop(&mut self) {
        let gpu = &self.context;
        // SAFETY: every handle was made by `self` and is given back once, in the order opposite to its making. Errors have no
        // one to go to.
        unsafe {
            if gpu.cuda.cuCtxSetCurrent(gpu.handle).is_ok() {
                if !gpu.stream.is_null() {
                    let _ = gpu.cuda.cuStreamSynchronize(gpu.stream);
                }
                self.cublaslt = None;
                self.modules.unload(gpu);
                for event in self.events.into_iter().filter(|event| !event.is_null()) {
                    let _ = gpu.cuda.cuEventDestroy_v2(event);
                }
                if !gpu.stream.is_null() {
                    let _ = gpu.cuda.cuStreamDestroy_v2(gpu.stream);
                }
            }
            let _ = gpu.cuda.cuDevicePrimaryCtxRelease_v2(gpu.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a driver the error says so and how to do without; with one, it opens.
    #[test]
    fn missing_driver() {
        match NvidiaDriver::new(0) {
            Ok(driver) => assert!(driver.properties().capability >= (8, 0)),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with("device cuda: ") && text.contains("device: cpu"), "{text}");
            }
        }
    }
}
