//! Products through cuBLASLt.
//!
//! The algorithm is chosen for one image (see `choice`); all images of a batch use it, one by one where it cannot take them
//! together. So an image's result does not depend on what shares its batch.

use super::super::ffi::{self, CublasLt, Cuda, HeuristicResult, Missing, StatusCode, status};
use super::super::{DEVICE, NvidiaDriver};
use super::autotune::{self, Algorithm, Autotuner, GemmShape};
use super::trial::GemmTrial;
use crate::device::cuda::compile::cache::Cache;
use crate::device::cuda::driver::{Driver, Gemm, GemmPlan, MatrixRef};
use crate::error::{Error, Result};
use crate::tensor::DType;
use ::cudarc::cublaslt::sys;
use ::cudarc::driver::sys::CUstream;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// Memory that the library may use during a product: what NVIDIA recommends for Hopper.
pub(crate) const WORKSPACE: usize = 32 << 20;
/// Bytes to which every matrix is aligned at least: one number for all, so that the choice does not depend on where the memory
/// plan of one batch or another puts them.
const ALIGNMENT: u32 = 16;
/// Split sums are joined in f32 or not split at all; never in the storage type.
const REDUCTION_IN_F32: u32 = 2;

/// The library's handle and its memory.
pub(crate) struct CublasLtHandle {
    cuda: &'static Cuda,
    library: &'static CublasLt,
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    choice: Autotuner,
    plans: Mutex<Vec<Option<Box<PreparedGemm>>>>,
}

impl CublasLtHandle {
    /// The library, or `None` with a warning where it is not there: our own kernels do its work then.
    /// `version` is that of CUDA for which the driver is.
    pub(crate) fn new(driver: &NvidiaDriver, version: i32) -> Result<Option<Self>> {
        let library = match ffi::cublas_lt() {
            Ok(library) => library,
            Err(what) => {
                let name = if let Missing::Function(name) = what { name } else { "libcublasLt" };
                tracing::warn!(
                    "{name} was not found in the system's library folders and LD_LIBRARY_PATH (it comes with CUDA 12 and 13): \
                     products are computed by Braid's own kernels, which is slower"
                );
                return Ok(None);
            }
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: a context is current; writes one handle, given back in `drop`.
        unsafe { library.cublasLtCreate(&mut handle) }.map_err(|code| fault("cublasLtCreate", code))?;
        let trials = autotune::wanted(std::env::var_os("BRAID_TRIALS").as_deref());
        let choice = Autotuner::new(identity(driver, library, version), Cache::user(), trials);
        let plans = Mutex::default();
        // Made before the `?`, so that the handle goes with it.
        let mut lt = Self { cuda: driver.cuda, library, handle, workspace: 0, choice, plans };
        lt.workspace = driver.allocate(WORKSPACE)?;
        Ok(Some(lt))
    }

    /// The memory that products use, of [`WORKSPACE`] bytes.
    pub(crate) fn workspace(&self) -> u64 {
        self.workspace
    }

    /// Chooses how a product is computed; may try algorithms on the device.
    pub(crate) fn prepare(&self, driver: &NvidiaDriver, gemm: &Gemm) -> Result<GemmPlan> {
        let plan = Box::new(PreparedGemm::new(self, driver, gemm)?);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let free = plans.iter().position(Option::is_none).unwrap_or(plans.len());
        if free == plans.len() {
            plans.push(None);
        }
        plans[free] = Some(plan);
        Ok(GemmPlan(free as u64))
    }

    pub(crate) fn release(&self, plan: GemmPlan) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = usize::try_from(plan.0).ok().and_then(|at| plans.get_mut(at)) {
            *place = None;
        }
    }

    pub(crate) fn run(&self, plan: GemmPlan, stream: CUstream) -> Result<()> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = usize::try_from(plan.0).ok().and_then(|at| plans.get(at)).and_then(Option::as_ref);
        let Some(plan) = plan else { return Err(Error::Graph("a product that was not prepared".into())) };
        for image in 0..plan.turns {
            let at = |m: &MatrixRef, size: usize| m.data + (image * m.stride * size) as u64;
            let gemm = &plan.gemm;
            let out = if gemm.out_f32 { 4 } else { 2 };
            let residual = gemm.epilogue.residual();
            let (a, b, d) = (at(&gemm.a, 2), at(&gemm.b, 2), at(&gemm.d, out));
            let operands = [a, b, residual.map_or(d, |c| at(&c, out)), d];
            // SAFETY: the descriptors are the plan's own and alive; the addresses are those that the caller gave with these
            // sizes.
            let done = unsafe { self.multiply(plan.both, &plan.algorithm, operands, residual.is_some(), stream) };
            done.map_err(|code| fault("cublasLtMatmul", code))?;
        }
        Ok(())
    }

    /// D = op(A) op(B) with the operation's bias, and C where `add`; the operands are A, B, C, D.
    ///
    /// # Safety
    /// The descriptors are alive; the operands are addresses on the device with room for what the layouts say. The stream is the
    /// one on which all products run, so that it uses the workspace in order.
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
        let workspace = self.workspace as *mut c_void;
        // SAFETY: the caller's promise; the workspace has the size for which the algorithm was chosen. The two factors are on the
        // host, read before the call returns.
        unsafe {
            self.library.cublasLtMatmul(
                self.handle,
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
                workspace,
                WORKSPACE,
                stream,
            )
        }
    }
}

impl Drop for CublasLtHandle {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: made in `new`, given back once; the driver has made its context current and waited for the stream.
        unsafe {
            let _ = self.library.cublasLtDestroy(self.handle);
            if self.workspace != 0 {
                let _ = self.cuda.cuMemFree_v2(self.workspace);
            }
        }
    }
}

/// Of device, driver and library, all that a choice of algorithms depends on.
fn identity(driver: &NvidiaDriver, library: &CublasLt, version: i32) -> String {
    use sys::libraryPropertyType_t as Property;
    let numbers = [Property::MAJOR_VERSION, Property::MINOR_VERSION, Property::PATCH_LEVEL].map(|which| {
        let mut number = 0;
        // SAFETY: writes one integer.
        let asked = unsafe { library.cublasLtGetProperty(which, &mut number) };
        asked.map_or(-1, |()| number)
    });
    let [major, minor, patch] = numbers;
    let facts = &driver.properties;
    let ((x, y), processors) = (facts.capability, facts.multiprocessors);
    format!(
        "cuBLASLt {major}.{minor}.{patch}; driver for CUDA {version}; {}, capability {x}.{y}, {processors} multiprocessors; \
         {WORKSPACE} bytes of workspace",
        facts.name
    )
}

/// The operation, and the layouts of A, B, C, D.
pub(crate) type Descriptors = (sys::cublasLtMatmulDesc_t, [sys::cublasLtMatrixLayout_t; 4]);

/// A product with its algorithm.
struct PreparedGemm {
    library: &'static CublasLt,
    gemm: Gemm,
    both: Descriptors,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Calls that it takes: one, or one for each image.
    turns: usize,
}

/// Descriptors that go when they are not handed on.
pub(crate) struct MatmulDescriptors {
    library: &'static CublasLt,
    operation: sys::cublasLtMatmulDesc_t,
    preference: sys::cublasLtMatmulPreference_t,
    layouts: [sys::cublasLtMatrixLayout_t; 4],
}

impl Drop for MatmulDescriptors {
    fn drop(&mut self) {
        // SAFETY: each descriptor is null or was made for `self`, and is destroyed once.
        unsafe { destroy(self.library, self.operation, self.preference, &self.layouts) };
    }
}

/// # Safety
/// Each is null or alive and not used again.
unsafe fn destroy(
    library: &CublasLt,
    operation: sys::cublasLtMatmulDesc_t,
    preference: sys::cublasLtMatmulPreference_t,
    layouts: &[sys::cublasLtMatrixLayout_t],
) {
    // SAFETY: the caller's promise.
    unsafe {
        if !operation.is_null() {
            let _ = library.cublasLtMatmulDescDestroy(operation);
        }
        if !preference.is_null() {
            let _ = library.cublasLtMatmulPreferenceDestroy(preference);
        }
        for layout in layouts.iter().filter(|layout| !layout.is_null()) {
            let _ = library.cublasLtMatrixLayoutDestroy(*layout);
        }
    }
}

impl PreparedGemm {
    fn new(lt: &CublasLtHandle, driver: &NvidiaDriver, gemm: &Gemm) -> Result<Self> {
        let library = lt.library;
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        let storage = match gemm.dtype {
            DType::F16 => sys::cudaDataType::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
            DType::F32 => return Err(Error::Graph("products of f32 are not for the library".into())),
        };
        let float = sys::cudaDataType::CUDA_R_32F;
        let out = if gemm.out_f32 { float } else { storage };
        let null = std::ptr::null_mut::<c_void>();
        let (operation, layouts) = (null.cast(), [null.cast(); 4]);
        let mut parts = MatmulDescriptors { library, operation, preference: null.cast(), layouts };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // SAFETY: writes one handle, destroyed with the parts.
        let made = unsafe { library.cublasLtMatmulDescCreate(&mut parts.operation, compute, float) };
        made.map_err(|code| fault("cublasLtMatmulDescCreate", code))?;
        // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        parts.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(gemm.transpose_a))?;
        parts.set(Desc::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(gemm.transpose_b))?;
        if let Some(bias) = gemm.epilogue.bias() {
            parts.set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            parts.bias(bias)?;
        }
        let shape = |rows, columns, transposed| if transposed { (columns, rows) } else { (rows, columns) };
        let sizes = [
            (storage, shape(gemm.m, gemm.k, gemm.transpose_a), gemm.a),
            (storage, shape(gemm.k, gemm.n, gemm.transpose_b), gemm.b),
            (out, (gemm.m, gemm.n), gemm.epilogue.residual().unwrap_or(gemm.d)),
            (out, (gemm.m, gemm.n), gemm.d),
        ];
        for (layout, (kind, (rows, columns), matrix)) in parts.layouts.iter_mut().zip(sizes) {
            let (rows, columns, leading) = (rows as u64, columns as u64, matrix.leading as i64);
            // SAFETY: writes one handle, destroyed with the parts.
            let made = unsafe { library.cublasLtMatrixLayoutCreate(layout, kind, rows, columns, leading) };
            made.map_err(|code| fault("cublasLtMatrixLayoutCreate", code))?;
        }
        let algorithm = {
            let mut trial = GemmTrial { driver, lt, parts: &mut parts, gemm, scratch: None };
            lt.choice.choose(GemmShape::of(gemm), &mut trial)?
        };
        if let Some(bias) = gemm.epilogue.bias() {
            parts.bias(bias)?; // A trial has put its own there.
        }
        let turns = if gemm.batch > 1 && !parts.batched(lt, gemm, &sizes.map(|s| s.2.stride), &algorithm)? {
            gemm.batch
        } else {
            1
        };
        let both = parts.both();
        // Handed on.
        (parts.operation, parts.layouts) = (null.cast(), [null.cast(); 4]);
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm };
        Ok(Self { library, gemm: *gemm, both, algorithm, turns })
    }
}

impl Drop for PreparedGemm {
    fn drop(&mut self) {
        // SAFETY: handed on to `self` alone.
        unsafe { destroy(self.library, self.both.0, std::ptr::null_mut(), &self.both.1) };
    }
}

impl MatmulDescriptors {
    pub(crate) fn both(&self) -> Descriptors {
        (self.operation, self.layouts)
    }

    fn set<T>(&self, which: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the descriptor is alive; the attribute's value has the type that the callers pass.
        let set = unsafe { self.library.cublasLtMatmulDescSetAttribute(self.operation, which, value, size_of::<T>()) };
        set.map_err(|code| fault("cublasLtMatmulDescSetAttribute", code))
    }

    /// Where the bias lies on the device.
    pub(crate) fn bias(&self, address: u64) -> Result<()> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)
    }

    /// Up to that many algorithms for one image that fit the workspace, the library's favourite first.
    pub(crate) fn suggest(&mut self, lt: &CublasLtHandle, most: usize) -> Result<Vec<Algorithm>> {
        self.prefer()?;
        let [a, b, c, d] = self.layouts;
        let mut answers = vec![HeuristicResult::EMPTY; most.max(1)];
        let (room, mut count) = (i32::try_from(answers.len()).unwrap_or(i32::MAX), 0);
        // SAFETY: all descriptors are alive; at most `room` answers are written, and their number.
        let asked = unsafe {
            let (operation, preference, to) = (self.operation, self.preference, answers.as_mut_ptr());
            let library = self.library;
            library.cublasLtMatmulAlgoGetHeuristic(lt.handle, operation, a, b, c, d, preference, room, to, &mut count)
        };
        asked.map_err(|code| fault("cublasLtMatmulAlgoGetHeuristic", code))?;
        answers.truncate(usize::try_from(count).unwrap_or(0));
        answers.retain(|answer| answer.status == 0 && answer.workspace <= WORKSPACE);
        Ok(answers.iter().map(|answer| answer.algorithm.data).collect())
    }

    /// What suggestions must keep to.
    fn prefer(&mut self) -> Result<()> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        if !self.preference.is_null() {
            return Ok(());
        }
        // SAFETY: writes one handle, destroyed with the parts.
        let made = unsafe { self.library.cublasLtMatmulPreferenceCreate(&mut self.preference) };
        made.map_err(|code| fault("cublasLtMatmulPreferenceCreate", code))?;
        let set = |which, value: *const c_void, size| {
            // SAFETY: the preference is alive; a size for the workspace, 32 bits for the others.
            let set = unsafe { self.library.cublasLtMatmulPreferenceSetAttribute(self.preference, which, value, size) };
            set.map_err(|code| fault("cublasLtMatmulPreferenceSetAttribute", code))
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
        Ok(())
    }

    /// Whether an algorithm computes the product with these layouts and the workspace.
    pub(crate) fn takes(&self, lt: &CublasLtHandle, algorithm: &Algorithm) -> bool {
        let [a, b, c, d] = self.layouts;
        let algorithm = sys::cublasLtMatmulAlgo_t { data: *algorithm };
        let mut answer = HeuristicResult::EMPTY;
        // SAFETY: all descriptors are alive; one answer is written.
        let checked = unsafe {
            self.library.cublasLtMatmulAlgoCheck(lt.handle, self.operation, a, b, c, d, &algorithm, &mut answer)
        };
        checked.is_ok() && answer.workspace <= WORKSPACE
    }

    /// Makes the layouts those of the whole batch; `false`, and those of one image, where the algorithm does not take it.
    fn batched(&self, lt: &CublasLtHandle, gemm: &Gemm, strides: &[usize; 4], algorithm: &Algorithm) -> Result<bool> {
        use sys::cublasLtMatrixLayoutAttribute_t as Layout;
        let count = |images: usize| -> Result<()> {
            let images = i32::try_from(images).unwrap_or(i32::MAX);
            for (layout, stride) in self.layouts.iter().zip(strides) {
                let stride = i64::try_from(*stride).unwrap_or(i64::MAX);
                let set = |which, value: *const c_void, size| {
                    // SAFETY: the layout is alive; 32 bits for the count, 64 for the stride.
                    let set = unsafe { self.library.cublasLtMatrixLayoutSetAttribute(*layout, which, value, size) };
                    set.map_err(|code| fault("cublasLtMatrixLayoutSetAttribute", code))
                };
                set(Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const images).cast(), size_of::<i32>())?;
                let which = Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
                set(which, (&raw const stride).cast(), size_of::<i64>())?;
            }
            Ok(())
        };
        count(gemm.batch)?;
        let fits = self.takes(lt, algorithm);
        if !fits {
            count(1)?;
        }
        Ok(fits)
    }
}

/// An error of the library. A fault of the device shows, and marks it lost, at the driver's next call.
fn fault(call: &str, code: StatusCode) -> Error {
    Error::Fault { device: DEVICE.into(), call: call.into(), what: status(code), lost: false }
}
