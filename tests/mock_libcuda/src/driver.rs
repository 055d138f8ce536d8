//! The functions of libcuda.

use super::cublaslt;
use super::faults::{self, CAPTURE, Fault};
use super::gpu::{Function, Gpu, violation};
use super::image;
use super::launch::{Launch, LaunchConfig, SHARED, most_shared};
use super::product::Product;
use super::settings::{capability, driver_version, kernels, loads_lazily, log, memory, multiprocessors};
use super::status::*;
use super::stream::{Capture, Event, Stream, Work};
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::Arc;

type Pointer = *mut c_void;

/// The flag of an event that has no time.
const WITHOUT_TIME: c_uint = 2;

/// Declares exported functions; each first returns the fault that a test has asked for.
macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> ::std::ffi::c_int {
            #[allow(unused_unsafe)]
            match $crate::gpu::fault_of(stringify!($name)) {
                // SAFETY: the caller keeps to the function's manual.
                None => unsafe { $body },
                Some(code) => code,
            }
        }
    )*};
}
pub(crate) use functions;

/// The code of a body that ends early.
fn code(outcome: Result<(), c_int>) -> c_int {
    outcome.err().unwrap_or(SUCCESS)
}

/// Removes a handle.
fn remove<T>(all: &mut std::collections::BTreeMap<u64, T>, handle: Pointer, what: &str) -> Result<T, c_int> {
    all.remove(&(handle as u64)).ok_or_else(|| violation(INVALID_HANDLE, &format!("{what} is destroyed twice")))
}

/// Whether a capture is under way on the stream.
fn captures(gpu: &Gpu, stream: Pointer) -> bool {
    gpu.streams.get(&(stream as u64)).is_some_and(|stream| stream.capture.is_some())
}

/// Puts work on a stream.
fn enqueue(stream: Pointer, work: Work, call: &str) -> c_int {
    code(Gpu::enter(call).and_then(|mut gpu| gpu.enqueue(stream as u64, work, call)))
}

unsafe fn text(to: *mut *const c_char, code: c_int, which: usize) -> c_int {
    let found = describe(code);
    // SAFETY: the caller gives a place for an address; the texts are constant.
    unsafe { *to = found.map_or(std::ptr::null(), |texts| texts[which].as_ptr()) };
    if found.is_some() { SUCCESS } else { INVALID_VALUE }
}

functions! {
    cuInit(_flags: c_uint) {
        // Blackwell is not there for drivers before CUDA 12.8.
        if capability() >= 100 && driver_version() < 12_080 { NO_DEVICE } else { SUCCESS }
    }
    cuDriverGetVersion(version: *mut c_int) { *version = driver_version(); SUCCESS }
    cuGetErrorName(error: c_int, to: *mut *const c_char) { text(to, error, 0) }
    cuGetErrorString(error: c_int, to: *mut *const c_char) { text(to, error, 1) }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) { *device = ordinal; SUCCESS }
    cuDeviceGetCount(count: *mut c_int) { *count = 1; SUCCESS }
    cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) {
        let text = b"mock\0";
        assert!(len as usize >= text.len());
        name.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
        SUCCESS
    }
    cuDeviceGetAttribute(value: *mut c_int, which: c_int, _device: c_int) {
        *value = match which {
            16 => multiprocessors(),
            75 => (capability() / 10) as c_int,
            76 => (capability() % 10) as c_int,
            97 => most_shared() as c_int,
            _ => return INVALID_VALUE,
        };
        SUCCESS
    }
    cuDevicePrimaryCtxRetain(context: *mut Pointer, _device: c_int) {
        let mut gpu = Gpu::lock();
        let new = gpu.handle();
        let (id, retained) = gpu.context.get_or_insert((new, 0));
        (*context, *retained) = (*id as Pointer, *retained + 1);
        SUCCESS
    }
    cuDevicePrimaryCtxRelease_v2(_device: c_int) {
        let mut gpu = Gpu::lock();
        let Some((id, retained)) = gpu.context else {
            return violation(INVALID_CONTEXT, "a context that is not retained is released");
        };
        gpu.context = Some((id, retained - 1)).filter(|(_, retained)| *retained > 0);
        if gpu.context.is_none() {
            log(&format!("released, {} left", gpu.handles() + cublaslt::alive()));
        }
        SUCCESS
    }
    cuCtxSetCurrent(context: Pointer) { code(Gpu::lock().set_current(context as u64)) }
    cuStreamCreate(stream: *mut Pointer, flags: c_uint) {
        assert_eq!(flags, 1);
        code(Gpu::enter("cuStreamCreate").map(|mut gpu| {
            let id = gpu.handle();
            gpu.streams.insert(id, Stream::default());
            *stream = id as Pointer;
        }))
    }
    cuStreamDestroy_v2(stream: Pointer) {
        code(Gpu::enter("cuStreamDestroy").and_then(|mut gpu| {
            gpu.drain(stream as u64)?;
            remove(&mut gpu.streams, stream, "a stream").map(|_| ())
        }))
    }
    cuStreamSynchronize(stream: Pointer) {
        code(Gpu::enter_outside_capture("cuStreamSynchronize").and_then(|mut gpu| {
            if !gpu.streams.contains_key(&(stream as u64)) {
                return Err(violation(INVALID_HANDLE, "a stream that is not there is waited for"));
            }
            gpu.drain(stream as u64)
        }))
    }
    cuStreamBeginCapture_v2(stream: Pointer, mode: c_int) {
        assert_eq!(mode, 1);
        code(Gpu::enter_outside_capture("cuStreamBeginCapture").and_then(|mut gpu| {
            let Some(found) = gpu.streams.get_mut(&(stream as u64)) else {
                return Err(violation(INVALID_HANDLE, "a stream that is not there is captured"));
            };
            found.capture = Some(Capture { thread: std::thread::current().id(), work: Vec::new(), broken: false });
            Ok(())
        }))
    }
    cuStreamEndCapture(stream: Pointer, graph: *mut Pointer) {
        *graph = std::ptr::null_mut();
        code(Gpu::enter("cuStreamEndCapture").and_then(|mut gpu| {
            let Some(found) = gpu.streams.get_mut(&(stream as u64)) else {
                return Err(violation(INVALID_HANDLE, "a capture ends on a stream that is not there"));
            };
            let Some(capture) = found.capture.take() else {
                return Err(violation(INVALID_VALUE, "a capture ends that was not begun"));
            };
            if capture.thread != std::thread::current().id() {
                return Err(violation(CAPTURE_WRONG_THREAD, "a capture ends in another thread"));
            }
            if capture.broken {
                return Err(CAPTURE_INVALIDATED);
            }
            if let Some(Fault { code, .. }) = faults::of_call(CAPTURE) {
                return Err(code);
            }
            let id = gpu.handle();
            gpu.graphs.insert(id, capture.work);
            *graph = id as Pointer;
            Ok(())
        }))
    }
    cuEventCreate(event: *mut Pointer, flags: c_uint) {
        code(Gpu::enter("cuEventCreate").and_then(|mut gpu| {
            // One for several processes has no time.
            if flags > 7 || flags & 4 != 0 && flags & WITHOUT_TIME == 0 {
                return Err(violation(INVALID_VALUE, &format!("an event of flags {flags}")));
            }
            let id = gpu.handle();
            gpu.events.insert(id, Event { flags, ..Event::default() });
            *event = id as Pointer;
            Ok(())
        }))
    }
    cuEventRecord(event: Pointer, stream: Pointer) {
        code(Gpu::enter("cuEventRecord").and_then(|mut gpu| {
            if captures(&gpu, stream) {
                return Err(violation(CAPTURE_UNSUPPORTED, "an event is recorded in a capture, and the host waits for it"));
            }
            let Some(found) = gpu.events.get_mut(&(event as u64)) else {
                return Err(violation(INVALID_HANDLE, "an event that is not there is recorded"));
            };
            found.recorded += 1;
            let mark = Work::Mark(event as u64, found.recorded);
            gpu.enqueue(stream as u64, mark, "cuEventRecord")
        }))
    }
    cuEventSynchronize(event: Pointer) {
        code(Gpu::enter_outside_capture("cuEventSynchronize").and_then(|mut gpu| {
            if !gpu.events.contains_key(&(event as u64)) {
                return Err(violation(INVALID_HANDLE, "an event that is not there is waited for"));
            }
            gpu.reach(event as u64)
        }))
    }
    cuEventElapsedTime(time: *mut f32, start: Pointer, end: Pointer) {
        code(Gpu::enter("cuEventElapsedTime").and_then(|gpu| {
            let at = |event: Pointer| {
                let timed = gpu.events.get(&(event as u64)).filter(|event| event.flags & WITHOUT_TIME == 0);
                timed.ok_or_else(|| violation(INVALID_HANDLE, "the time of an event that has none or is not there"))
            };
            let (start, end) = (at(start)?, at(end)?);
            if [start, end].iter().any(|event| event.reached < event.recorded || event.recorded == 0) {
                return Err(NOT_READY);
            }
            *time = (end.at - start.at) as f32 / 1000.0;
            Ok(())
        }))
    }
    cuEventDestroy_v2(event: Pointer) {
        code(Gpu::enter("cuEventDestroy").and_then(|mut gpu| remove(&mut gpu.events, event, "an event").map(|_| ())))
    }
    cuGraphInstantiateWithFlags(ready: *mut Pointer, graph: Pointer, flags: c_ulonglong) {
        assert_eq!(flags, 0);
        code(Gpu::enter("cuGraphInstantiate").and_then(|mut gpu| {
            let Some(work) = gpu.graphs.get(&(graph as u64)).cloned() else {
                return Err(violation(INVALID_HANDLE, "a graph that is not there is instantiated"));
            };
            let id = gpu.handle();
            gpu.executable_graphs.insert(id, work);
            *ready = id as Pointer;
            Ok(())
        }))
    }
    cuGraphLaunch(ready: Pointer, stream: Pointer) {
        code(Gpu::enter_outside_capture("cuGraphLaunch").and_then(|mut gpu| {
            let Some(work) = gpu.executable_graphs.get(&(ready as u64)).cloned() else {
                return Err(violation(INVALID_HANDLE, "a graph that is not there is launched"));
            };
            work.into_iter().try_for_each(|work| gpu.enqueue(stream as u64, work, "cuGraphLaunch"))
        }))
    }
    cuGraphDestroy(graph: Pointer) {
        code(Gpu::enter("cuGraphDestroy").and_then(|mut gpu| remove(&mut gpu.graphs, graph, "a graph").map(|_| ())))
    }
    cuGraphExecDestroy(ready: Pointer) {
        code(Gpu::enter("cuGraphExecDestroy").and_then(|mut gpu| {
            remove(&mut gpu.executable_graphs, ready, "an executable graph").map(|_| ())
        }))
    }
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        // Others hold 2 GiB.
        code(Gpu::enter("cuMemGetInfo").map(|gpu| {
            (*free, *total) = (gpu.free_memory(), memory() as usize + (2 << 30));
        }))
    }
    cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        code(Gpu::enter_outside_capture("cuMemAlloc").and_then(|mut gpu| {
            if bytes > (1 << 30).min(gpu.free_memory()) || bytes == 0 {
                return Err(if bytes == 0 { INVALID_VALUE } else { OUT_OF_MEMORY });
            }
            *address = gpu.memory.alloc(bytes as u64);
            gpu.sizes.insert(*address, bytes);
            log(&format!("allocate {bytes}"));
            Ok(())
        }))
    }
    cuMemFree_v2(address: u64) {
        code(Gpu::enter_outside_capture("cuMemFree").and_then(|mut gpu| {
            gpu.drain_all()?;
            if gpu.sizes.remove(&address).is_none() {
                return Err(violation(INVALID_VALUE, "memory is freed twice"));
            }
            gpu.memory.free(address);
            Ok(())
        }))
    }
    cuMemHostAlloc(start: *mut Pointer, bytes: usize, flags: c_uint) {
        assert_eq!(flags, 1);
        code(Gpu::enter_outside_capture("cuMemHostAlloc").map(|mut gpu| {
            let mut memory = vec![0u8; bytes];
            *start = memory.as_mut_ptr().cast();
            gpu.pinned.insert(*start as usize, memory);
        }))
    }
    cuMemFreeHost(start: Pointer) {
        code(Gpu::enter_outside_capture("cuMemFreeHost").and_then(|mut gpu| {
            let Some(memory) = gpu.pinned.get(&(start as usize)) else {
                return Err(violation(INVALID_VALUE, "host memory is freed twice"));
            };
            let range = start as usize..start as usize + memory.len();
            let uses = |work: &Work| matches!(work, Work::ToDevice(host, ..) | Work::ToHost(_, host, _) if range.contains(host));
            if gpu.streams.values().any(|stream| stream.queue.iter().any(uses)) {
                violation(INVALID_VALUE, "host memory is freed before the copy that uses it");
            }
            gpu.drain_all()?;
            gpu.pinned.remove(&(start as usize));
            Ok(())
        }))
    }
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Pointer) {
        let work = Work::ToDevice(from as usize, to, bytes);
        enqueue(stream, work, "cuMemcpyHtoDAsync")
    }
    cuMemcpyDtoHAsync_v2(to: Pointer, from: u64, bytes: usize, stream: Pointer) {
        // Whoever reads before waiting does not find what was there by chance.
        to.cast::<u8>().write_bytes(0xa5, bytes);
        let work = Work::ToHost(from, to as usize, bytes);
        enqueue(stream, work, "cuMemcpyDtoHAsync")
    }
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Pointer) {
        let work = Work::Within(from, to, bytes);
        enqueue(stream, work, "cuMemcpyDtoDAsync")
    }
    cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: Pointer) {
        let work = Work::Fill(to, bytes, value);
        enqueue(stream, work, "cuMemsetD8Async")
    }
    cuModuleLoadData(module: *mut Pointer, data: *const c_void) {
        code(Gpu::enter_outside_capture("cuModuleLoadData").and_then(|mut gpu| {
            let loaded = image::load(data.cast());
            let taken = if loaded.is_ok() { "taken" } else { "refused" };
            log(&format!("{taken}: {}", image::describe(data.cast())));
            let loaded = loaded?;
            let id = gpu.handle();
            gpu.modules.insert(id, Arc::new(loaded));
            *module = id as Pointer;
            Ok(())
        }))
    }
    cuModuleUnload(module: Pointer) {
        code(Gpu::enter_outside_capture("cuModuleUnload").and_then(|mut gpu| {
            remove(&mut gpu.modules, module, "a module")?;
            gpu.functions.retain(|_, function| function.module != module as u64);
            Ok(())
        }))
    }
    cuModuleGetFunction(function: *mut Pointer, module: Pointer, name: *const c_char) {
        code(Gpu::enter("cuModuleGetFunction").and_then(|mut gpu| {
            let entry = CStr::from_ptr(name).to_string_lossy().into_owned();
            let Some(loaded) = gpu.modules.get(&(module as u64)).cloned() else {
                return Err(violation(INVALID_HANDLE, "a module that is not there is asked for a function"));
            };
            if !loaded.entries.iter().any(|known| *known == entry || known == image::ANY) {
                return Err(NOT_FOUND);
            }
            let module = module as u64;
            let known = gpu.functions.iter().find(|(_, known)| known.module == module && known.entry == entry);
            let id = match known {
                Some((id, _)) => *id,
                None => gpu.handle(),
            };
            let new = Function { module, loaded, entry, most_shared: SHARED, ready: !loads_lazily() };
            gpu.functions.entry(id).or_insert(new);
            *function = id as Pointer;
            Ok(())
        }))
    }
    cuFuncSetAttribute(function: Pointer, which: c_int, value: c_int) {
        assert_eq!(which, 8);
        log(&format!("shared {value}"));
        code(Gpu::enter("cuFuncSetAttribute").and_then(|mut gpu| {
            let Some(found) = gpu.functions.get_mut(&(function as u64)) else {
                return Err(violation(INVALID_HANDLE, "a function that is not there has an attribute set"));
            };
            if value < 0 || value as u32 > most_shared() {
                return Err(violation(INVALID_VALUE, &format!("{} is to have {value} bytes of shared memory", found.entry)));
            }
            found.most_shared = value as u32;
            Ok(())
        }))
    }
    cuLaunchKernelEx(config: *const LaunchConfig, function: Pointer, params: *mut Pointer, extra: *mut Pointer) {
        assert!(extra.is_null());
        let LaunchConfig { grid, block, shared, stream, attributes, count } = *config;
        let early = match count {
            0 => false,
            1 => { *attributes }.early(),
            _ => return violation(INVALID_VALUE, &format!("{count} attributes of a launch")),
        };
        let ([x, y, z], [bx, by, bz], first) = (grid, block, *(*params).cast::<u64>());
        log(&format!("launch {x} {y} {z}, {bx} {by} {bz}, {shared}, {first}{}", if early { ", early" } else { "" }));
        code(Gpu::enter("cuLaunchKernelEx").and_then(|mut gpu| {
            let Some(found) = gpu.functions.get(&(function as u64)).cloned() else {
                return Err(violation(INVALID_HANDLE, "a function that is not there is launched"));
            };
            let bytes = match kernels().and_then(|_| found.loaded.module()) {
                Some(module) => module.kernel(&found.entry).map_or(0, |kernel| kernel.param_bytes()),
                None => 0,
            };
            let params = std::slice::from_raw_parts((*params).cast::<u8>(), bytes).to_vec();
            let id = gpu.handle();
            let launch = Launch { id, function: found, grid, block, shared, params, early };
            let captured = captures(&gpu, stream);
            launch.check(captured)?;
            if captured && !launch.function.ready {
                if let Some(capture) = gpu.streams.get_mut(&(stream as u64)).and_then(|s| s.capture.as_mut()) {
                    capture.broken = true;
                }
                let entry = &launch.function.entry;
                return Err(violation(CAPTURE_UNSUPPORTED, &format!("{entry} is loaded by its first launch, in a capture")));
            }
            if let Some(function) = gpu.functions.get_mut(&(function as u64)) {
                function.ready = true;
            }
            gpu.enqueue(stream as u64, Work::Launch(launch), "cuLaunchKernelEx")
        }))
    }
    mockCapturing() { c_int::from(Gpu::lock().streams.values().any(|stream| stream.capture.is_some())) }
    mockMultiply(product: *const Product, stream: Pointer) {
        let product = *product;
        let inside = |gpu: &Gpu, address: u64, bytes: usize| {
            let below = gpu.sizes.range(..=address).next_back();
            below.is_some_and(|(start, len)| address as usize + bytes <= *start as usize + len)
        };
        let outcome = Gpu::enter("cublasLtMatmul").and_then(|mut gpu| {
            let [_, _, _, d] = &product.layouts;
            let operands = product.operands.iter().zip(&product.layouts).all(|(at, layout)| inside(&gpu, *at, layout.bytes()));
            let bias = !product.biased || inside(&gpu, product.bias, d.rows * d.size());
            let workspace = product.workspace_bytes == 0 || inside(&gpu, product.workspace, product.workspace_bytes);
            if !operands || !bias || !workspace {
                log("out of bounds");
                return Err(CUBLAS_INVALID_VALUE);
            }
            gpu.enqueue(stream as u64, Work::Product(product), "cublasLtMatmul")
        });
        // The library has codes of its own.
        outcome.err().map_or(SUCCESS, |code| if code == CUBLAS_INVALID_VALUE { code } else { 13 })
    }
}
