//! Operations that follow the sums of a product, and the way into its result.

use super::pointwise::activated;
use crate::device::cpu::microkernel::{MR, NR, TILE};
use crate::device::cpu::op::OpRun;
use crate::device::cpu::simd::{for_every_isa, gelu};
use crate::graph::{Activation, EpilogueActivation, ImplicitGemm};
use std::ops::Range;

/// The work that a thread takes at a time: some rows of the result in the columns of some panels.
pub(super) struct Item {
    pub(super) panels: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// Bias, per-image bias, activation and residual, in this order.
pub(super) struct Epilogue {
    bias: Vec<f32>,
    /// The operand that is the per-image bias.
    per_image_bias: Option<usize>,
    activation: EpilogueActivation,
    /// The operand that is the residual.
    residual: Option<usize>,
    /// Channels of the result.
    n: usize,
    rows_per_image: usize,
}

impl Epilogue {
    /// The epilogue of `gemm`, whose result has `n` channels.
    pub(super) fn new(gemm: ImplicitGemm<'_>, n: usize, rows_per_image: usize) -> Self {
        let mut bias = Vec::new();
        if gemm.parts.iter().any(|p| p.bias.is_some()) {
            for part in gemm.parts {
                let width = part.weight.shape()[0];
                bias.extend(part.bias.as_ref().map_or_else(|| vec![0.0; width], |b| b.to_f32()));
            }
        }
        let (per_image_bias, residual) = (gemm.per_image_bias(), gemm.residual());
        Self { bias, per_image_bias, activation: gemm.epilogue.activation, residual, n, rows_per_image }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.bias.len() * 4
    }

    /// The columns of the result that panel `p` has.
    fn columns(&self, p: usize) -> Range<usize> {
        let width = if self.activation == EpilogueActivation::Geglu { NR / 2 } else { NR };
        p * width..self.n.min((p + 1) * width)
    }

    /// Fetches what [`Epilogue::store`] of these rows in panel `p` writes and reads into the first-level cache.
    pub(super) fn prefetch(&self, run: &OpRun<'_>, rows: Range<usize>, p: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
            let residual = self.residual.map(|k| run.operand(k));
            let columns = self.columns(p);
            for row in rows {
                for column in columns.clone().step_by(16) {
                    let at = row * self.n + column;
                    // SAFETY: a prefetch of any address does nothing else; these lie in the tensors.
                    unsafe {
                        _mm_prefetch::<_MM_HINT_ET0>(run.out().add(at).cast());
                        if let Some(residual) = residual {
                            _mm_prefetch::<_MM_HINT_T0>(residual.add(at).cast());
                        }
                    }
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (run, rows, p);
    }

    /// Applies the epilogue to the sums of an item and stores them.
    ///
    /// # Safety
    /// As [`crate::device::cpu::op::CpuOp::run`].
    pub(super) unsafe fn store(&self, acc: &[f32], run: &OpRun<'_>, item: &Item) {
        let Item { panels, rows } = item;
        let operand = |k: Option<usize>| k.map_or(std::ptr::null(), |k| run.operand(k));
        let (per_image_bias, residual) = (operand(self.per_image_bias), operand(self.residual));
        for (t, m) in rows.clone().step_by(MR).enumerate() {
            for (i, p) in panels.clone().enumerate() {
                let tile = Tile {
                    epilogue: self,
                    sums: &acc[(t * panels.len() + i) * TILE..][..TILE],
                    rows: m..rows.end.min(m + MR),
                    columns: self.columns(p),
                    per_image_bias,
                    residual,
                    out: run.out(),
                };
                store_tile(&tile);
            }
        }
    }
}

/// The sums of some rows and columns of a result: the columns lie in it, and nobody else uses that part of it.
struct Tile<'a> {
    epilogue: &'a Epilogue,
    /// A row has [`NR`]; of GEGLU the latter half are the gates.
    sums: &'a [f32],
    rows: Range<usize>,
    columns: Range<usize>,
    /// The whole operands, or null.
    per_image_bias: *const f32,
    residual: *const f32,
    out: *mut f32,
}

/// A row of a tile; what there is not is empty.
struct Row<'a> {
    sums: &'a [f32],
    per_image_bias: &'a [f32],
    residual: &'a [f32],
    out: &'a mut [f32],
}

impl<'a> Tile<'a> {
    /// The bias of the columns, or of those `from` further on; empty where there is none.
    #[inline(always)]
    fn bias(&self, from: usize) -> &'a [f32] {
        let bias = &self.epilogue.bias;
        if bias.is_empty() { &[] } else { &bias[from..][self.columns.clone()] }
    }

    /// Row `r` of the tile. (No closure is handed around here: one would not become part of a function with a processor's features.)
    #[inline(always)]
    fn row(&self, r: usize) -> Row<'a> {
        let (n, first, count, row) = (self.epilogue.n, self.columns.start, self.columns.len(), self.rows.start + r);
        let image = if self.per_image_bias.is_null() { 0 } else { row / self.epilogue.rows_per_image };
        // SAFETY: the rows and the columns lie in tensors of those sizes; this part of the result is the tile's own.
        unsafe {
            let per_image_bias = match self.per_image_bias.is_null() {
                true => &[],
                false => std::slice::from_raw_parts(self.per_image_bias.add(image * n + first), count),
            };
            let residual = match self.residual.is_null() {
                true => &[],
                false => std::slice::from_raw_parts(self.residual.add(row * n + first), count),
            };
            let out = std::slice::from_raw_parts_mut(self.out.add(row * n + first), count);
            Row { sums: &self.sums[r * NR..][..NR], per_image_bias, residual, out }
        }
    }

    /// Sums and what is added to them, in registers from the sums to the result: memory that was written in parts and is read again
    /// as a whole makes the processor wait.
    #[inline(always)]
    fn add<const BIAS: bool, const IMAGE: bool, const RESIDUAL: bool>(&self) {
        let bias = self.bias(0);
        for r in 0..self.rows.len() {
            let row = self.row(r);
            let n = row.out.len();
            let (bias, image) = (of(BIAS, bias, n), of(IMAGE, row.per_image_bias, n));
            let (residual, sums) = (of(RESIDUAL, row.residual, n), &row.sums[..n]);
            for j in 0..n {
                let mut x = sums[j];
                if BIAS {
                    x += bias[j];
                }
                if IMAGE {
                    x += image[j];
                }
                if RESIDUAL {
                    x += residual[j];
                }
                row.out[j] = x;
            }
        }
    }

    /// [`Tile::add`] of what there is, with a residual if `residual`.
    #[inline(always)]
    fn add_all(&self, residual: bool) {
        match (!self.epilogue.bias.is_empty(), !self.per_image_bias.is_null(), residual) {
            (false, false, false) => self.add::<false, false, false>(),
            (false, false, true) => self.add::<false, false, true>(),
            (false, true, false) => self.add::<false, true, false>(),
            (false, true, true) => self.add::<false, true, true>(),
            (true, false, false) => self.add::<true, false, false>(),
            (true, false, true) => self.add::<true, false, true>(),
            (true, true, false) => self.add::<true, true, false>(),
            (true, true, true) => self.add::<true, true, true>(),
        }
    }

    /// Values times GELU of gates.
    #[inline(always)]
    fn gated<const FMA: bool, const BIAS: bool>(&self) {
        let (of_values, of_gates) = (self.bias(0), self.bias(self.epilogue.n));
        for r in 0..self.rows.len() {
            let row = self.row(r);
            let n = row.out.len();
            let (of_values, of_gates) = (of(BIAS, of_values, n), of(BIAS, of_gates, n));
            let (values, gates) = (&row.sums[..n], &row.sums[NR / 2..][..n]);
            for j in 0..n {
                let (mut value, mut gate) = (values[j], gates[j]);
                if BIAS {
                    value += of_values[j];
                    gate += of_gates[j];
                }
                row.out[j] = value * gelu::<FMA>(gate);
            }
        }
    }

    /// Activates the result.
    #[inline(always)]
    fn activate<const FMA: bool>(&self, kind: Activation) {
        for r in 0..self.rows.len() {
            activated::<FMA>(self.row(r).out, kind);
        }
    }

    /// Adds the residual to the result, where there is one.
    #[inline(always)]
    fn add_residual(&self) {
        if !self.residual.is_null() {
            for r in 0..self.rows.len() {
                let row = self.row(r);
                for (x, y) in row.out.iter_mut().zip(row.residual) {
                    *x += y;
                }
            }
        }
    }
}

/// The first `n` elements, or none where they are not there.
#[inline(always)]
fn of(there: bool, elements: &[f32], n: usize) -> &[f32] {
    if there { &elements[..n] } else { &[] }
}

for_every_isa! {
    fn store_tile(tile: &Tile<'_>) {
        match tile.epilogue.activation {
            EpilogueActivation::None => tile.add_all(!tile.residual.is_null()),
            EpilogueActivation::Pointwise(kind) => {
                tile.add_all(false);
                tile.activate::<FMA>(kind);
                tile.add_residual();
            }
            EpilogueActivation::Geglu => match tile.epilogue.bias.is_empty() {
                true => tile.gated::<FMA, false>(),
                false => tile.gated::<FMA, true>(),
            },
        }
    }
}
