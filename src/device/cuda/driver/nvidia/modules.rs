//! Kernel files on the device: the binaries of this build, or what is compiled now.

use super::context::Context;
use super::error::{missing, missing_or_cpu};
use crate::device::cuda::compile::images::{self, Module};
use crate::device::cuda::compile::runtime;
use crate::error::{Error, Result};
use ::cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// The kernel files that a context has loaded, by name.
#[derive(Default)]
pub(crate) struct Modules(Mutex<HashMap<&'static str, sys::CUmodule>>);

impl Modules {
    /// The module that holds a kernel, loaded at first use.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no binary for the device and none can be compiled; those of the driver.
    pub(crate) fn get(&self, gpu: &Context, name: &'static str) -> Result<sys::CUmodule> {
        let mut modules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(name) {
            return Ok(*module);
        }
        let Some(found) = images::modules().iter().find(|module| module.name == name) else {
            return Err(Error::Graph(format!("no kernel file is called `{name}`")));
        };
        let module = load(gpu, found)?;
        modules.insert(name, module);
        Ok(module)
    }

    /// Unloads all of them. The context must be current.
    pub(crate) fn unload(&mut self, gpu: &Context) {
        for (_, module) in self.0.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            // SAFETY: loaded by `load`, unloaded once; the caller has made the context current.
            let _ = unsafe { gpu.cuda.cuModuleUnload(module) };
        }
    }
}

/// Loads a kernel file: the binary of this build, else what NVRTC makes of its source.
fn load(gpu: &Context, file: &Module) -> Result<sys::CUmodule> {
    let capability = gpu.properties.capability;
    let built = match file.binary(capability) {
        Some(binary) => {
            let bytes = binary.unpack().map_err(|e| missing(format!("the kernels of this build are damaged: {e}")))?;
            Some(image(gpu, file.name, binary.target, &bytes))
        }
        None => None,
    };
    match built {
        // The driver is older than the PTX, or the device takes none of the binaries: another compiler's may fit.
        None | Some(Err(Error::Fault { lost: false, .. })) => match (runtime::compile(file, capability), built) {
            (Ok((target, bytes)), _) => image(gpu, file.name, &target, &bytes),
            (Err(why), Some(Err(fault))) => {
                tracing::warn!("{why}");
                Err(fault)
            }
            (Err(why), _) => {
                let (major, minor) = capability;
                Err(missing_or_cpu(format!(
                    "this build has no kernels for compute capability {major}.{minor}, and they cannot be compiled \
                     now: {why}; install CUDA's NVRTC (CUDA_PATH or BRAID_NVRTC names its folder), or use "
                )))
            }
        },
        Some(loaded) => loaded,
    }
}

/// Loads a cubin, or PTX with a terminator.
fn image(gpu: &Context, name: &str, target: &str, bytes: &[u8]) -> Result<sys::CUmodule> {
    // A copy that is aligned as the driver reads ELF files.
    let mut image = vec![0u64; bytes.len().div_ceil(8) + 1];
    bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..bytes.len()].copy_from_slice(bytes);
    let mut module = std::ptr::null_mut();
    // SAFETY: a cubin, or PTX with a terminator, whole as NVRTC gave it; the driver copies it.
    let loaded = unsafe { gpu.cuda.cuModuleLoadData(&mut module, image.as_ptr().cast::<c_void>()) };
    gpu.check(&format!("cuModuleLoadData ({name}, {target})"), loaded)?;
    Ok(module)
}
