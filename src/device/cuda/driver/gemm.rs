//! Matrix products as a driver takes them.

use crate::tensor::DType;

/// A product that a driver has prepared: its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmPlan(pub u64);

/// A matrix in device memory, column-major; one for each product of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MatrixRef {
    /// The address of its first element.
    pub data: u64,
    /// Elements from column to column.
    pub leading: usize,
    /// Elements from one product of the batch to the next.
    pub stride: usize,
}

/// The summands that are added to a product before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmEpilogue {
    /// Nothing.
    None,
    /// A bias of `m` values of the storage type at that address is added to every column.
    Bias(u64),
    /// A matrix of D's type and size is added: beta = 1 and C of the library.
    Residual(MatrixRef),
    /// Both.
    BiasResidual(u64, MatrixRef),
}

impl GemmEpilogue {
    /// The bias, where there is one.
    pub fn bias(&self) -> Option<u64> {
        match self {
            Self::Bias(bias) | Self::BiasResidual(bias, _) => Some(*bias),
            _ => None,
        }
    }

    /// The residual, where there is one.
    pub fn residual(&self) -> Option<MatrixRef> {
        match self {
            Self::Residual(matrix) | Self::BiasResidual(_, matrix) => Some(*matrix),
            _ => None,
        }
    }
}

/// Products as cuBLASLt has them, column-major: `D [m, n] = op(A) [m, k] op(B) [k, n] + epilogue`, f32 accumulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gemm {
    /// The type of A, B, the bias and, unless `out_f32`, of C and D.
    pub dtype: DType,
    /// Rows of D.
    pub m: usize,
    /// Columns of D.
    pub n: usize,
    /// The length of the sums.
    pub k: usize,
    /// Products of the batch.
    pub batch: usize,
    /// Whether A is stored `[k, m]`.
    pub transpose_a: bool,
    /// Whether B is stored `[n, k]`.
    pub transpose_b: bool,
    /// The first factor.
    pub a: MatrixRef,
    /// The second factor.
    pub b: MatrixRef,
    /// The result.
    pub d: MatrixRef,
    /// Whether D is f32.
    pub out_f32: bool,
    /// The summands.
    pub epilogue: GemmEpilogue,
}
