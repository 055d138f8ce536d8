//! What must be there before the first call: the driver's library, each of its functions, a driver that is new enough.

use super::ffi::{self, Cuda, Missing, StatusCode, describe};
use super::missing;
use crate::device::cuda::kernels;
use crate::error::{Error, Field, Message, Result};

/// An error before there is a device.
pub(crate) fn early(cuda: &Cuda, call: &str, code: StatusCode) -> Error {
    let text = describe(cuda, code);
    let what = Message::from(format!("{call}: {text}; is a GPU there and its driver loaded (nvidia-smi)? "));
    missing(what.setting(Field::Device, "cpu").text(" needs none"))
}

/// Starts the driver. Its functions, and the version of CUDA that it is for: 12040 is 12.4.
pub(crate) fn probe() -> Result<(&'static Cuda, i32)> {
    let cuda = ffi::cuda().map_err(|what| match what {
        Missing::Library => {
            let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
            let place = if cfg!(windows) { "PATH" } else { "the system's library folders and LD_LIBRARY_PATH" };
            let what =
                format!("the NVIDIA driver's library {name} was not found in {place}; install the driver, or use ");
            missing(Message::from(what).setting(Field::Device, "cpu"))
        }
        Missing::Function(name) => {
            let what =
                format!("the NVIDIA driver's library lacks {name}; a driver for CUDA 12 or later is needed, or ");
            missing(Message::from(what).setting(Field::Device, "cpu"))
        }
    })?;
    // SAFETY: may be called at any time.
    unsafe { cuda.cuInit(0) }.map_err(|code| early(cuda, "cuInit", code))?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { cuda.cuDriverGetVersion(&mut version) }.map_err(|code| early(cuda, "cuDriverGetVersion", code))?;
    let (major, minor) = (version / 1000, version % 1000 / 10);
    if let Some((needed, _)) = kernels::compiler().filter(|(needed, _)| *needed > major) {
        let what = format!(
            "the NVIDIA driver is for CUDA {major}.{minor}, the kernels need one for CUDA {needed}.0 or later; update the \
             driver, or use "
        );
        return Err(missing(Message::from(what).setting(Field::Device, "cpu")));
    }
    Ok((cuda, version))
}
