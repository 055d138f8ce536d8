//! The library's handle and its one computation.

use super::super::error::DEVICE;
use super::super::ffi::{CublasLt, StatusCode, status};
use crate::error::{Error, Result};
use ::cudarc::cublaslt::sys;
use ::cudarc::driver::sys::CUstream;
use std::ffi::c_void;

/// The operation, and the layouts of A, B, C, D.
pub(crate) type Descriptors = (sys::cublasLtMatmulDesc_t, [sys::cublasLtMatrixLayout_t; 4]);

/// A handle of cuBLASLt; destroyed on drop.
pub(crate) struct CublasLtHandle {
    pub(crate) library: &'static CublasLt,
    pub(crate) raw: sys::cublasLtHandle_t,
}

impl CublasLtHandle {
    /// Creates a handle. A context must be current.
    ///
    /// # Errors
    /// Those of the library.
    pub(crate) fn create(library: &'static CublasLt) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a context is current; writes one handle, given back in `drop`.
        unsafe { library.cublasLtCreate(&mut raw) }.map_err(|code| fault("cublasLtCreate", code))?;
        Ok(Self { library, raw })
    }

    /// The library's version: major, minor, patch; -1 where it does not say.
    pub(crate) fn version(&self) -> [i32; 3] {
        Self::version_of(self.library)
    }

    /// As [`CublasLtHandle::version`], of a library that has not been started.
    pub(crate) fn version_of(library: &CublasLt) -> [i32; 3] {
        use sys::libraryPropertyType_t as Property;
        [Property::MAJOR_VERSION, Property::MINOR_VERSION, Property::PATCH_LEVEL].map(|which| {
            let mut number = 0;
            // SAFETY: writes one integer.
            let asked = unsafe { library.cublasLtGetProperty(which, &mut number) };
            asked.map_or(-1, |()| number)
        })
    }

    /// D = op(A) op(B) with the operation's bias, and C where `add`; the operands are A, B, C, D.
    ///
    /// # Safety
    /// The descriptors are alive; the operands are addresses on the device with room for what the layouts say; the
    /// algorithm is one that needs no workspace.
    pub(crate) unsafe fn multiply(
        &self,
        (operation, layouts): Descriptors,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        operands: [u64; 4],
        add: bool,
        stream: CUstream,
    ) -> Result<(), StatusCode> {
        let [a, b, c, d] = operands.map(|address| address as *mut c_void);
        let (alpha, beta) = (1.0f32, f32::from(u8::from(add)));
        let (alpha, beta) = (&raw const alpha, &raw const beta);
        // SAFETY: the caller's promise. The two factors are on the host, read before the call returns.
        unsafe {
            self.library.cublasLtMatmul(
                self.raw,
                operation,
                alpha.cast(),
                a,
                layouts[0],
                b,
                layouts[1],
                beta.cast(),
                c,
                layouts[2],
                d,
                layouts[3],
                algorithm,
                std::ptr::null_mut(),
                0,
                stream,
            )
        }
    }
}

impl Drop for CublasLtHandle {
    fn drop(&mut self) {
        // SAFETY: made in `create`, given back once; the driver has made its context current and waited for the stream.
        let _ = unsafe { self.library.cublasLtDestroy(self.raw) };
    }
}

/// An error of the library. A fault of the device shows, and marks it lost, at the driver's next call.
pub(crate) fn fault(call: &str, code: StatusCode) -> Error {
    Error::Fault { device: DEVICE.into(), call: call.into(), what: status(code), lost: false }
}
