//! libcuda and libcublasLt without a GPU: the functions that Braid calls, in one library under both names, on memory of the host.
//!
//! Products of bf16 are computed; everything else of a device is a number. Time is a clock that products move on by what
//! STAND_IN_TIMES says of their algorithm. STAND_IN_LOG is a file to which calls are written. STAND_IN_FAULT
//! (`cuEventRecord=98765`) makes a function return a code. STAND_IN_BROKEN is the number of an algorithm that does not run.

#![allow(non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]

use std::collections::BTreeMap;
use std::env::var;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

static CLOCK: AtomicU64 = AtomicU64::new(0);
static CAPTURING: AtomicBool = AtomicBool::new(false);
/// Addresses and lengths of what is allocated.
static MEMORY: Mutex<BTreeMap<u64, usize>> = Mutex::new(BTreeMap::new());
/// Live descriptors, events and handles.
static HANDLES: Mutex<Vec<u64>> = Mutex::new(Vec::new());

type Pointer = *mut c_void;

fn log(line: &str) {
    let Ok(path) = var("STAND_IN_LOG") else { return };
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}

/// The code that this function is to return.
fn fault(name: &str) -> c_int {
    let set = var("STAND_IN_FAULT").unwrap_or_default();
    let code = set.split_once('=').filter(|(which, _)| *which == name).and_then(|(_, code)| code.parse().ok());
    if let Some(code) = code {
        log(&format!("{name} fails"));
        return code;
    }
    0
}

fn times() -> Vec<u64> {
    var("STAND_IN_TIMES").unwrap_or_default().split(',').filter_map(|time| time.parse().ok()).collect()
}

unsafe fn made<T>(to: *mut Pointer, value: T) -> c_int {
    let address = Box::into_raw(Box::new(value)) as u64;
    HANDLES.lock().unwrap().push(address);
    unsafe { *to = address as Pointer };
    0
}

unsafe fn gone<T>(handle: Pointer) -> c_int {
    let mut handles = HANDLES.lock().unwrap();
    let Some(at) = handles.iter().position(|live| *live == handle as u64) else { return 1 };
    handles.remove(at);
    drop(unsafe { Box::from_raw(handle.cast::<T>()) });
    0
}

/// Whether bytes lie within one allocation.
fn inside(address: u64, bytes: usize) -> bool {
    let memory = MEMORY.lock().unwrap();
    memory.range(..=address).next_back().is_some_and(|(start, len)| address as usize + bytes <= *start as usize + len)
}

macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),*) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $kind),*) -> c_int {
            #[allow(unused_unsafe)]
            match fault(stringify!($name)) {
                0 => unsafe { $body },
                code => code,
            }
        }
    )*};
}

functions! {
    cuInit(_flags: c_uint) { 0 }
    cuDriverGetVersion(version: *mut c_int) { *version = 13040; 0 }
    cuGetErrorName(error: c_int, text: *mut *const c_char) {
        *text = if error == 700 { c"CUDA_ERROR_ILLEGAL_ADDRESS".as_ptr() } else { std::ptr::null() };
        i32::from(error != 700)
    }
    cuGetErrorString(error: c_int, text: *mut *const c_char) {
        *text = if error == 700 { c"an illegal memory access was encountered".as_ptr() } else { std::ptr::null() };
        i32::from(error != 700)
    }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) { *device = ordinal; 0 }
    cuDeviceGetCount(count: *mut c_int) { *count = 1; 0 }
    cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) {
        let text = b"stand-in\0";
        assert!(len as usize >= text.len());
        name.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
        0
    }
    cuDeviceGetAttribute(value: *mut c_int, which: c_int, _device: c_int) {
        *value = match which { 75 => 8, 76 => 0, 16 => 100, _ => return 1 };
        0
    }
    cuDevicePrimaryCtxRetain(context: *mut Pointer, _device: c_int) { made(context, ()) }
    cuDevicePrimaryCtxRelease_v2(_device: c_int) { log(&format!("released, {} left", HANDLES.lock().unwrap().len() - 1)); 0 }
    cuCtxSetCurrent(context: Pointer) { i32::from(context.is_null()) }
    cuStreamCreate(stream: *mut Pointer, flags: c_uint) { assert_eq!(flags, 1); made(stream, 1u8) }
    cuStreamDestroy_v2(stream: Pointer) { gone::<u8>(stream) }
    cuStreamSynchronize(_stream: Pointer) { if CAPTURING.load(SeqCst) { 900 } else { 0 } }
    cuStreamBeginCapture_v2(_stream: Pointer, mode: c_int) { assert_eq!(mode, 1); CAPTURING.store(true, SeqCst); 0 }
    cuStreamEndCapture(_stream: Pointer, graph: *mut Pointer) { CAPTURING.store(false, SeqCst); made(graph, 2u8) }
    cuEventCreate(event: *mut Pointer, _flags: c_uint) { made(event, 0u64) }
    cuEventRecord(event: Pointer, _stream: Pointer) { *event.cast::<u64>() = CLOCK.load(SeqCst); 0 }
    cuEventSynchronize(_event: Pointer) { 0 }
    cuEventElapsedTime(time: *mut f32, start: Pointer, end: Pointer) {
        *time = (*end.cast::<u64>() - *start.cast::<u64>()) as f32;
        0
    }
    cuEventDestroy_v2(event: Pointer) { gone::<u64>(event) }
    cuGraphInstantiateWithFlags(ready: *mut Pointer, _graph: Pointer, flags: c_ulonglong) { assert_eq!(flags, 0); made(ready, 3u8) }
    cuGraphLaunch(_ready: Pointer, _stream: Pointer) { 0 }
    cuGraphDestroy(graph: Pointer) { gone::<u8>(graph) }
    cuGraphExecDestroy(ready: Pointer) { gone::<u8>(ready) }
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize) { (*free, *total) = (6 << 30, 8 << 30); 0 }
    cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        if CAPTURING.load(SeqCst) { return 900 }
        if bytes > 1 << 30 { return 2 }
        // As an allocation of libcuda, at a multiple of 256.
        let memory = vec![0xa5u8; bytes + 256].leak().as_mut_ptr() as u64;
        *address = memory.next_multiple_of(256);
        MEMORY.lock().unwrap().insert(*address, bytes);
        log(&format!("allocate {bytes}"));
        0
    }
    cuMemFree_v2(address: u64) { i32::from(MEMORY.lock().unwrap().remove(&address).is_none()) }
    cuMemHostAlloc(start: *mut Pointer, bytes: usize, flags: c_uint) {
        assert_eq!(flags, 1);
        *start = vec![0u8; bytes].leak().as_mut_ptr().cast();
        0
    }
    cuMemFreeHost(_start: Pointer) { 0 }
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: Pointer) {
        if !inside(to, bytes) { return 1 }
        (to as *mut u8).copy_from(from.cast(), bytes);
        0
    }
    cuMemcpyDtoHAsync_v2(to: Pointer, from: u64, bytes: usize, _stream: Pointer) {
        if !inside(from, bytes) { return 1 }
        to.cast::<u8>().copy_from(from as *const u8, bytes);
        0
    }
    cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: Pointer) {
        if !inside(to, bytes) || !inside(from, bytes) { return 1 }
        (to as *mut u8).copy_from(from as *const u8, bytes);
        0
    }
    cuMemsetD8Async(to: u64, value: u8, bytes: usize, _stream: Pointer) {
        if !inside(to, bytes) { return 1 }
        (to as *mut u8).write_bytes(value, bytes);
        0
    }
    cuModuleLoadData(module: *mut Pointer, _image: *const c_void) { made(module, 4u8) }
    cuModuleUnload(module: Pointer) { gone::<u8>(module) }
    cuModuleGetFunction(function: *mut Pointer, _module: Pointer, _name: *const c_char) { *function = 8 as Pointer; 0 }
    cuFuncSetAttribute(_function: Pointer, which: c_int, value: c_int) {
        assert_eq!(which, 8);
        log(&format!("shared {value}"));
        0
    }
    cuLaunchKernel(_f: Pointer, x: c_uint, y: c_uint, z: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
                   _stream: Pointer, params: *mut Pointer, extra: *mut Pointer) {
        assert!(extra.is_null());
        let first = *(*params).cast::<u64>();
        log(&format!("launch {x} {y} {z}, {bx} {by} {bz}, {shared}, {first}"));
        0
    }
}

pub struct Layout {
    kind: c_int,
    rows: usize,
    columns: usize,
    leading: usize,
    images: usize,
    stride: usize,
}

#[derive(Default)]
pub struct Operation {
    transposed: [bool; 2],
    biased: bool,
    bias: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Answer {
    algorithm: [u64; 8],
    workspace: usize,
    status: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

fn answer(number: u64) -> Answer {
    let algorithm = [number, 0xb2a1d, 0, 0, 0, 0, 0, 1];
    Answer { algorithm, workspace: 1 << 20, status: 0, waves: 1.0, reserved: [0; 4] }
}

impl Layout {
    fn size(&self) -> usize {
        if self.kind == 0 { 4 } else { 2 }
    }

    fn at(&self, data: u64, image: usize, row: usize, column: usize) -> u64 {
        data + ((image * self.stride + column * self.leading + row) * self.size()) as u64
    }

    unsafe fn read(&self, data: u64, image: usize, row: usize, column: usize) -> f32 {
        let at = self.at(data, image, row, column);
        unsafe { if self.size() == 4 { *(at as *const f32) } else { bf16(at) } }
    }

    /// Whether the matrix of the last image lies in memory.
    fn fits(&self, data: u64) -> bool {
        let last = self.at(data, self.images - 1, self.rows - 1, self.columns - 1);
        inside(data, (last - data) as usize + self.size()) && data % 16 == 0 && self.rows <= self.leading
    }
}

unsafe fn bf16(at: u64) -> f32 {
    f32::from_bits(u32::from(unsafe { *(at as *const u16) }) << 16)
}

functions! {
    cublasLtCreate(handle: *mut Pointer) { made(handle, 5u8) }
    cublasLtDestroy(handle: Pointer) { gone::<u8>(handle) }
    cublasLtGetProperty(which: c_int, value: *mut c_int) { *value = [13, 1, 7][which as usize]; 0 }
    cublasLtMatmulDescCreate(operation: *mut Pointer, compute: c_int, scale: c_int) {
        assert_eq!((compute, scale), (68, 0));
        made(operation, Operation::default())
    }
    cublasLtMatmulDescDestroy(operation: Pointer) { gone::<Operation>(operation) }
    cublasLtMatmulDescSetAttribute(operation: Pointer, which: c_int, value: *const c_void, bytes: usize) {
        let operation = &mut *operation.cast::<Operation>();
        match (which, bytes) {
            (3 | 4, 4) => operation.transposed[which as usize - 3] = *value.cast::<i32>() == 1,
            (7, 4) => operation.biased = *value.cast::<i32>() == 4,
            (8, 8) => operation.bias = *value.cast::<u64>(),
            _ => return 7,
        }
        0
    }
    cublasLtMatmulPreferenceCreate(preference: *mut Pointer) { made(preference, 6u8) }
    cublasLtMatmulPreferenceDestroy(preference: Pointer) { gone::<u8>(preference) }
    cublasLtMatmulPreferenceSetAttribute(_preference: Pointer, which: c_int, value: *const c_void, bytes: usize) {
        let value = if bytes == 8 { *value.cast::<u64>() } else { u64::from(*value.cast::<u32>()) };
        i32::from(![(1, 32 << 20, 8), (3, 2, 4), (5, 16, 4), (6, 16, 4), (7, 16, 4), (8, 16, 4)].contains(&(which, value, bytes))) * 7
    }
    cublasLtMatrixLayoutCreate(layout: *mut Pointer, kind: c_int, rows: u64, columns: u64, leading: i64) {
        let (rows, columns, leading) = (rows as usize, columns as usize, leading as usize);
        made(layout, Layout { kind, rows, columns, leading, images: 1, stride: 0 })
    }
    cublasLtMatrixLayoutDestroy(layout: Pointer) { gone::<Layout>(layout) }
    cublasLtMatrixLayoutSetAttribute(layout: Pointer, which: c_int, value: *const c_void, bytes: usize) {
        let layout = &mut *layout.cast::<Layout>();
        match (which, bytes) {
            (5, 4) => layout.images = *value.cast::<i32>() as usize,
            (6, 8) => layout.stride = *value.cast::<i64>() as usize,
            _ => return 7,
        }
        0
    }
    cublasLtMatmulAlgoGetHeuristic(_handle: Pointer, _operation: Pointer, a: Pointer, _b: Pointer, _c: Pointer, _d: Pointer,
                                   _preference: Pointer, most: c_int, answers: *mut Answer, count: *mut c_int) {
        log(&format!("suggest {most} for {} image(s)", (*a.cast::<Layout>()).images));
        *count = (times().len() as c_int).min(most);
        for number in 0..*count {
            *answers.add(number as usize) = answer(number as u64);
        }
        0
    }
    cublasLtMatmulAlgoCheck(_handle: Pointer, _operation: Pointer, a: Pointer, _b: Pointer, _c: Pointer, _d: Pointer,
                            algorithm: *const [u64; 8], to: *mut Answer) {
        let number = (*algorithm)[0];
        let known = *algorithm == answer(number).algorithm && (number as usize) < times().len();
        // One by one is what the stand-in's third algorithm wants.
        if !known || (number == 2 && (*a.cast::<Layout>()).images > 1) { return 15 }
        *to = answer(number);
        0
    }
    cublasLtMatmul(_handle: Pointer, operation: Pointer, alpha: *const f32, a: u64, a_layout: *const Layout, b: u64,
                   b_layout: *const Layout, beta: *const f32, c: u64, c_layout: *const Layout, d: u64, d_layout: *const Layout,
                   algorithm: *const [u64; 8], workspace: u64, bytes: usize, _stream: Pointer) {
        let operation = &*operation.cast::<Operation>();
        let (number, [al, bl, cl, dl]) = ((*algorithm)[0], [&*a_layout, &*b_layout, &*c_layout, &*d_layout]);
        if var("STAND_IN_BROKEN").is_ok_and(|broken| broken == number.to_string()) { return 15 }
        let all = al.fits(a) && bl.fits(b) && cl.fits(c) && dl.fits(d) && inside(workspace, bytes) && bytes == 32 << 20;
        if !all || (operation.biased && !inside(operation.bias, dl.rows * dl.size())) {
            log("out of bounds");
            return 7;
        }
        log(&format!("multiply {number} {}", dl.images));
        if CAPTURING.load(SeqCst) { return 0 }
        CLOCK.fetch_add(times()[number as usize], SeqCst);
        let k = if operation.transposed[0] { al.rows } else { al.columns };
        for image in 0..dl.images {
            for (row, column) in (0..dl.rows).flat_map(|row| (0..dl.columns).map(move |column| (row, column))) {
                let mut sum = 0.0;
                for l in 0..k {
                    let x = if operation.transposed[0] { al.read(a, image, l, row) } else { al.read(a, image, row, l) };
                    let y = if operation.transposed[1] { bl.read(b, image, column, l) } else { bl.read(b, image, l, column) };
                    sum += x * y;
                }
                sum *= *alpha;
                if *beta != 0.0 { sum += *beta * cl.read(c, image, row, column) }
                if operation.biased { sum += bf16(operation.bias + 2 * row as u64) }
                let to = dl.at(d, image, row, column);
                if dl.size() == 4 { *(to as *mut f32) = sum } else { *(to as *mut u16) = (sum.to_bits() >> 16) as u16 }
            }
        }
        0
    }
}
