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

impl Gemm {
    /// Whether the batch is one product with `batch` times as many columns: A is the same for all images, and the columns of B, C
    /// and D go on from image to image.
    pub fn is_foldable(&self) -> bool {
        let goes_on = |matrix: MatrixRef| matrix.leading.checked_mul(self.n) == Some(matrix.stride);
        let others = [self.b, self.epilogue.residual().unwrap_or(self.d), self.d];
        !self.transpose_b && self.a.stride == 0 && others.into_iter().all(goes_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foldable_batches() {
        let matrix = |leading, stride| MatrixRef { data: 256, leading, stride };
        let gemm = Gemm {
            dtype: DType::F16,
            m: 32,
            n: 10,
            k: 16,
            batch: 3,
            transpose_a: true,
            transpose_b: false,
            a: matrix(16, 0),
            b: matrix(16, 160),
            d: matrix(40, 400),
            out_f32: false,
            epilogue: GemmEpilogue::BiasResidual(512, matrix(32, 320)),
        };
        assert!(gemm.is_foldable() && Gemm { epilogue: GemmEpilogue::None, ..gemm }.is_foldable());
        let changes: [fn(&mut Gemm); 5] = [
            |g| g.a.stride = 512,
            |g| g.b.stride = 0,
            |g| g.d.stride += 8,
            |g| g.epilogue = GemmEpilogue::Residual(MatrixRef { data: 1, leading: 32, stride: 328 }),
            |g| g.transpose_b = true,
        ];
        for change in changes {
            let mut other = gemm;
            change(&mut other);
            assert!(!other.is_foldable(), "{other:?}");
        }
    }
}
