//! Products through cuBLASLt.
//!
//! The algorithm is the library's first choice for one image; all images of a batch use it, one by one where it cannot take
//! them together. So an image's result does not depend on what shares its batch.

use super::super::driver::{Driver, Gemm, GemmPlan, Matrix};
use super::{CudaDriver, DEVICE};
use crate::error::{Error, Result};
use crate::tensor::DType;
use ::cudarc::cublaslt::{result, sys};
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// Every function of cuBLASLt that is called below.
const NAMES: [&str; 14] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoCheck",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatrixLayoutSetAttribute",
];

/// Memory that the library may use during a product: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Bytes to which every matrix is aligned at least: one number for all, so that the choice does not depend on where the memory
/// plan of one batch or another puts them.
const ALIGNMENT: u32 = 16;
/// Split sums are joined in f32 or not split at all; never in the storage type.
const REDUCTION_IN_F32: u32 = 2;

/// The library's handle and its memory.
pub(super) struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: Mutex<Vec<Option<Box<Plan>>>>,
}

impl Lt {
    /// The library, or `None` with a warning where it is not there: our own kernels do its work then.
    pub(super) fn new(driver: &CudaDriver) -> Result<Option<Self>> {
        // SAFETY: loads a library and forgets it again; its initialisers have no preconditions.
        let there = unsafe { sys::is_culib_present() };
        // SAFETY: the library is there, and the symbols are not called.
        let lacks = |name: &&str| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err();
        let missing = if there { NAMES.iter().find(|name| lacks(name)).copied() } else { Some("libcublasLt") };
        if let Some(name) = missing {
            tracing::warn!(
                "{name} was not found in the system's library folders and LD_LIBRARY_PATH (it comes with CUDA 12 and 13): \
                 products are computed by Braid's own kernels, which is slower"
            );
            return Ok(None);
        }
        let handle = result::create_handle().map_err(|error| fault("cublasLtCreate", error))?;
        let workspace = driver.allocate(WORKSPACE);
        let plans = Mutex::default();
        // Made before the `?`, so that the handle goes with it.
        let mut lt = Self { handle, workspace: 0, plans };
        lt.workspace = workspace?;
        Ok(Some(lt))
    }

    /// Chooses how a product is computed.
    pub(super) fn prepare(&self, gemm: &Gemm) -> Result<GemmPlan> {
        let plan = Box::new(Plan::new(self.handle, gemm)?);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let free = plans.iter().position(Option::is_none).unwrap_or(plans.len());
        if free == plans.len() {
            plans.push(None);
        }
        plans[free] = Some(plan);
        Ok(GemmPlan(free as u64))
    }

    pub(super) fn release(&self, plan: GemmPlan) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = usize::try_from(plan.0).ok().and_then(|at| plans.get_mut(at)) {
            *place = None;
        }
    }

    pub(super) fn run(&self, plan: GemmPlan, stream: ::cudarc::driver::sys::CUstream) -> Result<()> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = usize::try_from(plan.0).ok().and_then(|at| plans.get(at)).and_then(Option::as_ref);
        let Some(plan) = plan else { return Err(Error::Graph("a product that was not prepared".into())) };
        for image in 0..plan.turns {
            let at = |m: &Matrix, size: usize| (m.data + (image * m.stride * size) as u64) as *mut c_void;
            let gemm = &plan.gemm;
            let out = if gemm.out_f32 { 4 } else { 2 };
            let d = at(&gemm.d, out);
            let (c, beta) = gemm.epilogue.residual().map_or((d, 0.0f32), |c| (at(&c, out), 1.0));
            let alpha = 1.0f32;
            // SAFETY: the descriptors are the plan's own and alive; the addresses are those that the caller gave with these
            // sizes; the workspace has the size that the algorithm was chosen for, and the one stream uses it in order. The
            // two factors are on the host, read before the call returns. The stream's type is the same C struct under
            // another name.
            let done = unsafe {
                result::matmul(
                    self.handle,
                    plan.operation,
                    (&raw const alpha).cast(),
                    (&raw const beta).cast(),
                    at(&gemm.a, 2),
                    plan.layouts[0],
                    at(&gemm.b, 2),
                    plan.layouts[1],
                    c,
                    plan.layouts[2],
                    d,
                    plan.layouts[3],
                    &plan.algorithm,
                    self.workspace as *mut c_void,
                    WORKSPACE,
                    stream.cast(),
                )
            };
            done.map_err(|error| fault("cublasLtMatmul", error))?;
        }
        Ok(())
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: made in `new`, given back once; the driver has made its context current and waited for the stream.
        unsafe {
            let _ = result::destroy_handle(self.handle);
            if self.workspace != 0 {
                let _ = ::cudarc::driver::result::free_sync(self.workspace);
            }
        }
    }
}

/// A product with its algorithm.
struct Plan {
    gemm: Gemm,
    operation: sys::cublasLtMatmulDesc_t,
    /// Of A, B, C, D.
    layouts: [sys::cublasLtMatrixLayout_t; 4],
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Calls that it takes: one, or one for each image.
    turns: usize,
}

/// Descriptors that go when they are not handed on.
struct Parts {
    operation: sys::cublasLtMatmulDesc_t,
    preference: sys::cublasLtMatmulPreference_t,
    layouts: [sys::cublasLtMatrixLayout_t; 4],
}

impl Drop for Parts {
    fn drop(&mut self) {
        // SAFETY: each descriptor is null or was made for `self`, and is destroyed once.
        unsafe { destroy(self.operation, self.preference, &self.layouts) };
    }
}

/// # Safety
/// Each is null or alive and not used again.
unsafe fn destroy(
    operation: sys::cublasLtMatmulDesc_t,
    preference: sys::cublasLtMatmulPreference_t,
    layouts: &[sys::cublasLtMatrixLayout_t],
) {
    // SAFETY: the caller's promise.
    unsafe {
        if !operation.is_null() {
            let _ = result::destroy_matmul_desc(operation);
        }
        if !preference.is_null() {
            let _ = result::destroy_matmul_pref(preference);
        }
        for layout in layouts.iter().filter(|layout| !layout.is_null()) {
            let _ = result::destroy_matrix_layout(*layout);
        }
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, gemm: &Gemm) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        let storage = match gemm.dtype {
            DType::F16 => sys::cudaDataType::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
            DType::F32 => return Err(Error::Graph("products of f32 are not for the library".into())),
        };
        let float = sys::cudaDataType::CUDA_R_32F;
        let out = if gemm.out_f32 { float } else { storage };
        let null = std::ptr::null_mut::<c_void>();
        let mut parts = Parts { operation: null.cast(), preference: null.cast(), layouts: [null.cast(); 4] };
        let operation = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, float);
        parts.operation = operation.map_err(|error| fault("cublasLtMatmulDescCreate", error))?;
        // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        parts.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(gemm.transpose_a))?;
        parts.set(Desc::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(gemm.transpose_b))?;
        if let Some(bias) = gemm.epilogue.bias() {
            parts.set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            parts.set(Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let shape = |rows, columns, transposed| if transposed { (columns, rows) } else { (rows, columns) };
        let sizes = [
            (storage, shape(gemm.m, gemm.k, gemm.transpose_a), gemm.a),
            (storage, shape(gemm.k, gemm.n, gemm.transpose_b), gemm.b),
            (out, (gemm.m, gemm.n), gemm.epilogue.residual().unwrap_or(gemm.d)),
            (out, (gemm.m, gemm.n), gemm.d),
        ];
        for (layout, (kind, (rows, columns), matrix)) in parts.layouts.iter_mut().zip(sizes) {
            let made = result::create_matrix_layout(kind, rows as u64, columns as u64, matrix.leading as i64);
            *layout = made.map_err(|error| fault("cublasLtMatrixLayoutCreate", error))?;
        }
        let algorithm = parts.choose(handle)?;
        let turns = if gemm.batch > 1 && !parts.batched(handle, gemm, &sizes.map(|s| s.2.stride), &algorithm)? {
            gemm.batch
        } else {
            1
        };
        let (operation, layouts) = (parts.operation, parts.layouts);
        // Handed on.
        (parts.operation, parts.layouts) = (null.cast(), [null.cast(); 4]);
        Ok(Self { gemm: *gemm, operation, layouts, algorithm, turns })
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: handed on to `self` alone.
        unsafe { destroy(self.operation, std::ptr::null_mut(), &self.layouts) };
    }
}

impl Parts {
    fn set<T>(&self, which: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the descriptor is alive; the attribute's value has the type that the callers above pass.
        let set = unsafe { result::set_matmul_desc_attribute(self.operation, which, value, size_of::<T>()) };
        set.map_err(|error| fault("cublasLtMatmulDescSetAttribute", error))
    }

    /// The library's first choice for one image.
    fn choose(&mut self, handle: sys::cublasLtHandle_t) -> Result<sys::cublasLtMatmulAlgo_t> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let preference = result::create_matmul_pref();
        self.preference = preference.map_err(|error| fault("cublasLtMatmulPreferenceCreate", error))?;
        let set = |which, value: *const c_void, size| {
            // SAFETY: the preference is alive; a size for the workspace, 32 bits for the others.
            let set = unsafe { result::set_matmul_pref_attribute(self.preference, which, value, size) };
            set.map_err(|error| fault("cublasLtMatmulPreferenceSetAttribute", error))
        };
        let bytes: usize = WORKSPACE;
        let workspace = (&raw const bytes).cast();
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace, size_of::<usize>())?;
        for (which, value) in [
            (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, REDUCTION_IN_F32),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, ALIGNMENT),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, ALIGNMENT),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, ALIGNMENT),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, ALIGNMENT),
        ] {
            set(which, (&raw const value).cast(), size_of::<u32>())?;
        }
        let [a, b, c, d] = self.layouts;
        // SAFETY: all descriptors are alive.
        let found = unsafe { result::get_matmul_algo_heuristic(handle, self.operation, a, b, c, d, self.preference) };
        found.map(|found| found.algo).map_err(|error| fault("cublasLtMatmulAlgoGetHeuristic", error))
    }

    /// Makes the layouts those of the whole batch; `false`, and those of one image, where the algorithm does not take it.
    fn batched(
        &self,
        handle: sys::cublasLtHandle_t,
        gemm: &Gemm,
        strides: &[usize; 4],
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> Result<bool> {
        use sys::cublasLtMatrixLayoutAttribute_t as Layout;
        let count = |images: usize| -> Result<()> {
            let images = i32::try_from(images).unwrap_or(i32::MAX);
            for (layout, stride) in self.layouts.iter().zip(strides) {
                let stride = i64::try_from(*stride).unwrap_or(i64::MAX);
                let set = |which, value: *const c_void, size| {
                    // SAFETY: the layout is alive; 32 bits for the count, 64 for the stride.
                    let set = unsafe { result::set_matrix_layout_attribute(*layout, which, value, size) };
                    set.map_err(|error| fault("cublasLtMatrixLayoutSetAttribute", error))
                };
                set(Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const images).cast(), size_of::<i32>())?;
                let which = Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
                set(which, (&raw const stride).cast(), size_of::<i64>())?;
            }
            Ok(())
        };
        count(gemm.batch)?;
        let [a, b, c, d] = self.layouts;
        let mut answer = std::mem::MaybeUninit::uninit();
        // SAFETY: all descriptors are alive; the answer is written where the call succeeds.
        let fits = unsafe {
            sys::cublasLtMatmulAlgoCheck(handle, self.operation, a, b, c, d, algorithm, answer.as_mut_ptr())
                .result()
                .is_ok()
                && answer.assume_init().workspaceSize <= WORKSPACE
        };
        if !fits {
            count(1)?;
        }
        Ok(fits)
    }
}

/// An error of the library. A fault of the device shows, and marks it lost, at the driver's next call.
fn fault(call: &str, error: result::CublasError) -> Error {
    Error::Fault { device: DEVICE.into(), call: call.into(), what: format!("{:?}", error.0), lost: false }
}
