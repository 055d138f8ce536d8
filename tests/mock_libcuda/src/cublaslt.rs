//! The functions of cuBLASLt. Algorithms are numbers, and some have a way of their own ([`ONE_IMAGE`], [`SPLIT`],
//! [`COLUMNS_DECIDE`](super::product::COLUMNS_DECIDE)).

use super::driver::functions;
use super::product::{Layout, Product};
use super::settings::{broken, driver_version, file_number, log, starts, times};
use super::status::*;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Pointer = *mut c_void;

/// The algorithm that takes no more columns than a layout was created with.
const ONE_IMAGE: u64 = 2;
/// The algorithm that splits sums and joins them in a workspace, by any scheme.
const SPLIT: u64 = 4;
/// Bytes of workspace that it needs.
const WORKSPACE: usize = 1 << 20;

/// The limits of a preference: bytes of workspace, and schemes by which split sums may be joined. As cuBLASLt's own at first.
#[derive(Clone, Copy)]
struct Preference {
    workspace: u64,
    reduction: u64,
}

impl Preference {
    fn allows(self, number: u64) -> bool {
        number != SPLIT || (self.workspace >= WORKSPACE as u64 && self.reduction != 0)
    }
}

#[derive(Default)]
struct Operation {
    transposed: [bool; 2],
    biased: bool,
    bias: u64,
}

/// The descriptors and handles that are alive.
#[derive(Default)]
struct Descriptors {
    next: u64,
    handles: BTreeMap<u64, ()>,
    preferences: BTreeMap<u64, Preference>,
    operations: BTreeMap<u64, Operation>,
    layouts: BTreeMap<u64, Layout>,
}

static DESCRIPTORS: Mutex<Descriptors> = Mutex::new(Descriptors {
    next: 0,
    handles: BTreeMap::new(),
    preferences: BTreeMap::new(),
    operations: BTreeMap::new(),
    layouts: BTreeMap::new(),
});

fn descriptors() -> MutexGuard<'static, Descriptors> {
    DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Descriptors that are alive in this library.
pub fn alive() -> usize {
    let all = descriptors();
    all.handles.len() + all.preferences.len() + all.operations.len() + all.layouts.len()
}

unsafe fn created<T>(to: *mut Pointer, value: T, all: impl FnOnce(&mut Descriptors) -> &mut BTreeMap<u64, T>) -> c_int {
    let mut descriptors = descriptors();
    descriptors.next += 16;
    let id = descriptors.next;
    all(&mut descriptors).insert(id, value);
    // SAFETY: the caller gives a place for a handle.
    unsafe { *to = id as Pointer };
    SUCCESS
}

fn destroyed<T>(handle: Pointer, all: impl FnOnce(&mut Descriptors) -> &mut BTreeMap<u64, T>) -> c_int {
    let mut descriptors = descriptors();
    if all(&mut descriptors).remove(&(handle as u64)).is_none() {
        log("violation: a descriptor is destroyed twice");
        return CUBLAS_INVALID_VALUE;
    }
    SUCCESS
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
    let workspace = if number == SPLIT { WORKSPACE } else { 0 };
    Answer { algorithm, workspace, status: 0, waves: 1.0, reserved: [0; 4] }
}

/// The number behind the library's name, `libcublasLt.so.12`; 13 where there is none.
fn major() -> c_int {
    file_number(cublasLtGetProperty as *const c_void, "libcublasLt.so.").unwrap_or(13)
}

/// A function of the libcuda that is loaded.
fn of_libcuda(function: &CStr) -> Option<Pointer> {
    for name in [c"libcuda.so.1", c"libcuda.so"] {
        // SAFETY: asks for a library that is loaded already.
        unsafe {
            let library = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
            if !library.is_null() {
                return Some(libc::dlsym(library, function.as_ptr())).filter(|found| !found.is_null());
            }
        }
    }
    None
}

/// Gives a product to libcuda.
unsafe fn hand_over(product: &Product, stream: Pointer) -> c_int {
    type Multiply = unsafe extern "C" fn(*const Product, Pointer) -> c_int;
    let Some(function) = of_libcuda(c"mockMultiply") else { return CUBLAS_NOT_INITIALIZED };
    // SAFETY: it has this type there.
    unsafe { std::mem::transmute::<Pointer, Multiply>(function)(product, stream) }
}

/// Whether a stream of the process captures.
fn capturing() -> bool {
    type Capturing = unsafe extern "C" fn() -> c_int;
    // SAFETY: as above.
    of_libcuda(c"mockCapturing").is_some_and(|f| unsafe { std::mem::transmute::<Pointer, Capturing>(f)() } != 0)
}

functions! {
    cublasLtCreate(handle: *mut Pointer) {
        if major() > driver_version() / 1000 || !starts() {
            log(&format!("cuBLASLt {} does not start", major()));
            return CUBLAS_NOT_INITIALIZED;
        }
        log(&format!("cuBLASLt {} starts", major()));
        created(handle, (), |all| &mut all.handles)
    }
    cublasLtDestroy(handle: Pointer) { destroyed(handle, |all| &mut all.handles) }
    cublasLtGetProperty(which: c_int, value: *mut c_int) { *value = [major(), 1, 7][which as usize]; SUCCESS }
    cublasLtMatmulDescCreate(operation: *mut Pointer, compute: c_int, scale: c_int) {
        assert_eq!((compute, scale), (68, 0));
        created(operation, Operation::default(), |all| &mut all.operations)
    }
    cublasLtMatmulDescDestroy(operation: Pointer) { destroyed(operation, |all| &mut all.operations) }
    cublasLtMatmulDescSetAttribute(operation: Pointer, which: c_int, value: *const c_void, bytes: usize) {
        let mut descriptors = descriptors();
        let Some(operation) = descriptors.operations.get_mut(&(operation as u64)) else { return CUBLAS_INVALID_VALUE };
        match (which, bytes) {
            (3 | 4, 4) => operation.transposed[which as usize - 3] = *value.cast::<i32>() == 1,
            (7, 4) => operation.biased = *value.cast::<i32>() == 4,
            (8, 8) => operation.bias = *value.cast::<u64>(),
            _ => return CUBLAS_INVALID_VALUE,
        }
        SUCCESS
    }
    cublasLtMatmulPreferenceCreate(preference: *mut Pointer) {
        created(preference, Preference { workspace: 0, reduction: u64::from(u32::MAX) }, |all| &mut all.preferences)
    }
    cublasLtMatmulPreferenceDestroy(preference: Pointer) { destroyed(preference, |all| &mut all.preferences) }
    cublasLtMatmulPreferenceSetAttribute(preference: Pointer, which: c_int, value: *const c_void, bytes: usize) {
        let value = if bytes == 8 { *value.cast::<u64>() } else { u64::from(*value.cast::<u32>()) };
        let mut descriptors = descriptors();
        let Some(preference) = descriptors.preferences.get_mut(&(preference as u64)) else { return CUBLAS_INVALID_VALUE };
        match (which, bytes, value) {
            (1, 8, value) => preference.workspace = value,
            (3, 4, value) => preference.reduction = value,
            (5..=8, 4, 16) => {}
            _ => return CUBLAS_INVALID_VALUE,
        }
        SUCCESS
    }
    cublasLtMatrixLayoutCreate(layout: *mut Pointer, kind: c_int, rows: u64, columns: u64, leading: i64) {
        let (rows, columns, leading) = (rows as usize, columns as usize, leading as usize);
        let value = Layout { kind, rows, columns, leading, created: columns };
        created(layout, value, |all| &mut all.layouts)
    }
    cublasLtMatrixLayoutDestroy(layout: Pointer) { destroyed(layout, |all| &mut all.layouts) }
    cublasLtMatrixLayoutSetAttribute(layout: Pointer, which: c_int, value: *const c_void, bytes: usize) {
        let mut descriptors = descriptors();
        let Some(layout) = descriptors.layouts.get_mut(&(layout as u64)) else { return CUBLAS_INVALID_VALUE };
        match (which, bytes) {
            (3, 8) => layout.columns = *value.cast::<u64>() as usize,
            _ => return CUBLAS_INVALID_VALUE,
        }
        SUCCESS
    }
    cublasLtMatmulAlgoGetHeuristic(_handle: Pointer, _operation: Pointer, _a: Pointer, _b: Pointer, _c: Pointer, d: Pointer,
                                   preference: Pointer, most: c_int, answers: *mut Answer, count: *mut c_int) {
        // As version 13.3 does.
        if capturing() {
            log("violation: algorithms are asked for while a stream captures");
            return CUBLAS_INTERNAL_ERROR;
        }
        let descriptors = descriptors();
        let found = (descriptors.layouts.get(&(d as u64)), descriptors.preferences.get(&(preference as u64)));
        let (Some(layout), Some(preference)) = found else { return CUBLAS_INVALID_VALUE };
        log(&format!("suggest {most} for {} columns", layout.columns));
        let allowed = (0..times().len() as u64).filter(|number| preference.allows(*number));
        *count = 0;
        for number in allowed.take(most as usize) {
            *answers.add(*count as usize) = answer(number);
            *count += 1;
        }
        SUCCESS
    }
    cublasLtMatmulAlgoCheck(_handle: Pointer, _operation: Pointer, _a: Pointer, b: Pointer, c: Pointer, d: Pointer,
                            algorithm: *const [u64; 8], to: *mut Answer) {
        let number = (*algorithm)[0];
        let known = *algorithm == answer(number).algorithm && (number as usize) < times().len();
        let descriptors = descriptors();
        let layouts = [b, c, d].map(|layout| descriptors.layouts.get(&(layout as u64)).copied());
        let [Some(b), Some(c), Some(d)] = layouts else { return CUBLAS_INVALID_VALUE };
        // B is not transposed in any product of these tests.
        let one_size = b.columns == d.columns && c.columns == d.columns;
        if !known || !one_size || (number == ONE_IMAGE && d.columns > d.created) { return CUBLAS_NOT_SUPPORTED }
        *to = answer(number);
        SUCCESS
    }
    cublasLtMatmul(handle: Pointer, operation: Pointer, alpha: *const f32, a: u64, a_layout: Pointer, b: u64,
                   b_layout: Pointer, beta: *const f32, c: u64, c_layout: Pointer, d: u64, d_layout: Pointer,
                   algorithm: *const [u64; 8], workspace: u64, workspace_bytes: usize, stream: Pointer) {
        let algorithm = (*algorithm)[0];
        if broken() == Some(algorithm) { return CUBLAS_NOT_SUPPORTED }
        let descriptors = descriptors();
        let layout = |handle: Pointer| descriptors.layouts.get(&(handle as u64)).copied();
        let layouts = [layout(a_layout), layout(b_layout), layout(c_layout), layout(d_layout)];
        let operation = descriptors.operations.get(&(operation as u64));
        let ([Some(al), Some(bl), Some(cl), Some(dl)], Some(operation)) = (layouts, operation) else {
            log("violation: a product of descriptors that are not there");
            return CUBLAS_INVALID_VALUE;
        };
        if !descriptors.handles.contains_key(&(handle as u64)) {
            return CUBLAS_NOT_INITIALIZED;
        }
        let product = Product {
            algorithm,
            transposed: operation.transposed,
            biased: operation.biased,
            bias: operation.bias,
            factors: [*alpha, *beta],
            operands: [a, b, c, d],
            layouts: [al, bl, cl, dl],
            workspace,
            workspace_bytes,
        };
        let shape = |layout: &Layout, turned| if turned { [layout.columns, layout.rows] } else { [layout.rows, layout.columns] };
        let ([m, k], [inner, n]) = (shape(&al, product.transposed[0]), shape(&bl, product.transposed[1]));
        let fits = k == inner && [dl, cl].iter().all(|l| [l.rows, l.columns] == [m, n]);
        let aligned = product.operands.iter().all(|address| address % 16 == 0);
        let columns = product.layouts.iter().all(|l| l.rows <= l.leading);
        if !fits || !aligned || !columns || (workspace == 0) != (workspace_bytes == 0) {
            log("violation: a product whose descriptors do not fit");
            return CUBLAS_INVALID_VALUE;
        }
        if workspace_bytes < answer(algorithm).workspace || (algorithm == ONE_IMAGE && dl.columns > dl.created) {
            log(&format!("refused {algorithm} {}", dl.columns));
            return CUBLAS_NOT_SUPPORTED;
        }
        log(&format!("multiply {algorithm} {}", dl.columns));
        drop(descriptors);
        hand_over(&product, stream)
    }
}
