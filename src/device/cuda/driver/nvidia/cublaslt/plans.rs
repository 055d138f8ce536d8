//! Prepared products: each with its descriptors and an algorithm.
//!
//! The algorithm is chosen for one image (see `autotune`); all images of a batch use it, as columns of one product or, where it
//! does not take that many, one by one. So an image's result does not depend on what shares its batch.

use super::super::context::Context;
use super::super::ffi::CublasLt;
use super::autotune::{self, Autotuner, GemmShape};
use super::descriptors::{MatmulDescriptors, destroy};
use super::handle::{CublasLtHandle, Descriptors, fault};
use super::search;
use super::trial::{GemmTrial, IMAGES};
use crate::device::cuda::compile::cache::Cache;
use crate::device::cuda::driver::gemm::{Gemm, GemmPlan, MatrixRef};
use crate::error::{Error, Result};
use ::cudarc::cublaslt::sys;
use ::cudarc::driver::sys::CUstream;
use std::sync::{Mutex, PoisonError};

/// The prepared products of a device. Dropped in this order: the products, then the library.
pub(crate) struct GemmPlans {
    plans: Mutex<Vec<Option<Box<PreparedGemm>>>>,
    autotuner: Autotuner,
    lt: CublasLtHandle,
}

impl GemmPlans {
    /// Opens the library; `None` with a warning where there is none that works: our own kernels do its work then.
    ///
    /// The warning has the error of one that does not start.
    pub(crate) fn open(gpu: &Context) -> Option<Self> {
        let lt = match search::open(gpu) {
            Ok(lt) => lt,
            Err(why) => {
                let cuda = gpu.driver_version / 1000;
                tracing::warn!(
                    "cuBLASLt is not used ({why}): products are computed by Braid's own kernels, which is slower; install it (pip \
                     install nvidia-cublas-cu{cuda}; CUDA_PATH or BRAID_CUBLASLT names its folder)"
                );
                return None;
            }
        };
        let trials = autotune::wanted(std::env::var_os("BRAID_TRIALS").as_deref());
        let autotuner = Autotuner::new(identity(gpu, &lt), Cache::user(), trials);
        Some(Self { plans: Mutex::default(), autotuner, lt })
    }

    /// Chooses how a product is computed; may try algorithms on the device.
    pub(crate) fn prepare(&self, gpu: &Context, gemm: &Gemm) -> Result<GemmPlan> {
        let plan = Box::new(PreparedGemm::new(&self.lt, &self.autotuner, gpu, gemm)?);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let free = plans.iter().position(Option::is_none).unwrap_or(plans.len());
        if free == plans.len() {
            plans.push(None);
        }
        plans[free] = Some(plan);
        Ok(GemmPlan(free as u64))
    }

    /// Forgets a prepared product.
    pub(crate) fn release(&self, plan: GemmPlan) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = usize::try_from(plan.0).ok().and_then(|at| plans.get_mut(at)) {
            *place = None;
        }
    }

    /// Computes a prepared product.
    ///
    /// # Errors
    /// Those of the library.
    pub(crate) fn run(&self, plan: GemmPlan, stream: CUstream) -> Result<()> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = usize::try_from(plan.0).ok().and_then(|at| plans.get(at)).and_then(Option::as_ref);
        let Some(plan) = plan else { return Err(Error::Graph("a product that was not prepared".into())) };
        for image in 0..plan.calls {
            let at = |m: &MatrixRef, size: usize| m.data + (image * m.stride * size) as u64;
            let gemm = &plan.gemm;
            let out = if gemm.out_f32 { 4 } else { 2 };
            let residual = gemm.epilogue.residual();
            let (a, b, d) = (at(&gemm.a, 2), at(&gemm.b, 2), at(&gemm.d, out));
            let operands = [a, b, residual.map_or(d, |c| at(&c, out)), d];
            // SAFETY: the descriptors are the plan's own and alive; the addresses are those that the caller gave with these
            // sizes.
            let done = unsafe { self.lt.multiply(plan.both, &plan.algorithm, operands, residual.is_some(), stream) };
            done.map_err(|code| fault("cublasLtMatmul", code))?;
        }
        Ok(())
    }
}

/// Names device, driver and library: all that a choice of algorithms depends on.
fn identity(gpu: &Context, lt: &CublasLtHandle) -> String {
    let ([major, minor, patch], version) = (lt.version(), gpu.driver_version);
    let facts = &gpu.properties;
    let ((x, y), processors) = (facts.capability, facts.multiprocessors);
    format!(
        "cuBLASLt {major}.{minor}.{patch}; driver for CUDA {version}; {}, capability {x}.{y}, {processors} multiprocessors; \
         no workspace, tried on {IMAGES} images",
        facts.name
    )
}

/// A product with its algorithm.
struct PreparedGemm {
    library: &'static CublasLt,
    gemm: Gemm,
    both: Descriptors,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Calls that it takes: one, or one for each image.
    calls: usize,
}

impl PreparedGemm {
    fn new(lt: &CublasLtHandle, autotuner: &Autotuner, gpu: &Context, gemm: &Gemm) -> Result<Self> {
        let library = lt.library;
        let mut parts = MatmulDescriptors::new(library, gemm)?;
        let algorithm = {
            let mut trial = GemmTrial { gpu, lt, parts: &mut parts, gemm, scratch: None };
            autotuner.choose(GemmShape::of(gemm), &mut trial)?
        };
        if let Some(bias) = gemm.epilogue.bias() {
            parts.set_bias(bias)?; // A trial has put its own there.
        }
        let folded = gemm.batch == 1 || (gemm.is_foldable() && parts.fold(lt, gemm, gemm.batch, &algorithm)?);
        let calls = if folded { 1 } else { gemm.batch };
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm };
        Ok(Self { library, gemm: *gemm, both: parts.into_parts(), algorithm, calls })
    }
}

impl Drop for PreparedGemm {
    fn drop(&mut self) {
        // SAFETY: handed on to `self` alone.
        unsafe { destroy(self.library, self.both.0, std::ptr::null_mut(), &self.both.1) };
    }
}
