//! The driver for GPUs: the CUDA driver's functions through cudarc, loaded when first asked for.
//!
//! cudarc ends the process by a panic where a library or one of its functions is missing, so [`NvidiaDriver::new`] looks for both
//! before it calls anything. cudarc finds the libraries and declares their types; the functions are called by `ffi`, with a stream,
//! memory and graphs of our own.

mod cublaslt;
mod ffi;
mod modules;
mod pinned;
mod probe;

use self::cublaslt::handle::CublasLtHandle;
use self::ffi::{Cuda, StatusCode, describe};
use self::pinned::Pinned;
use self::probe::{early, probe};
use crate::device::cuda::driver::{
    Call, CallCounter, CallCounts, DeviceProperties, Driver, EVENTS, Function, Gemm, GemmPlan, GraphExec, Launch,
    MemoryInfo, Staging,
};
use crate::device::cuda::kernels::{KERNELS, Kernel};
use crate::error::{Error, Field, Message, Result};
use ::cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The device as the user names it.
const DEVICE: &str = "cuda";

/// Dynamic shared memory that a kernel may take without asking.
const SHARED: u32 = 48 << 10;

/// A GPU. One stream, on which everything happens in order; its calls may come from any thread, one at a time.
pub struct NvidiaDriver {
    cuda: &'static Cuda,
    properties: DeviceProperties,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    events: [sys::CUevent; EVENTS],
    lt: Option<CublasLtHandle>,
    modules: Mutex<HashMap<&'static str, sys::CUmodule>>,
    counter: CallCounter,
    /// Whether the stream records and does nothing.
    capturing: AtomicBool,
    /// The fault after which the context is of no use.
    lost: OnceLock<(String, String)>,
}

// SAFETY: the handles belong to the driver's library, which may be called from every thread; each call first makes the context
// the thread's own. What changes on our side is behind locks and atomics.
unsafe impl Send for NvidiaDriver {}
// SAFETY: as above.
unsafe impl Sync for NvidiaDriver {}

fn missing(what: impl Into<Message>) -> Error {
    Error::Device { device: DEVICE.into(), what: what.into() }
}

/// Whether a fault leaves the context of no use: the kinds that the CUDA manual calls sticky.
fn is_sticky(code: StatusCode) -> bool {
    matches!(code.0, 4 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 911 | 999)
}

impl NvidiaDriver {
    /// The GPU of that number.
    ///
    /// # Errors
    /// [`Error::Device`] where the driver's library, a GPU of that number or kernels for it are missing, with what to do.
    pub fn new(ordinal: usize) -> Result<Self> {
        let (cuda, version) = probe()?;
        let early = |call, outcome: Result<(), StatusCode>| outcome.map_err(|code| early(cuda, call, code));
        let mut count = 0;
        // SAFETY: writes one integer.
        early("cuDeviceGetCount", unsafe { cuda.cuDeviceGetCount(&mut count) })?;
        let number = i32::try_from(ordinal).ok().filter(|n| *n < count);
        let Some(number) = number else {
            let what = Message::from(format!("GPU {ordinal} was asked for, {count} are there; "));
            return Err(missing(what.setting(Field::Device, "cpu").text(" needs none")));
        };
        let mut device = 0;
        // SAFETY: writes one integer.
        early("cuDeviceGet", unsafe { cuda.cuDeviceGet(&mut device, number) })?;
        let mut name = [0u8; 256];
        // SAFETY: writes a string with its terminator into that many bytes, one less than there are.
        early("cuDeviceGetName", unsafe { cuda.cuDeviceGetName(name.as_mut_ptr().cast(), 255, device) })?;
        let name = name.split(|byte| *byte == 0).next().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the device is one that the driver gave; writes one integer.
            early("cuDeviceGetAttribute", unsafe { cuda.cuDeviceGetAttribute(&mut value, which, device) })?;
            Ok::<_, Error>(u32::try_from(value).unwrap_or(0))
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < (8, 0) {
            let (major, minor) = capability;
            let what = Message::from(format!(
                "{name} has compute capability {major}.{minor}; 8.0 or later is needed (Ampere and after), or "
            ));
            return Err(missing(what.setting(Field::Device, "cpu")));
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let mut context = std::ptr::null_mut();
        // SAFETY: the device is one that the driver gave; released in `drop`, or below.
        early("cuDevicePrimaryCtxRetain", unsafe { cuda.cuDevicePrimaryCtxRetain(&mut context, device) })?;
        let mut driver = Self {
            cuda,
            properties: DeviceProperties { name, capability, multiprocessors, gemm: false },
            device,
            context,
            stream: std::ptr::null_mut(),
            events: [std::ptr::null_mut(); EVENTS],
            lt: None,
            modules: Mutex::default(),
            counter: CallCounter::default(),
            capturing: AtomicBool::new(false),
            lost: OnceLock::new(),
        };
        driver.enter()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes one handle, destroyed in `drop`.
        let made = unsafe { cuda.cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
        driver.check("cuStreamCreate", made)?;
        driver.stream = stream;
        for which in 0..EVENTS {
            driver.events[which] = driver.event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        }
        driver.lt = CublasLtHandle::new(&driver, version)?;
        driver.properties.gemm = driver.lt.is_some();
        Ok(driver)
    }

    /// Makes the context this thread's own; refuses where it is lost.
    fn enter(&self) -> Result<()> {
        if let Some((call, what)) = self.lost.get() {
            return Err(Error::Fault { device: DEVICE.into(), call: call.clone(), what: what.clone(), lost: true });
        }
        // SAFETY: the context is retained for as long as `self` lives.
        self.check("cuCtxSetCurrent", unsafe { self.cuda.cuCtxSetCurrent(self.context) })
    }

    /// An error of the driver as ours.
    fn check<T>(&self, call: &str, outcome: Result<T, StatusCode>) -> Result<T> {
        outcome.map_err(|code| {
            if code == StatusCode::MEMORY {
                return self.short(0);
            }
            let what = describe(self.cuda, code);
            let lost = is_sticky(code);
            if lost {
                let _ = self.lost.set((call.to_owned(), what.clone()));
            }
            Error::Fault { device: DEVICE.into(), call: call.to_owned(), what, lost }
        })
    }

    /// That memory is short.
    fn short(&self, need: usize) -> Error {
        let have = self.free_and_total().map_or(0, |(free, _)| free as u64);
        let hint = Message::from(format!("free memory of {}, ask for a smaller image, or use ", self.properties.name))
            .setting(Field::Device, "cpu");
        Error::Memory { stage: "the GPU", need: need as u64, have, hint }
    }

    fn free_and_total(&self) -> Result<(usize, usize), StatusCode> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers.
        unsafe { self.cuda.cuMemGetInfo_v2(&mut free, &mut total) }.map(|()| (free, total))
    }

    /// An event, for the caller to destroy.
    fn event(&self, flags: sys::CUevent_flags) -> Result<sys::CUevent> {
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one handle.
        self.check("cuEventCreate", unsafe { self.cuda.cuEventCreate(&mut event, flags as u32) })?;
        Ok(event)
    }

    fn wait(&self) -> Result<()> {
        self.counter.count(Call::Synchronize);
        // SAFETY: the stream lives as long as `self`.
        self.check("cuStreamSynchronize", unsafe { self.cuda.cuStreamSynchronize(self.stream) })
    }
}

impl Driver for NvidiaDriver {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn memory_info(&self) -> Result<MemoryInfo> {
        self.enter()?;
        let (free, total) = self.check("cuMemGetInfo", self.free_and_total())?;
        Ok(MemoryInfo { free: free as u64, total: total as u64 })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        self.counter.count(Call::Allocation);
        let bytes = bytes.max(1);
        let mut address = 0;
        // SAFETY: writes one address; the memory is filled before anyone reads it.
        match unsafe { self.cuda.cuMemAlloc_v2(&mut address, bytes) } {
            Err(StatusCode::MEMORY) => return Err(self.short(bytes)),
            outcome => self.check("cuMemAlloc", outcome)?,
        }
        let filled = self.memset(address, bytes, 0);
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
        let freed = self.check("cuMemFree", unsafe { self.cuda.cuMemFree_v2(address) });
        if let Err(error) = freed {
            tracing::warn!("{error}");
        }
    }

    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>> {
        self.enter()?;
        let len = bytes.max(1);
        let mut start = std::ptr::null_mut();
        // SAFETY: writes one address; the memory is filled right below and given back in `drop`.
        match unsafe { self.cuda.cuMemHostAlloc(&mut start, len, sys::CU_MEMHOSTALLOC_PORTABLE) } {
            Err(StatusCode::MEMORY) => {
                let (need, have) = (len as u64, crate::memory::available().unwrap_or(0));
                let hint = "free memory of the host, or ask for a smaller image".into();
                return Err(Error::Memory { stage: "staging", need, have, hint });
            }
            outcome => self.check("cuMemHostAlloc", outcome)?,
        }
        let start = start.cast::<u8>();
        // SAFETY: `start` is the beginning of `len` bytes that are ours alone.
        unsafe { start.write_bytes(0, len) };
        Ok(Box::new(Pinned { cuda: self.cuda, start, len, context: self.context }))
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Copy);
        let (from, len) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the caller gives an address with room for the bytes; they stay until the wait below is over.
        let copied = unsafe { self.cuda.cuMemcpyHtoDAsync_v2(to, from, len, self.stream) };
        self.check("cuMemcpyHtoDAsync", copied)?;
        self.wait()
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Copy);
        let (to, len) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the caller gives an address of that many bytes; the wait below ends the loan of `bytes`. Where the copy
        // could not be enqueued, nothing writes to it.
        let copied = unsafe { self.cuda.cuMemcpyDtoHAsync_v2(to, from, len, self.stream) };
        self.check("cuMemcpyDtoHAsync", copied)?;
        self.wait()
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::Copy);
        // SAFETY: the caller gives two ranges of that length.
        let copied = unsafe { self.cuda.cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) };
        self.check("cuMemcpyDtoDAsync", copied)
    }

    fn memset(&self, to: u64, bytes: usize, value: u8) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller gives a range of that length.
        self.check("cuMemsetD8Async", unsafe { self.cuda.cuMemsetD8Async(to, value, bytes, self.stream) })
    }

    fn function(&self, entry: &str) -> Result<Function> {
        self.enter()?;
        let named = |kernel: &&Kernel| kernel.types.each().iter().any(|dtype| kernel.entry(*dtype) == entry);
        let Some(kernel) = KERNELS.iter().find(named) else {
            return Err(Error::Graph(format!("no kernel is called `{entry}`")));
        };
        let module = self.module(kernel.module)?;
        let name = CString::new(entry).map_err(|_| Error::Graph(format!("no kernel is called `{entry}`")))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module stays loaded for as long as `self` lives; the name has a terminator; writes one handle.
        let found = unsafe { self.cuda.cuModuleGetFunction(&mut function, module, name.as_ptr()) };
        self.check(&format!("cuModuleGetFunction ({entry})"), found)?;
        if kernel.shared > SHARED {
            let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            let set = unsafe { self.cuda.cuFuncSetAttribute(function, which, kernel.shared as i32) };
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
            let (function, params) = (launch.function.0 as sys::CUfunction, params.as_mut_ptr());
            let (block, shared, none) = (launch.block, launch.shared, std::ptr::null_mut());
            self.cuda.cuLaunchKernel(function, x, y, z, block, 1, 1, shared, self.stream, params, none)
        };
        match launched {
            Ok(()) => Ok(()),
            Err(code) => self.check(&format!("cuLaunchKernel ({})", launch.entry), Err(code)),
        }
    }

    fn prepare_gemm(&self, gemm: &Gemm) -> Result<GemmPlan> {
        self.enter()?;
        if self.capturing.load(Relaxed) {
            return Err(Error::Graph("a product is prepared while launches are captured".into()));
        }
        match &self.lt {
            Some(lt) => lt.prepare(self, gemm),
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
        self.check("cuStreamBeginCapture", unsafe { self.cuda.cuStreamBeginCapture_v2(self.stream, mode) })?;
        self.capturing.store(true, Relaxed);
        Ok(true)
    }

    fn end_capture(&self) -> Result<GraphExec> {
        self.enter()?;
        self.capturing.store(false, Relaxed);
        let mut graph = std::ptr::null_mut();
        // SAFETY: as above; writes one handle.
        self.check("cuStreamEndCapture", unsafe { self.cuda.cuStreamEndCapture(self.stream, &mut graph) })?;
        if graph.is_null() {
            let what = "the capture was broken off".to_owned();
            return Err(Error::Fault { device: DEVICE.into(), call: "cuStreamEndCapture".into(), what, lost: false });
        }
        let mut ready: sys::CUgraphExec = std::ptr::null_mut();
        // SAFETY: the graph is the one just captured; writes one handle.
        let made = unsafe { self.cuda.cuGraphInstantiateWithFlags(&mut ready, graph, 0) };
        // SAFETY: as above; what was instantiated does not need it any more.
        let gone = unsafe { self.cuda.cuGraphDestroy(graph) };
        self.check("cuGraphInstantiate", made)?;
        self.counter.count(Call::Capture);
        self.check("cuGraphDestroy", gone)?;
        Ok(GraphExec(ready as u64))
    }

    fn launch_graph(&self, graph: GraphExec) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::GraphLaunch);
        // SAFETY: a handle from `end_capture` that has not been released.
        self.check("cuGraphLaunch", unsafe { self.cuda.cuGraphLaunch(graph.0 as sys::CUgraphExec, self.stream) })
    }

    fn destroy_graph(&self, graph: GraphExec) {
        if self.enter().is_ok() {
            // SAFETY: a handle from `end_capture`, released once.
            let gone = unsafe { self.cuda.cuGraphExecDestroy(graph.0 as sys::CUgraphExec) };
            if let Err(error) = self.check("cuGraphExecDestroy", gone) {
                tracing::warn!("{error}");
            }
        }
    }

    fn record_event(&self, which: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: event and stream live as long as `self`.
        self.check("cuEventRecord", unsafe { self.cuda.cuEventRecord(self.events[which % EVENTS], self.stream) })
    }

    fn synchronize_event(&self, which: usize) -> Result<()> {
        self.enter()?;
        self.counter.count(Call::EventSynchronize);
        // SAFETY: the event lives as long as `self`.
        self.check("cuEventSynchronize", unsafe { self.cuda.cuEventSynchronize(self.events[which % EVENTS]) })
    }

    fn synchronize(&self) -> Result<()> {
        self.enter()?;
        self.wait()
    }

    fn calls(&self) -> CallCounts {
        self.counter.calls()
    }
}

impl Drop for NvidiaDriver {
    fn drop(&mut self) {
        // SAFETY: every handle was made by `self` and is given back once, in the order opposite to its making. Errors have no
        // one to go to.
        unsafe {
            if self.cuda.cuCtxSetCurrent(self.context).is_ok() {
                if !self.stream.is_null() {
                    let _ = self.cuda.cuStreamSynchronize(self.stream);
                }
                self.lt = None;
                for (_, module) in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
                    let _ = self.cuda.cuModuleUnload(module);
                }
                for event in self.events.into_iter().filter(|event| !event.is_null()) {
                    let _ = self.cuda.cuEventDestroy_v2(event);
                }
                if !self.stream.is_null() {
                    let _ = self.cuda.cuStreamDestroy_v2(self.stream);
                }
            }
            let _ = self.cuda.cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is no driver the error says so and how to do without; where there is one, it opens.
    #[test]
    fn says_what_is_missing() {
        match NvidiaDriver::new(0) {
            Ok(driver) => assert!(driver.properties().capability >= (8, 0)),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with("device cuda: ") && text.contains("device: cpu"), "{text}");
            }
        }
    }

    #[test]
    fn faults_that_stay() {
        // Illegal address, launch failure and an unknown error are sticky; out of memory and a bad value are not.
        assert!([700, 719, 999, 214].into_iter().all(|code| is_sticky(StatusCode(code))));
        assert!(![1, 2, 400, 701, 801, 900].into_iter().any(|code| is_sticky(StatusCode(code))));
    }
}
