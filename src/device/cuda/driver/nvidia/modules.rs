//! Kernel files on the device: the binaries of this build, or what is compiled now.

use super::context::Context;
use super::error::{missing, missing_or_cpu};
use crate::device::cuda::compile::cubin::waiting;
use crate::device::cuda::compile::images::{self, Module};
use crate::device::cuda::compile::runtime;
use crate::error::{Error, Result};
use ::cudarc::driver::sys;
use std::collections::{BTreeSet, HashMap};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// A kernel file on the device, and its entry points that wait for the launches before them.
type Loaded = (sys::CUmodule, Arc<BTreeSet<String>>);

/// The kernel files that a context has loaded, by name.
pub(crate) struct Modules {
    loaded: Mutex<HashMap<&'static str, Loaded>>,
    /// Whether the binaries of this build are used.
    embedded: bool,
}

impl Modules {
    /// None loaded yet; from the binaries of this build, or from the sources alone.
    pub(crate) fn new(embedded: bool) -> Self {
        Self { loaded: Mutex::default(), embedded }
    }

    /// A kernel file, loaded at first use.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no binary for the device and none can be compiled; those of the driver.
    pub(crate) fn get(&self, gpu: &Context, name: &'static str) -> Result<Loaded> {
        let mut modules = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(name) {
            return Ok(module.clone());
        }
        let Some(found) = images::modules().iter().find(|module| module.name == name) else {
            return Err(Error::Graph(format!("no kernel file is called `{name}`")));
        };
        let module = load(gpu, found, self.embedded)?;
        modules.insert(name, module.clone());
        Ok(module)
    }

    /// Unloads all of them. The context must be current.
    pub(crate) fn unload(&mut self, gpu: &Context) {
        for (_, (module, _)) in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            // SAFETY: loaded by `load`, unloaded once; the caller has made the context current.
            let _ = unsafe { gpu.cuda.cuModuleUnload(module) };
        }
    }
}

/// Loads a kernel file: the first binary of this build that the driver takes, else what NVRTC makes of its source.
fn load(gpu: &Context, file: &Module, embedded: bool) -> Result<Loaded> {
    let capability @ (major, minor) = gpu.properties.capability;
    let mut refused = Vec::new();
    for binary in file.binaries(capability).filter(|_| embedded) {
        let bytes = binary.unpack().map_err(|e| missing(format!("the kernels of this build are damaged: {e}")))?;
        match image(gpu, file.name, binary.target, &bytes) {
            Err(Error::Fault { lost: false, what, .. }) => {
                tracing::debug!(kernel = file.name, target = binary.target, what, "the driver refuses a binary");
                refused.push(format!("{}: {what}", binary.target));
            }
            loaded => return loaded,
        }
    }
    let why = match runtime::compile(file, capability, gpu.driver_version / 1000) {
        Ok((target, bytes)) => match image(gpu, file.name, &target, &bytes) {
            Err(Error::Fault { lost: false, what, .. }) => {
                format!("what NVRTC makes for {target} is refused, too: {what}")
            }
            loaded => return loaded,
        },
        Err(why) => why,
    };
    let (of, cuda) = (gpu.driver_version / 1000, gpu.driver_version % 1000 / 10);
    let reason = match refused.is_empty() {
        true => format!("this build has no kernels for compute capability {major}.{minor}"),
        false => {
            format!("the driver (for CUDA {of}.{cuda}) refuses the kernels of this build ({})", refused.join("; "))
        }
    };
    Err(missing_or_cpu(format!(
        "{reason}, and they cannot be compiled now: {why}; update the driver, install NVRTC of CUDA {of} (pip install \
         nvidia-cuda-nvrtc-cu{of}; CUDA_PATH or BRAID_NVRTC names its folder), or use "
    )))
}

/// Loads a cubin, or PTX with a terminator.
fn image(gpu: &Context, name: &str, target: &str, bytes: &[u8]) -> Result<Loaded> {
    // A copy that is aligned as the driver reads ELF files.
    let mut image = vec![0u64; bytes.len().div_ceil(8) + 1];
    bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..bytes.len()].copy_from_slice(bytes);
    let mut module = std::ptr::null_mut();
    // SAFETY: a cubin, or PTX with a terminator, whole as NVRTC gave it; the driver copies it.
    let loaded = unsafe { gpu.cuda.cuModuleLoadData(&mut module, image.as_ptr().cast::<c_void>()) };
    gpu.check(&format!("cuModuleLoadData ({name}, {target})"), loaded)?;
    Ok((module, Arc::new(waiting(bytes))))
}
