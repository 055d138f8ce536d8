//! The driver for GPUs: the CUDA driver's functions through cudarc, loaded when first asked for.
//!
//! cudarc ends the process by a panic where a library or one of its functions is missing, so [`CudaDriver::new`] looks for both
//! before it calls anything. Only cudarc's thin layers are used, with a stream, memory and graphs of our own.

mod lt;
mod pinned;
mod probe;

use self::lt::Lt;
use self::pinned::Pinned;
use self::probe::early;
use super::compile;
use super::driver::{
    Call, Calls, Counter, Driver, Facts, Function, Gemm, GemmPlan, GraphHandle, Launch, MARKS, Memory, Staging,
};
use super::kernels::{self, KERNELS};
use crate::error::{Error, Result};
use ::cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The device as the user names it.
const DEVICE: &str = "cuda";

/// Dynamic shared memory that a kernel may take without asking.
const SHARED: u32 = 48 << 10;

/// A GPU. One stream, on which everything happens in order; its calls may come from any thread, one at a time.
pub struct CudaDriver {
    facts: Facts,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    marks: [sys::CUevent; MARKS],
    lt: Option<Lt>,
    modules: Mutex<HashMap<&'static str, sys::CUmodule>>,
    counter: Counter,
    /// The fault after which the context is of no use.
    lost: OnceLock<(String, String)>,
}

// SAFETY: the handles belong to the driver's library, which may be called from every thread; each call first makes the context
// the thread's own. What changes on our side is behind locks and atomics.
unsafe impl Send for CudaDriver {}
// SAFETY: as above.
unsafe impl Sync for CudaDriver {}

fn missing(what: impl Into<String>) -> Error {
    Error::Device { device: DEVICE.into(), what: what.into() }
}

/// Whether a fault leaves the context of no use: the kinds that the CUDA manual calls sticky.
fn is_sticky(code: u32) -> bool {
    matches!(code, 4 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 911 | 999)
}

impl CudaDriver {
    /// The GPU of that number.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver's library, a GPU of that number or kernels for it are missing, with what to do.
    pub fn new(ordinal: usize) -> Result<Self> {
        probe::probe()?;
        let count = result::device::get_count().map_err(|e| early("cuDeviceGetCount", e))?;
        let number = i32::try_from(ordinal).ok().filter(|n| *n < count);
        let Some(number) = number else {
            return Err(missing(format!("GPU {ordinal} was asked for, {count} are there; --device cpu needs none")));
        };
        let device = result::device::get(number).map_err(|e| early("cuDeviceGet", e))?;
        let name = result::device::get_name(device).map_err(|e| early("cuDeviceGetName", e))?;
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| {
            // SAFETY: the device is one that the driver gave.
            let value = unsafe { result::device::get_attribute(device, which) };
            value.map_err(|e| early("cuDeviceGetAttribute", e)).map(|v| u32::try_from(v).unwrap_or(0))
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < (8, 0) {
            let (major, minor) = capability;
            return Err(missing(format!(
                "{name} has compute capability {major}.{minor}; 8.0 or later is needed (Ampere and after), or --device cpu"
            )));
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        // SAFETY: the device is one that the driver gave; released in `drop`, or below.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(|e| early("cuDevicePrimaryCtxRetain", e))?;
        let mut driver = Self {
            facts: Facts { name, capability, multiprocessors, gemm: false },
            device,
            context,
            stream: std::ptr::null_mut(),
            marks: [std::ptr::null_mut(); MARKS],
            lt: None,
            modules: Mutex::default(),
            counter: Counter::default(),
            lost: OnceLock::new(),
        };
        driver.enter()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        driver.stream = driver.check("cuStreamCreate", stream)?;
        for which in 0..MARKS {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
            driver.marks[which] = driver.check("cuEventCreate", event)?;
        }
        driver.lt = Lt::new(&driver)?;
        driver.facts.gemm = driver.lt.is_some();
        Ok(driver)
    }

    /// Makes the context this thread's own; refuses where it is lost.
    fn enter(&self) -> Result<()> {
        if let Some((call, what)) = self.lost.get() {
            return Err(Error::Fault { device: DEVICE.into(), call: call.clone(), what: what.clone(), lost: true });
        }
        // SAFETY: the context is retained for as long as `self` lives.
        self.check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }

    /// An error of the driver as ours.
    fn check<T>(&self, call: &str, outcome: Result<T, result::DriverError>) -> Result<T> {
        outcome.map_err(|error| {
            let code = error.0 as u32;
            if code == 2 {
                return self.short(0);
            }
            let what = describe(error);
            let lost = is_sticky(code);
            if lost {
                let _ = self.lost.set((call.to_owned(), what.clone()));
            }
            Error::Fault { device: DEVICE.into(), call: call.to_owned(), what, lost }
        })
    }

    /// That memory is short.
    fn short(&self, need: usize) -> Error {
        let have = result::mem_get_info().map_or(0, |(free, _)| free as u64);
        let hint = format!("free memory of {}, ask for a smaller picture, or use --device cpu", self.facts.name);
        Error::Memory { stage: "the GPU", need: need as u64, have, hint }
    }

    /// The module that holds a kernel, loaded at first use.
    fn module(&self, name: &'static str) -> Result<sys::CUmodule> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(name) {
            return Ok(*module);
        }
        let Some(found) = kernels::modules().iter().find(|module| module.name == name) else {
            return Err(Error::Graph(format!("no kernel file is called `{name}`")));
        };
        let built = match found.binary(self.facts.capability) {
            Some(binary) => {
                let bytes =
                    binary.unpack().map_err(|e| missing(format!("the kernels of this build are damaged: {e}")))?;
                Some(self.image(name, binary.target, &bytes))
            }
            None => None,
        };
        let module = match built {
            // The driver is older than the PTX, or the device takes none of the binaries: another compiler's may fit.
            None | Some(Err(Error::Fault { lost: false, .. })) => {
                let compiled = compile::module(found, self.facts.capability);
                match (compiled, built) {
                    (Ok((target, bytes)), _) => self.image(name, &target, &bytes)?,
                    (Err(why), Some(Err(fault))) => {
                        tracing::warn!("{why}");
                        return Err(fault);
                    }
                    (Err(why), _) => {
                        let (major, minor) = self.facts.capability;
                        return Err(missing(format!(
                            "this build has no kernels for compute capability {major}.{minor}, and they cannot be compiled \
                             now: {why}; install CUDA's NVRTC (CUDA_PATH or BRAID_NVRTC names its folder), or use --device cpu"
                        )));
                    }
                }
            }
            Some(loaded) => loaded?,
        };
        modules.insert(name, module);
        Ok(module)
    }

    /// A module of a cubin, or of PTX with a terminator.
    fn image(&self, name: &str, target: &str, bytes: &[u8]) -> Result<sys::CUmodule> {
        // A copy that is aligned as the driver reads ELF files.
        let mut image = vec![0u64; bytes.len().div_ceil(8) + 1];
        bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: a cubin, or PTX with a terminator, whole as NVRTC gave it; the driver copies it.
        let module = unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) };
        self.check(&format!("cuModuleLoadData ({name}, {target})"), module)
    }

    fn wait(&self) -> Result<()> {
        self.counter.count(Call::Synchronisation);
        // SAFETY: the stream lives as long as `self`.
        self.check("cuStreamSynchronize", unsafe { result::stream::synchronize(self.stream) })
    }
}

/// What the driver says of an error.
fn describe(error: result::DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    format!("{:?} ({})", error.0, text.unwrap_or_else(|_| "no text".into()))
}

impl Driver for CudaDriver {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> Result<Memory> {
        self.enter()?;
        let (free, total) = self.check("cuMemGetInfo", result::mem_get_info())?;
        Ok(Memory { free: free as u64, total: total as u64 })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        self.counter.count(Call::Allocation);
        let bytes = bytes.max(1);
        // SAFETY: the memory is filled before anyone reads it.
        let address = match unsafe { result::malloc_sync(bytes) } {
            Err(error) if error.0 as u32 == 2 => return Err(self.short(bytes)),
            outcome => self.check("cuMemAlloc", outcome)?,
        };
        let filled = self.fill(address, bytes, 0);
        if filled.is_err() {
            self.free(address);
        }
        filled.map(|()| address)
    }

    fn free(&self, address: u64) {
        if self.enter().is_err() {
            return; // A lost context's memory goes with it.
        }
        // SAFETY: an address from `allocate`, given back once; the driver waits for work that uses it.
        let freed = self.check("cuMemFree", unsafe { result::free_sync(address) });
        if let Err(error) = freed {
            tracing::warn!("{error}");
        }
    }

    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>> {
        self.enter()?;
        let len = bytes.max(1);
        // SAFETY: filled right below; given back in `drop`.
        let pinned = unsafe { result::malloc_host(len, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let start = match pinned {
            Err(error) if error.0 as u32 == 2 => {
                let (need, have) = (len as u64, crate::memory::available().unwrap_or(0));
                let hint = "free memory of the host, or ask for a smaller picture".to_owned();
                return Err(Error::Memory { stage: "staging", need, have, hint });
            }
            outcome => self.check("cuMemHostAlloc", outcome)?.cast::<u8>(),
        };
        // SAFETY: `start` is the beginning of `len` bytes that are ours alone.
        unsafe { start.write_bytes(0, len) };
        Ok(Box::new(Pinned { start, len, context: self.context }))
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Copy);
        // SAFETY: the caller gives an address with room for the bytes; they stay until the wait below is over.
        let copied = unsafe { result::memcpy_htod_async(to, bytes, self.stream) };
        self.check("cuMemcpyHtoDAsync", copied)?;
        self.wait()
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Copy);
        // SAFETY: the caller gives an address of that many bytes; the wait below ends the loan of `bytes`. Where the copy
        // could not be enqueued, nothing writes to it.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) };
        self.check("cuMemcpyDtoHAsync", copied)?;
        self.wait()
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Copy);
        // SAFETY: the caller gives two ranges of that length.
        self.check("cuMemcpyDtoDAsync", unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) })
    }

    fn fill(&self, to: u64, bytes: usize, value: u8) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller gives a range of that length.
        self.check("cuMemsetD8Async", unsafe { result::memset_d8_async(to, value, bytes, self.stream) })
    }

    fn function(&self, entry: &str) -> Result<Function> {
        self.enter()?;
        let named = |kernel: &&kernels::Kernel| kernel.types.each().iter().any(|dtype| kernel.entry(*dtype) == entry);
        let Some(kernel) = KERNELS.iter().find(named) else {
            return Err(Error::Graph(format!("no kernel is called `{entry}`")));
        };
        let module = self.module(kernel.module)?;
        let name = CString::new(entry).map_err(|_| Error::Graph(format!("no kernel is called `{entry}`")))?;
        // SAFETY: the module stays loaded for as long as `self` lives.
        let function = unsafe { result::module::get_function(module, name) };
        let function = self.check(&format!("cuModuleGetFunction ({entry})"), function)?;
        if kernel.shared > SHARED {
            let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            let set = unsafe { result::function::set_function_attribute(function, which, kernel.shared as i32) };
            self.check(&format!("cuFuncSetAttribute ({entry})"), set)?;
        }
        Ok(Function(function as u64))
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Launch);
        let [x, y, z] = launch.grid;
        let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the function is one that `function` gave, its one parameter is a struct of the size that the table of
        // kernels names, which the lowering checked, and the driver copies it before it returns. That the addresses in it
        // are those of live slabs is the lowering's promise, which the tests check on the interpreter.
        let launched = unsafe {
            let function = launch.function.0 as sys::CUfunction;
            result::launch_kernel(function, (x, y, z), (launch.block, 1, 1), launch.shared, self.stream, &mut params)
        };
        match launched {
            Ok(()) => Ok(()),
            Err(error) => self.check(&format!("cuLaunchKernel ({})", launch.entry), Err(error)),
        }
    }

    fn prepare_gemm(&self, gemm: &Gemm) -> Result<GemmPlan> {
        self.enter()?;
        match &self.lt {
            Some(lt) => lt.prepare(gemm),
            None => Err(missing("cuBLASLt is not there")),
        }
    }

    fn gemm(&self, plan: GemmPlan) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Gemm);
        match &self.lt {
            Some(lt) => lt.run(plan, self.stream),
            None => Err(missing("cuBLASLt is not there")),
        }
    }

    fn release_gemm(&self, plan: GemmPlan) {
        if let Some(lt) = &self.lt {
            lt.release(plan);
        }
    }

    fn begin_capture(&self) -> Result<bool> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        self.check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(self.stream, mode) })?;
        Ok(true)
    }

    fn end_capture(&self) -> Result<GraphHandle> {
        self.enter()?;
        // SAFETY: as above.
        let graph = self.check("cuStreamEndCapture", unsafe { result::stream::end_capture(self.stream) })?;
        if graph.is_null() {
            let what = "the capture was broken off".to_owned();
            return Err(Error::Fault { device: DEVICE.into(), call: "cuStreamEndCapture".into(), what, lost: false });
        }
        // SAFETY: the graph is the one just captured.
        let ready = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: as above; what was instantiated does not need it any more.
        let gone = unsafe { result::graph::destroy(graph) };
        let ready = self.check("cuGraphInstantiate", ready)?;
        self.counter.count(Call::Capture);
        self.check("cuGraphDestroy", gone)?;
        Ok(GraphHandle(ready as u64))
    }

    fn replay(&self, graph: GraphHandle) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Replay);
        // SAFETY: a handle from `end_capture` that has not been released.
        self.check("cuGraphLaunch", unsafe { result::graph::launch(graph.0 as sys::CUgraphExec, self.stream) })
    }

    fn release_graph(&self, graph: GraphHandle) {
        if self.enter().is_ok() {
            // SAFETY: a handle from `end_capture`, released once.
            let gone = unsafe { result::graph::exec_destroy(graph.0 as sys::CUgraphExec) };
            if let Err(error) = self.check("cuGraphExecDestroy", gone) {
                tracing::warn!("{error}");
            }
        }
    }

    fn mark(&self, which: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: event and stream live as long as `self`.
        self.check("cuEventRecord", unsafe { result::event::record(self.marks[which % MARKS], self.stream) })
    }

    fn wait_for(&self, which: usize) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Wait);
        // SAFETY: the event lives as long as `self`.
        self.check("cuEventSynchronize", unsafe { result::event::synchronize(self.marks[which % MARKS]) })
    }

    fn synchronise(&self) -> Result<()> {
        self.enter()?;
        self.wait()
    }

    fn calls(&self) -> Calls {
        self.counter.calls()
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        // SAFETY: every handle was made by `self` and is given back once, in the order opposite to its making. Errors have no
        // one to go to.
        unsafe {
            if result::ctx::set_current(self.context).is_ok() {
                if !self.stream.is_null() {
                    let _ = result::stream::synchronize(self.stream);
                }
                self.lt = None;
                for (_, module) in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
                    let _ = result::module::unload(module);
                }
                for event in self.marks.into_iter().filter(|event| !event.is_null()) {
                    let _ = result::event::destroy(event);
                }
                if !self.stream.is_null() {
                    let _ = result::stream::destroy(self.stream);
                }
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is no driver the error says so and how to do without; where there is one, it opens.
    #[test]
    fn says_what_is_missing() {
        match CudaDriver::new(0) {
            Ok(driver) => assert!(driver.facts().capability >= (8, 0)),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with("device cuda: ") && text.contains("--device cpu"), "{text}");
            }
        }
    }

    #[test]
    fn faults_that_stay() {
        // Illegal address, launch failure and an unknown error are sticky; out of memory and a bad value are not.
        assert!([700, 719, 999, 214].into_iter().all(is_sticky));
        assert!(![1, 2, 400, 701, 801, 900].into_iter().any(is_sticky));
    }
}
