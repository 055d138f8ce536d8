//! The rows of the left matrix of an implicit GEMM: those of the operands, or the pixels under a convolution's kernel.

use super::pointwise::nearest;
use crate::graph::Conv2dParams;

/// The way from a row of the result to its inputs, in one or two sources.
pub(crate) enum RowSource {
    /// Row m of every source.
    Rows { channels: [usize; 2] },
    /// The pixels under the kernel of a convolution.
    Taps {
        channels: [usize; 2],
        /// Height and width of the sources.
        source: [usize; 2],
        /// Height and width of the result.
        result: [usize; 2],
        kernel: usize,
        /// For each result row and tap the source row, or none where it lies in the padding; then the same for columns.
        y: Vec<Option<u32>>,
        x: Vec<Option<u32>>,
    },
}

impl RowSource {
    /// The rows of a fully connected layer, or of a convolution from `source` `[N, H, W, C]` to `result` `[N, H', W', O]`.
    pub(crate) fn new(conv: Option<Conv2dParams>, channels: [usize; 2], source: &[usize], result: &[usize]) -> Self {
        let Some(conv) = conv else { return Self::Rows { channels } };
        let (h, w) = (source[1], source[2]);
        let (grid_h, grid_w) = conv.resize.unwrap_or((h, w));
        let axis = |out: usize, grid: usize, source: usize| {
            let mut table = Vec::with_capacity(out * conv.kernel);
            for o in 0..out {
                for k in 0..conv.kernel {
                    let at = (o * conv.stride + k).checked_sub(conv.padding[0]).filter(|&i| i < grid);
                    table.push(at.map(|i| nearest(i, grid, source) as u32));
                }
            }
            table
        };
        Self::Taps {
            channels,
            source: [h, w],
            result: [result[1], result[2]],
            kernel: conv.kernel,
            y: axis(result[1], grid_h, h),
            x: axis(result[2], grid_w, w),
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Rows { .. } => 0,
            Self::Taps { y, x, .. } => (y.len() + x.len()) * 8,
        }
    }

    /// Points `out` at the inputs of rows `m..` under one tap, in source number `operand`, which begins at `x0`; at `zeros`
    /// where they lie in the padding.
    ///
    /// # Safety
    /// The rows exist.
    pub(crate) unsafe fn rows(
        &self,
        x0: *const f32,
        operand: usize,
        tap: usize,
        m: usize,
        zeros: *const f32,
        out: &mut [*const f32],
    ) {
        match self {
            Self::Rows { channels } => {
                let width = channels[operand];
                for (r, p) in out.iter_mut().enumerate() {
                    // SAFETY: row m + r of a matrix of that width.
                    *p = unsafe { x0.add((m + r) * width) };
                }
            }
            Self::Taps { channels, source: [h, w], result: [rh, rw], kernel, y, x } => {
                let width = channels[operand];
                let (ky, kx) = (tap / kernel, tap % kernel);
                for (r, p) in out.iter_mut().enumerate() {
                    let pixel = m + r;
                    let (image, rest) = (pixel / (rh * rw), pixel % (rh * rw));
                    let (oy, ox) = (rest / rw, rest % rw);
                    *p = match (y[oy * kernel + ky], x[ox * kernel + kx]) {
                        (Some(iy), Some(ix)) => {
                            let pixel = (image * h + iy as usize) * w + ix as usize;
                            // SAFETY: the tables hold places inside the source.
                            unsafe { x0.add(pixel * width) }
                        }
                        _ => zeros,
                    };
                }
            }
        }
    }
}
