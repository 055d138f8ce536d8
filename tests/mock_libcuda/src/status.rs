//! Codes that the libraries return.

use std::ffi::c_int;

pub const SUCCESS: c_int = 0;
pub const INVALID_VALUE: c_int = 1;
pub const OUT_OF_MEMORY: c_int = 2;
pub const NO_DEVICE: c_int = 100;
pub const INVALID_IMAGE: c_int = 200;
pub const INVALID_CONTEXT: c_int = 201;
pub const NO_BINARY_FOR_GPU: c_int = 209;
pub const UNSUPPORTED_PTX_VERSION: c_int = 222;
pub const INVALID_HANDLE: c_int = 400;
pub const NOT_FOUND: c_int = 500;
pub const NOT_READY: c_int = 600;
pub const ILLEGAL_ADDRESS: c_int = 700;
pub const LAUNCH_OUT_OF_RESOURCES: c_int = 701;
pub const MISALIGNED_ADDRESS: c_int = 716;
pub const LAUNCH_FAILED: c_int = 719;
pub const CAPTURE_UNSUPPORTED: c_int = 900;
pub const CAPTURE_INVALIDATED: c_int = 901;
pub const CAPTURE_WRONG_THREAD: c_int = 908;

/// Of cuBLASLt.
pub const CUBLAS_NOT_INITIALIZED: c_int = 1;
pub const CUBLAS_INVALID_VALUE: c_int = 7;
pub const CUBLAS_INTERNAL_ERROR: c_int = 14;
pub const CUBLAS_NOT_SUPPORTED: c_int = 15;

/// Name and description of a code of libcuda, where the mock knows it.
pub fn describe(code: c_int) -> Option<[&'static std::ffi::CStr; 2]> {
    Some(match code {
        INVALID_VALUE => [c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"],
        OUT_OF_MEMORY => [c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"],
        NO_DEVICE => [c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"],
        INVALID_IMAGE => [c"CUDA_ERROR_INVALID_IMAGE", c"device kernel image is invalid"],
        INVALID_CONTEXT => [c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"],
        NO_BINARY_FOR_GPU => {
            [c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"no kernel image is available for execution on the device"]
        }
        UNSUPPORTED_PTX_VERSION => {
            [c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", c"the provided PTX was compiled with an unsupported toolchain."]
        }
        INVALID_HANDLE => [c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"],
        NOT_FOUND => [c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"],
        NOT_READY => [c"CUDA_ERROR_NOT_READY", c"device not ready"],
        ILLEGAL_ADDRESS => [c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"],
        LAUNCH_OUT_OF_RESOURCES => [c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", c"too many resources requested for launch"],
        MISALIGNED_ADDRESS => [c"CUDA_ERROR_MISALIGNED_ADDRESS", c"misaligned address"],
        LAUNCH_FAILED => [c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"],
        CAPTURE_UNSUPPORTED => {
            [c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"operation not permitted when stream is capturing"]
        }
        CAPTURE_INVALIDATED => {
            [c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", c"operation failed due to a previous error during capture"]
        }
        CAPTURE_WRONG_THREAD => [
            c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
            c"attempt to terminate a thread-local capture sequence from another thread",
        ],
        _ => return None,
    })
}
