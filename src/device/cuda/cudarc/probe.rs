//! What must be there before the first call: the driver's library, each of its functions, a driver that is new enough.

use super::{describe, missing};
use crate::device::cuda::kernels;
use crate::error::{Error, Result};
use ::cudarc::driver::{result, sys};

/// Every function of libcuda that is called here.
const FUNCTIONS: [&str; 37] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
];

/// An error before there is a device.
pub(super) fn early(call: &str, error: result::DriverError) -> Error {
    let text = describe(error);
    missing(format!("{call}: {text}; is a GPU there and its driver loaded (nvidia-smi)? --device cpu needs none"))
}

/// Starts the driver.
pub(super) fn probe() -> Result<()> {
    // SAFETY: loads a library and forgets it again; libcuda's initialisers have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
        let place = if cfg!(windows) { "PATH" } else { "the system's library folders and LD_LIBRARY_PATH" };
        return Err(missing(format!(
            "the NVIDIA driver's library {name} was not found in {place}; install the driver, or use --device cpu"
        )));
    }
    for name in FUNCTIONS {
        // SAFETY: the library is there, and the symbol is not called.
        if unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err() {
            return Err(missing(format!(
                "the NVIDIA driver's library lacks {name}; a driver for CUDA 12 or later is needed, or --device cpu"
            )));
        }
    }
    result::init().map_err(|e| early("cuInit", e))?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| early("cuDriverGetVersion", e))?;
    let (major, minor) = (version / 1000, version % 1000 / 10);
    if let Some((needed, _)) = kernels::compiler().filter(|(needed, _)| *needed > major) {
        return Err(missing(format!(
            "the NVIDIA driver is for CUDA {major}.{minor}, the kernels need one for CUDA {needed}.0 or later; update the \
             driver, or use --device cpu"
        )));
    }
    Ok(())
}
