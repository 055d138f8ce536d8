//! Descriptors of a product: its operation, the layouts of its operands, what algorithms for it must keep to.

use super::super::ffi::{CublasLt, HeuristicResult};
use super::autotune::Algorithm;
use super::handle::{CublasLtHandle, Descriptors, fault};
use crate::device::cuda::driver::gemm::{Gemm, MatrixRef};
use crate::error::{Error, Result};
use crate::tensor::DType;
use ::cudarc::cublaslt::sys;
use std::ffi::c_void;

/// Bytes to which every matrix is aligned at least: one number for all, so that the choice does not depend on where the memory
/// plan of one batch or another puts them.
const ALIGNMENT: u32 = 16;
/// Sums are not split over blocks: where they are, their order depends on the number of columns.
const NO_REDUCTION: u32 = 0;
/// Bytes of workspace. What splits sums (split-K, stream-K) needs some to join them.
const WORKSPACE: usize = 0;

/// The descriptors of one product of one image, destroyed on drop unless [`MatmulDescriptors::into_parts`] hands them on.
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

/// Destroys descriptors.
///
/// # Safety
/// Each is null or alive and not used again.
pub(crate) unsafe fn destroy(
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

impl MatmulDescriptors {
    /// Creates the descriptors of one image's product.
    ///
    /// # Errors
    /// [`Error::Graph`] for products of f32; those of the library.
    pub(crate) fn new(library: &'static CublasLt, gemm: &Gemm) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Desc;
        let [storage, out] = types(gemm)?;
        let null = std::ptr::null_mut::<c_void>();
        let (operation, layouts) = (null.cast(), [null.cast(); 4]);
        let mut parts = Self { library, operation, preference: null.cast(), layouts };
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        // SAFETY: writes one handle, destroyed with the parts.
        let made = unsafe { library.cublasLtMatmulDescCreate(&mut parts.operation, compute, scale) };
        made.map_err(|code| fault("cublasLtMatmulDescCreate", code))?;
        // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        parts.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(gemm.transpose_a))?;
        parts.set(Desc::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(gemm.transpose_b))?;
        if let Some(bias) = gemm.epilogue.bias() {
            parts.set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            parts.set_bias(bias)?;
        }
        let shape = |rows, columns, transposed| if transposed { (columns, rows) } else { (rows, columns) };
        let sizes = [
            (storage, shape(gemm.m, gemm.k, gemm.transpose_a)),
            (storage, shape(gemm.k, gemm.n, gemm.transpose_b)),
            (out, (gemm.m, gemm.n)),
            (out, (gemm.m, gemm.n)),
        ];
        for ((layout, (kind, (rows, columns))), matrix) in parts.layouts.iter_mut().zip(sizes).zip(operands(gemm)) {
            let (rows, columns, leading) = (rows as u64, columns as u64, matrix.leading as i64);
            // SAFETY: writes one handle, destroyed with the parts.
            let made = unsafe { library.cublasLtMatrixLayoutCreate(layout, kind, rows, columns, leading) };
            made.map_err(|code| fault("cublasLtMatrixLayoutCreate", code))?;
        }
        Ok(parts)
    }

    /// Hands operation and layouts on, for the caller to [`destroy`].
    pub(crate) fn into_parts(mut self) -> Descriptors {
        let both = self.both();
        let null = std::ptr::null_mut::<c_void>();
        (self.operation, self.layouts) = (null.cast(), [null.cast(); 4]);
        both
    }

    /// Operation and layouts, which `self` keeps.
    pub(crate) fn both(&self) -> Descriptors {
        (self.operation, self.layouts)
    }

    fn set<T>(&self, which: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the descriptor is alive; the attribute's value has the type that the callers pass.
        let set = unsafe { self.library.cublasLtMatmulDescSetAttribute(self.operation, which, value, size_of::<T>()) };
        set.map_err(|code| fault("cublasLtMatmulDescSetAttribute", code))
    }

    /// Sets the bias's address on the device.
    pub(crate) fn set_bias(&self, address: u64) -> Result<()> {
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)
    }

    /// Up to that many algorithms for one image that need no workspace, the library's favourite first.
    pub(crate) fn suggest(&mut self, lt: &CublasLtHandle, most: usize) -> Result<Vec<Algorithm>> {
        self.prefer()?;
        let [a, b, c, d] = self.layouts;
        let mut answers = vec![HeuristicResult::EMPTY; most.max(1)];
        let (room, mut count) = (i32::try_from(answers.len()).unwrap_or(i32::MAX), 0);
        // SAFETY: all descriptors are alive; at most `room` answers are written, and their number.
        let asked = unsafe {
            let (operation, preference, to) = (self.operation, self.preference, answers.as_mut_ptr());
            let library = self.library;
            library.cublasLtMatmulAlgoGetHeuristic(lt.raw, operation, a, b, c, d, preference, room, to, &mut count)
        };
        asked.map_err(|code| fault("cublasLtMatmulAlgoGetHeuristic", code))?;
        answers.truncate(usize::try_from(count).unwrap_or(0));
        answers.retain(|answer| answer.status == 0 && answer.workspace == WORKSPACE);
        Ok(answers.iter().map(|answer| answer.algorithm.data).collect())
    }

    /// Sets the limits to which suggestions must keep.
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
            (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, NO_REDUCTION),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, ALIGNMENT),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, ALIGNMENT),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, ALIGNMENT),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, ALIGNMENT),
        ] {
            set(which, (&raw const value).cast(), size_of::<u32>())?;
        }
        Ok(())
    }

    /// Whether an algorithm computes the product with these layouts and no workspace.
    pub(crate) fn takes(&self, lt: &CublasLtHandle, algorithm: &Algorithm) -> bool {
        let [a, b, c, d] = self.layouts;
        let algorithm = sys::cublasLtMatmulAlgo_t { data: *algorithm };
        let mut answer = HeuristicResult::EMPTY;
        // SAFETY: all descriptors are alive; one answer is written.
        let checked = unsafe {
            self.library.cublasLtMatmulAlgoCheck(lt.raw, self.operation, a, b, c, d, &algorithm, &mut answer)
        };
        checked.is_ok() && answer.workspace == WORKSPACE
    }

    /// Makes the layouts those of several images, whose columns follow one another in B, C and D; `false`, and the layouts of one
    /// image, where the algorithm does not take that many columns.
    pub(crate) fn fold(&self, lt: &CublasLtHandle, gemm: &Gemm, images: usize, algorithm: &Algorithm) -> Result<bool> {
        self.set_columns(gemm.n.saturating_mul(images))?;
        let fits = self.takes(lt, algorithm);
        if !fits {
            self.unfold(gemm)?;
        }
        Ok(fits)
    }

    /// Makes the layouts those of one image again.
    pub(crate) fn unfold(&self, gemm: &Gemm) -> Result<()> {
        self.set_columns(gemm.n)
    }

    /// Sets the columns of B, which is not transposed, of C and of D.
    fn set_columns(&self, columns: usize) -> Result<()> {
        let columns = columns as u64;
        for layout in &self.layouts[1..] {
            let which = sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS;
            let (value, size) = ((&raw const columns).cast(), size_of::<u64>());
            // SAFETY: the layout is alive; the attribute has 64 bits.
            let set = unsafe { self.library.cublasLtMatrixLayoutSetAttribute(*layout, which, value, size) };
            set.map_err(|code| fault("cublasLtMatrixLayoutSetAttribute", code))?;
        }
        Ok(())
    }
}

/// A, B, C, D; D takes the place of C where nothing is added.
fn operands(gemm: &Gemm) -> [MatrixRef; 4] {
    [gemm.a, gemm.b, gemm.epilogue.residual().unwrap_or(gemm.d), gemm.d]
}

/// The types of the factors and of the result.
fn types(gemm: &Gemm) -> Result<[sys::cudaDataType; 2]> {
    let storage = match gemm.dtype {
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F32 => return Err(Error::Graph("products of f32 are not for the library".into())),
    };
    Ok([storage, if gemm.out_f32 { sys::cudaDataType::CUDA_R_32F } else { storage }])
}
