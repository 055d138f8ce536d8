//! Host memory for fast copies.

use super::context::Loss;
use super::ffi::Cuda;
use crate::device::cuda::driver::interface::Staging;
use ::cudarc::driver::sys;
use std::ffi::c_void;

/// Host memory that the GPU reads and writes by itself.
pub(crate) struct Pinned {
    pub(crate) cuda: &'static Cuda,
    pub(crate) start: *mut u8,
    pub(crate) len: usize,
    pub(crate) context: sys::CUcontext,
    pub(crate) loss: Loss,
}

// SAFETY: memory that has one owner.
unsafe impl Send for Pinned {}

impl Staging for Pinned {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes that are ours alone; every copy from or to them has ended (see `upload`, `download`).
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A copy may be under way that will never be known to have ended.
        if self.loss.get().is_some() {
            return;
        }
        // SAFETY: from `cuMemHostAlloc`, given back once. Executables hold the driver, so the context is still there.
        unsafe {
            if self.cuda.cuCtxSetCurrent(self.context).is_ok() {
                let _ = self.cuda.cuMemFreeHost(self.start.cast::<c_void>());
            }
        }
    }
}
