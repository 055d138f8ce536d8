//! Kernel files on the device: the binaries of this build, or what is compiled now.

use super::{NvidiaDriver, missing};
use crate::device::cuda::{compile, kernels};
use crate::error::{Error, Result};
use ::cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::PoisonError;

impl NvidiaDriver {
    /// The module that holds a kernel, loaded at first use.
    pub(crate) fn module(&self, name: &'static str) -> Result<sys::CUmodule> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(name) {
            return Ok(*module);
        }
        let Some(found) = kernels::modules().iter().find(|module| module.name == name) else {
            return Err(Error::Graph(format!("no kernel file is called `{name}`")));
        };
        let built = match found.binary(self.properties.capability) {
            Some(binary) => {
                let bytes =
                    binary.unpack().map_err(|e| missing(format!("the kernels of this build are damaged: {e}")))?;
                Some(self.image(name, binary.target, &bytes))
            }
            None => None,
        };
        let module = match built {
            // The driver is older than the PTX, or the device takes none of the binaries: another compiler's may fit.
            None | Some(Err(Error::Fault { lost: false, .. })) => {
                let compiled = compile::module(found, self.properties.capability);
                match (compiled, built) {
                    (Ok((target, bytes)), _) => self.image(name, &target, &bytes)?,
                    (Err(why), Some(Err(fault))) => {
                        tracing::warn!("{why}");
                        return Err(fault);
                    }
                    (Err(why), _) => {
                        let (major, minor) = self.properties.capability;
                        return Err(missing(format!(
                            "this build has no kernels for compute capability {major}.{minor}, and they cannot be compiled \
                             now: {why}; install CUDA's NVRTC (CUDA_PATH or BRAID_NVRTC names its folder), or use --device cpu"
                        )));
                    }
                }
            }
            Some(loaded) => loaded?,
        };
        modules.insert(name, module);
        Ok(module)
    }

    /// A module of a cubin, or of PTX with a terminator.
    fn image(&self, name: &str, target: &str, bytes: &[u8]) -> Result<sys::CUmodule> {
        // A copy that is aligned as the driver reads ELF files.
        let mut image = vec![0u64; bytes.len().div_ceil(8) + 1];
        bytemuck::cast_slice_mut::<u64, u8>(&mut image)[..bytes.len()].copy_from_slice(bytes);
        let mut module = std::ptr::null_mut();
        // SAFETY: a cubin, or PTX with a terminator, whole as NVRTC gave it; the driver copies it.
        let loaded = unsafe { self.cuda.cuModuleLoadData(&mut module, image.as_ptr().cast::<c_void>()) };
        self.check(&format!("cuModuleLoadData ({name}, {target})"), loaded)?;
        Ok(module)
    }
}
