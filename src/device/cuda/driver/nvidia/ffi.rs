//! The functions of NVIDIA's libraries that are called here, as C declares them: what they return is an integer.
//!
//! cudarc declares the results as Rust enums. A code that a newer library returns and such an enum lacks would be undefined
//! behaviour, so its own wrappers are not called, nor its search, which takes a toolkit's stub for the driver: taken from it are the
//! types of handles and the values of enums that go in. No enum comes out.

use ::cudarc::{cublaslt::sys as lt, driver::sys};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::Path;
use std::sync::OnceLock;

/// The status that a function returned, where that is not success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StatusCode(pub(super) c_int);

impl StatusCode {
    /// No GPU that the driver knows, of libcuda.
    pub(crate) const NO_DEVICE: Self = Self(100);
    /// Out of memory, of libcuda.
    pub(crate) const MEMORY: Self = Self(2);

    fn of(returned: c_int) -> Result<(), Self> {
        if returned == 0 { Ok(()) } else { Err(Self(returned)) }
    }
}

/// The part of a library that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// All of it.
    Library,
    /// A function.
    Function(&'static str),
}

/// A function of a library, of a type that is not known yet.
type Bare = unsafe extern "C" fn();

/// A library's functions: a struct with a pointer to each and a method that calls it. Every one returns a status, 0 for success.
macro_rules! functions {
    ($(#[$about:meta])* $table:ident { $($name:ident($($argument:ident: $kind:ty),* $(,)?);)* }) => {
        $(#[$about])*
        #[allow(non_snake_case)]
        #[derive(Debug)]
        pub(crate) struct $table {
            $($name: unsafe extern "C" fn($($kind),*) -> c_int,)*
        }

        #[allow(non_snake_case, clippy::too_many_arguments)]
        impl $table {
            /// # Safety
            /// The function that `find` gives for a name is the C function of that name as the library's headers declare it.
            unsafe fn load(find: impl Fn(&str) -> Option<Bare>) -> Result<Self, Missing> {
                Ok(Self {
                    $($name: {
                        let name = stringify!($name);
                        let found = find(name).ok_or(Missing::Function(name))?;
                        // SAFETY: the function has the type that is written below, by the caller's promise; a C enum, which
                        // it returns, is an int in the ABIs that CUDA runs on.
                        unsafe { std::mem::transmute::<Bare, unsafe extern "C" fn($($kind),*) -> c_int>(found) }
                    },)*
                })
            }

            $(
                /// # Safety
                /// As the library's manual demands.
                pub(crate) unsafe fn $name(&self, $($argument: $kind),*) -> Result<(), StatusCode> {
                    // SAFETY: the caller's promise.
                    StatusCode::of(unsafe { (self.$name)($($argument),*) })
                }
            )*
        }
    };
}

functions! {
    /// libcuda.
    Cuda {
        cuInit(flags: c_uint);
        cuDriverGetVersion(version: *mut c_int);
        cuGetErrorName(error: c_int, text: *mut *const c_char);
        cuGetErrorString(error: c_int, text: *mut *const c_char);
        cuDeviceGet(device: *mut sys::CUdevice, ordinal: c_int);
        cuDeviceGetCount(count: *mut c_int);
        cuDeviceGetName(name: *mut c_char, len: c_int, device: sys::CUdevice);
        cuDeviceGetAttribute(value: *mut c_int, attribute: sys::CUdevice_attribute, device: sys::CUdevice);
        cuDevicePrimaryCtxRetain(context: *mut sys::CUcontext, device: sys::CUdevice);
        cuDevicePrimaryCtxRelease_v2(device: sys::CUdevice);
        cuCtxSetCurrent(context: sys::CUcontext);
        cuStreamCreate(stream: *mut sys::CUstream, flags: c_uint);
        cuStreamDestroy_v2(stream: sys::CUstream);
        cuStreamSynchronize(stream: sys::CUstream);
        cuStreamBeginCapture_v2(stream: sys::CUstream, mode: sys::CUstreamCaptureMode);
        cuStreamEndCapture(stream: sys::CUstream, graph: *mut sys::CUgraph);
        cuEventCreate(event: *mut sys::CUevent, flags: c_uint);
        cuEventRecord(event: sys::CUevent, stream: sys::CUstream);
        cuEventSynchronize(event: sys::CUevent);
        cuEventElapsedTime(milliseconds: *mut f32, start: sys::CUevent, end: sys::CUevent);
        cuEventDestroy_v2(event: sys::CUevent);
        cuGraphInstantiateWithFlags(ready: *mut sys::CUgraphExec, graph: sys::CUgraph, flags: c_ulonglong);
        cuGraphLaunch(ready: sys::CUgraphExec, stream: sys::CUstream);
        cuGraphDestroy(graph: sys::CUgraph);
        cuGraphExecDestroy(ready: sys::CUgraphExec);
        cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
        cuMemAlloc_v2(address: *mut sys::CUdeviceptr, bytes: usize);
        cuMemFree_v2(address: sys::CUdeviceptr);
        cuMemHostAlloc(start: *mut *mut c_void, bytes: usize, flags: c_uint);
        cuMemFreeHost(start: *mut c_void);
        cuMemcpyHtoDAsync_v2(to: sys::CUdeviceptr, from: *const c_void, bytes: usize, stream: sys::CUstream);
        cuMemcpyDtoHAsync_v2(to: *mut c_void, from: sys::CUdeviceptr, bytes: usize, stream: sys::CUstream);
        cuMemcpyDtoDAsync_v2(to: sys::CUdeviceptr, from: sys::CUdeviceptr, bytes: usize, stream: sys::CUstream);
        cuMemsetD8Async(to: sys::CUdeviceptr, value: u8, bytes: usize, stream: sys::CUstream);
        cuModuleLoadData(module: *mut sys::CUmodule, image: *const c_void);
        cuModuleUnload(module: sys::CUmodule);
        cuModuleGetFunction(function: *mut sys::CUfunction, module: sys::CUmodule, name: *const c_char);
        cuFuncSetAttribute(function: sys::CUfunction, attribute: sys::CUfunction_attribute, value: c_int);
        cuTensorMapEncodeTiled(
            map: *mut sys::CUtensorMap,
            kind: sys::CUtensorMapDataType,
            rank: c_uint,
            address: *mut c_void,
            dims: *const u64,
            strides: *const u64,
            tile: *const c_uint,
            element_strides: *const c_uint,
            interleave: sys::CUtensorMapInterleave,
            swizzle: sys::CUtensorMapSwizzle,
            promotion: sys::CUtensorMapL2promotion,
            fill: sys::CUtensorMapFloatOOBfill,
        );
        cuTensorMapEncodeIm2col(
            map: *mut sys::CUtensorMap,
            kind: sys::CUtensorMapDataType,
            rank: c_uint,
            address: *mut c_void,
            dims: *const u64,
            strides: *const u64,
            lower: *const c_int,
            upper: *const c_int,
            channels: c_uint,
            pixels: c_uint,
            element_strides: *const c_uint,
            interleave: sys::CUtensorMapInterleave,
            swizzle: sys::CUtensorMapSwizzle,
            promotion: sys::CUtensorMapL2promotion,
            fill: sys::CUtensorMapFloatOOBfill,
        );
        cuLaunchKernelEx(
            config: *const sys::CUlaunchConfig,
            function: sys::CUfunction,
            params: *mut *mut c_void,
            extra: *mut *mut c_void,
        );
    }
}

functions! {
    /// libcublasLt.
    CublasLt {
        cublasLtCreate(handle: *mut lt::cublasLtHandle_t);
        cublasLtDestroy(handle: lt::cublasLtHandle_t);
        cublasLtGetProperty(which: lt::libraryPropertyType, value: *mut c_int);
        cublasLtMatmul(
            handle: lt::cublasLtHandle_t,
            operation: lt::cublasLtMatmulDesc_t,
            alpha: *const c_void,
            a: *const c_void,
            a_layout: lt::cublasLtMatrixLayout_t,
            b: *const c_void,
            b_layout: lt::cublasLtMatrixLayout_t,
            beta: *const c_void,
            c: *const c_void,
            c_layout: lt::cublasLtMatrixLayout_t,
            d: *mut c_void,
            d_layout: lt::cublasLtMatrixLayout_t,
            algorithm: *const lt::cublasLtMatmulAlgo_t,
            workspace: *mut c_void,
            workspace_bytes: usize,
            stream: sys::CUstream,
        );
        cublasLtMatmulAlgoCheck(
            handle: lt::cublasLtHandle_t,
            operation: lt::cublasLtMatmulDesc_t,
            a: lt::cublasLtMatrixLayout_t,
            b: lt::cublasLtMatrixLayout_t,
            c: lt::cublasLtMatrixLayout_t,
            d: lt::cublasLtMatrixLayout_t,
            algorithm: *const lt::cublasLtMatmulAlgo_t,
            answer: *mut HeuristicResult,
        );
        cublasLtMatmulAlgoGetHeuristic(
            handle: lt::cublasLtHandle_t,
            operation: lt::cublasLtMatmulDesc_t,
            a: lt::cublasLtMatrixLayout_t,
            b: lt::cublasLtMatrixLayout_t,
            c: lt::cublasLtMatrixLayout_t,
            d: lt::cublasLtMatrixLayout_t,
            preference: lt::cublasLtMatmulPreference_t,
            most: c_int,
            answers: *mut HeuristicResult,
            count: *mut c_int,
        );
        cublasLtMatmulDescCreate(
            operation: *mut lt::cublasLtMatmulDesc_t,
            compute: lt::cublasComputeType_t,
            scale: lt::cudaDataType,
        );
        cublasLtMatmulDescDestroy(operation: lt::cublasLtMatmulDesc_t);
        cublasLtMatmulDescSetAttribute(
            operation: lt::cublasLtMatmulDesc_t,
            which: lt::cublasLtMatmulDescAttributes_t,
            value: *const c_void,
            bytes: usize,
        );
        cublasLtMatmulPreferenceCreate(preference: *mut lt::cublasLtMatmulPreference_t);
        cublasLtMatmulPreferenceDestroy(preference: lt::cublasLtMatmulPreference_t);
        cublasLtMatmulPreferenceSetAttribute(
            preference: lt::cublasLtMatmulPreference_t,
            which: lt::cublasLtMatmulPreferenceAttributes_t,
            value: *const c_void,
            bytes: usize,
        );
        cublasLtMatrixLayoutCreate(
            layout: *mut lt::cublasLtMatrixLayout_t,
            kind: lt::cudaDataType,
            rows: u64,
            columns: u64,
            leading: i64,
        );
        cublasLtMatrixLayoutDestroy(layout: lt::cublasLtMatrixLayout_t);
        cublasLtMatrixLayoutSetAttribute(
            layout: lt::cublasLtMatrixLayout_t,
            which: lt::cublasLtMatrixLayoutAttribute_t,
            value: *const c_void,
            bytes: usize,
        );
    }
}

/// cuBLASLt's `cublasLtMatmulHeuristicResult_t`, whose status cudarc has as an enum.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeuristicResult {
    pub(crate) algorithm: lt::cublasLtMatmulAlgo_t,
    pub(crate) workspace: usize,
    pub(crate) status: c_int,
    pub(crate) waves: f32,
    reserved: [c_int; 4],
}

impl HeuristicResult {
    /// Room for one. Its status is `NOT_INITIALIZED`.
    pub(crate) const EMPTY: Self = Self {
        algorithm: lt::cublasLtMatmulAlgo_t { data: [0; 8] },
        workspace: 0,
        status: 1,
        waves: 0.0,
        reserved: [0; 4],
    };
}

const _: () = {
    use std::mem::offset_of;
    type Theirs = lt::cublasLtMatmulHeuristicResult_t;
    assert!(
        size_of::<HeuristicResult>() == size_of::<Theirs>() && align_of::<HeuristicResult>() == align_of::<Theirs>()
    );
    assert!(offset_of!(HeuristicResult, workspace) == offset_of!(Theirs, workspaceSize));
    assert!(offset_of!(HeuristicResult, status) == offset_of!(Theirs, state));
    assert!(offset_of!(HeuristicResult, waves) == offset_of!(Theirs, wavesCount));
};

/// The code of a library that stands in for the driver's where a toolkit is installed and no driver.
const STUB: StatusCode = StatusCode(34);

/// libcuda's functions, loaded at the first call: of the driver's own file, then of the name that a toolkit's stub has, too.
pub(crate) fn cuda() -> Result<&'static Cuda, Missing> {
    static TABLE: OnceLock<Result<Cuda, Missing>> = OnceLock::new();
    let load = || {
        let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
        let mut last = Missing::Library;
        for name in names {
            // SAFETY: the functions of libcuda have the declared types in CUDA 12 and 13; a name carries its version.
            match unsafe { open(Path::new(name)) }.and_then(|find| unsafe { Cuda::load(find) }) {
                // SAFETY: may be called at any time, and again.
                Ok(table) if unsafe { table.cuInit(0) } == Err(STUB) => {}
                Ok(table) => return Ok(table),
                Err(Missing::Library) => {}
                Err(what) => last = what,
            }
        }
        Err(last)
    };
    TABLE.get_or_init(load).as_ref().map_err(|missing| *missing)
}

impl CublasLt {
    /// The functions of a file, which stays loaded.
    pub(crate) fn open(file: &Path) -> Result<&'static Self, Missing> {
        // SAFETY: the functions have the declared types in cuBLASLt 12 and 13. The stream's type is the same C struct under
        // another name.
        let table = unsafe { open(file).and_then(|find| Self::load(find)) }?;
        Ok(Box::leak(Box::new(table)))
    }
}

/// Loads a library for good. The result finds a function by its name.
///
/// # Safety
/// The library is one of NVIDIA's, whose initialisers have no preconditions.
unsafe fn open(file: &Path) -> Result<impl Fn(&str) -> Option<Bare>, Missing> {
    // SAFETY: the caller's promise.
    let library = unsafe { Library::new(file) }.map_err(|error| {
        tracing::debug!(file = %file.display(), %error, "a library does not load");
        Missing::Library
    })?;
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: the symbol is not called as what it is typed here.
    Ok(move |name: &str| unsafe { library.get::<Bare>(name.as_bytes()) }.ok().map(|symbol| *symbol))
}

/// A code of libcuda: its name, its number and what the driver says of it.
pub(crate) fn describe(cuda: &Cuda, code: StatusCode) -> String {
    let ask = |which: unsafe fn(&Cuda, c_int, *mut *const c_char) -> Result<(), StatusCode>| {
        let mut text = std::ptr::null();
        // SAFETY: one of the two functions below, which write a pointer to a constant string, or a null one.
        let asked = unsafe { which(cuda, code.0, &mut text) };
        if asked.is_err() || text.is_null() {
            return None;
        }
        // SAFETY: a string with a terminator that stays as long as the library.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    match (ask(Cuda::cuGetErrorName), ask(Cuda::cuGetErrorString)) {
        (Some(name), Some(text)) => format!("{name}, {} ({text})", code.0),
        (Some(name), None) => format!("{name}, {}", code.0),
        (None, _) => format!("error {}, which the driver has no name for", code.0),
    }
}

/// A status of cuBLASLt: its name and number.
pub(crate) fn status(code: StatusCode) -> String {
    let name = match code.0 {
        1 => "NOT_INITIALIZED",
        3 => "ALLOC_FAILED",
        7 => "INVALID_VALUE",
        8 => "ARCH_MISMATCH",
        11 => "MAPPING_ERROR",
        13 => "EXECUTION_FAILED",
        14 => "INTERNAL_ERROR",
        15 => "NOT_SUPPORTED",
        16 => "LICENSE_ERROR",
        other => return format!("status {other}, which has no name here"),
    };
    format!("CUBLAS_STATUS_{name}, {}", code.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn nothing() {}

    /// Stands for `cuInit`: returns 98765, which no header has.
    unsafe extern "C" fn later(_: c_uint) -> c_int {
        98765
    }

    unsafe extern "C" fn name(code: c_int, text: *mut *const c_char) -> c_int {
        if code != 719 {
            return 1;
        }
        // SAFETY: `describe` gives a place for a pointer.
        unsafe { *text = c"CUDA_ERROR_LAUNCH_FAILED".as_ptr() };
        0
    }

    fn fake() -> Cuda {
        type Init = unsafe extern "C" fn(c_uint) -> c_int;
        type Name = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
        // SAFETY: these three have the types that they are called with; the others are not called.
        unsafe {
            let init = std::mem::transmute::<Init, Bare>(later);
            let named = std::mem::transmute::<Name, Bare>(name);
            let find = |which: &str| match which {
                "cuInit" => init,
                "cuGetErrorName" | "cuGetErrorString" => named,
                _ => nothing,
            };
            Cuda::load(|which| Some(find(which))).unwrap()
        }
    }

    #[test]
    fn unknown_code() {
        let cuda = fake();
        // SAFETY: the fake does nothing.
        let code = unsafe { cuda.cuInit(0) }.unwrap_err();
        assert_eq!(code, StatusCode(98765));
        assert_eq!(describe(&cuda, code), "error 98765, which the driver has no name for");
        let text = describe(&cuda, StatusCode(719));
        assert_eq!(text, "CUDA_ERROR_LAUNCH_FAILED, 719 (CUDA_ERROR_LAUNCH_FAILED)");
        assert_eq!(status(StatusCode(14)), "CUBLAS_STATUS_INTERNAL_ERROR, 14");
        assert_eq!(status(StatusCode(-7)), "status -7, which has no name here");
    }

    #[test]
    fn missing_function() {
        // SAFETY: nothing is called.
        let load = |lacks: &str| unsafe { CublasLt::load(|which| (which != lacks).then_some(nothing as Bare)) };
        assert_eq!(load("cublasLtMatmul").unwrap_err(), Missing::Function("cublasLtMatmul"));
        assert!(load("cublasLtOther").is_ok());
    }
}
