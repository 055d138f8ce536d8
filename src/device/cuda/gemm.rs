//! Products of row-major tensors as a library for column-major ones takes them.

use super::driver::gemm::{Gemm, GemmEpilogue, MatrixRef};
use crate::tensor::DType;

/// `Y [rows, n] = X [rows, k] W^T + bias + residual` for each image, W `[n, k]`, all row-major; addresses, strides from row to row
/// in elements.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// The storage type.
    pub dtype: DType,
    /// Images: a product each, so that the library's choice for one image does not depend on how many there are.
    pub images: usize,
    /// Rows of an image.
    pub rows: usize,
    /// Columns of Y.
    pub n: usize,
    /// Columns of X.
    pub k: usize,
    /// X and its stride.
    pub x: (u64, usize),
    /// W and its stride.
    pub w: (u64, usize),
    /// Y and its stride.
    pub out: (u64, usize),
    /// Whether Y is f32.
    pub out_f32: bool,
    /// `[n]`, or 0.
    pub bias: u64,
    /// A tensor as Y and its stride, or 0.
    pub residual: (u64, usize),
}

impl Linear {
    /// The same product, column-major: Y^T = W X^T. A row-major matrix is the transpose of the column-major one in the same
    /// bytes, so Y^T is `n` by `rows`, W comes transposed, X as it is, and the bias runs down Y^T's columns.
    pub fn gemm(&self) -> Gemm {
        let images = |(data, leading): (u64, usize)| MatrixRef { data, leading, stride: self.rows * leading };
        let residual = (self.residual.0 != 0).then(|| images(self.residual));
        let epilogue = match (self.bias, residual) {
            (0, None) => GemmEpilogue::None,
            (bias, None) => GemmEpilogue::Bias(bias),
            (0, Some(residual)) => GemmEpilogue::Residual(residual),
            (bias, Some(residual)) => GemmEpilogue::BiasResidual(bias, residual),
        };
        Gemm {
            dtype: self.dtype,
            m: self.n,
            n: self.rows,
            k: self.k,
            batch: self.images,
            transpose_a: true,
            transpose_b: false,
            a: MatrixRef { data: self.w.0, leading: self.w.1, stride: 0 },
            b: images(self.x),
            d: images(self.out),
            out_f32: self.out_f32,
            epilogue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes a [`Gemm`] as its documentation says, on addresses that are places in one vector.
    fn column_major(gemm: &Gemm, memory: &mut [f64]) {
        for batch in 0..gemm.batch {
            let at = |m: &MatrixRef, row: usize, column: usize| {
                m.data as usize + batch * m.stride + column * m.leading + row
            };
            for column in 0..gemm.n {
                for row in 0..gemm.m {
                    let a = |l| if gemm.transpose_a { at(&gemm.a, l, row) } else { at(&gemm.a, row, l) };
                    let b = |l| if gemm.transpose_b { at(&gemm.b, column, l) } else { at(&gemm.b, l, column) };
                    let mut sum: f64 = (0..gemm.k).map(|l| memory[a(l)] * memory[b(l)]).sum();
                    sum += gemm.epilogue.bias().map_or(0.0, |bias| memory[bias as usize + row]);
                    sum += gemm.epilogue.residual().map_or(0.0, |c| memory[at(&c, row, column)]);
                    memory[at(&gemm.d, row, column)] = sum;
                }
            }
        }
    }

    #[test]
    fn a_linear_layer_column_major() {
        let (images, rows, n, k) = (2, 3, 4, 5);
        // X with a stride of 6, W, bias, residual, Y with a stride of 7, one after the other; address 0 means none.
        let (x, w, bias, residual, out) = (1, 1 + 36, 1 + 36 + 20, 61, 61 + 24);
        let mut memory: Vec<f64> = (0..out + 42).map(|i| f64::from((i * 37 % 23) as u32)).collect();
        let linear = Linear {
            dtype: DType::F16,
            images,
            rows,
            n,
            k,
            x: (x as u64, 6),
            w: (w as u64, k),
            out: (out as u64, 7),
            out_f32: false,
            bias: bias as u64,
            residual: (residual as u64, n),
        };
        let before = memory.clone();
        column_major(&linear.gemm(), &mut memory);
        for row in 0..images * rows {
            for column in 0..n {
                let dot: f64 = (0..k).map(|l| before[x + row * 6 + l] * before[w + column * k + l]).sum();
                let want = dot + before[bias + column] + before[residual + row * n + column];
                assert_eq!(memory[out + row * 7 + column], want);
            }
        }
    }
}
