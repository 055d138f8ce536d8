//! Checks before the first call: the driver's library, each of its functions, a driver that is new enough.

use super::error::{early, missing, missing_or_cpu};
use super::ffi::{self, Cuda, Missing, StatusCode};
use crate::device::cuda::driver::interface::DeviceProperties;
use crate::error::{Error, Field, Message, Result};
use ::cudarc::driver::sys;

/// Starts the driver. Its functions, and the version of CUDA that it is for: 12040 is 12.4.
pub(crate) fn probe() -> Result<(&'static Cuda, i32)> {
    let cuda = ffi::cuda().map_err(|what| match what {
        Missing::Library => {
            let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
            let place = if cfg!(windows) { "PATH" } else { "the system's library folders and LD_LIBRARY_PATH" };
            let what =
                format!("the NVIDIA driver's library {name} was not found in {place}; install the driver, or use ");
            missing_or_cpu(what)
        }
        Missing::Function(name) => {
            let what =
                format!("the NVIDIA driver's library lacks {name}; a driver for CUDA 12 or later is needed, or ");
            missing_or_cpu(what)
        }
    })?;
    // SAFETY: may be called at any time.
    unsafe { cuda.cuInit(0) }.map_err(|code| early(cuda, "cuInit", code))?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { cuda.cuDriverGetVersion(&mut version) }.map_err(|code| early(cuda, "cuDriverGetVersion", code))?;
    if version < 12_000 {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        let what = format!("the NVIDIA driver is for CUDA {major}.{minor}; one for CUDA 12 or later is needed, or ");
        return Err(missing_or_cpu(what));
    }
    Ok((cuda, version))
}

/// Finds the GPU of that number and its properties; whether products of a library work is not known yet.
///
/// # Errors
/// [`Error::Device`] where there is no such GPU, or where it is too old.
pub(crate) fn select(cuda: &Cuda, ordinal: usize) -> Result<(sys::CUdevice, DeviceProperties)> {
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
        return Err(missing_or_cpu(format!(
            "{name} has compute capability {major}.{minor}; 8.0 or later is needed (Ampere and after), or "
        )));
    }
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
    Ok((device, DeviceProperties { name, capability, multiprocessors, gemm: false }))
}
