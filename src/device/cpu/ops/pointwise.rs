//! Operations that make each row of their result from a row or two of their operands.

use crate::device::cpu::op::{CpuOp, OpRun, index};
use crate::device::cpu::pack::widen;
use crate::device::cpu::simd::{exp, for_every_isa, gelu, swish};
use crate::graph::Activation;
use crate::weights::Weight;

/// `[B, T]` integer ids to rows of `table` plus those of the positions.
pub(crate) struct CpuEmbedding {
    pub(crate) table: Vec<Weight>,
    pub(crate) positions: Vec<f32>,
}

impl CpuOp for CpuEmbedding {
    fn bytes(&self) -> usize {
        self.positions.len() * 4
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        let (ids, shape, c) = (run.integers(0), run.shape(), run.channels());
        let tokens = shape[shape.len() - 2];
        run.for_each_row(|row, out| {
            row_of(&self.table, index(ids[row]), out);
            add(out, &self.positions[row % tokens * c..][..c]);
        });
    }
}

/// One row of a table in parts as f32; an id past the end takes the last row.
fn row_of(table: &[Weight], mut id: usize, out: &mut [f32]) {
    let Some((last, others)) = table.split_last() else { return };
    let before = others.iter().find(|part| {
        let here = id < part.shape()[0];
        id -= if here { 0 } else { part.shape()[0] };
        here
    });
    let part = before.unwrap_or(last);
    let size = part.dtype().size();
    let at = id.min(part.shape()[0] - 1) * out.len() * size;
    widen(&part.bytes()[at..at + out.len() * size], part.dtype(), out);
}

/// A learned token before those of each image, and positions added to all.
pub(crate) struct CpuPrependClassToken {
    pub(crate) token: Vec<f32>,
    pub(crate) positions: Vec<f32>,
}

impl CpuOp for CpuPrependClassToken {
    fn bytes(&self) -> usize {
        (self.token.len() + self.positions.len()) * 4
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        let (x, tokens, c) = (run.input(0), run.shape()[1], run.channels());
        run.for_each_row(|row, out| {
            let (image, t) = (row / tokens, row % tokens);
            let from = if t == 0 { &self.token } else { &x[(image * (tokens - 1) + t - 1) * c..][..c] };
            out.copy_from_slice(from);
            add(out, &self.positions[t * c..][..c]);
        });
    }
}

/// A weight for each image.
pub(crate) struct CpuRepeat {
    pub(crate) weight: Vec<f32>,
}

impl CpuOp for CpuRepeat {
    fn bytes(&self) -> usize {
        self.weight.len() * 4
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        let c = run.channels();
        run.for_each_row(|row, out| out.copy_from_slice(&self.weight[row * c % self.weight.len()..][..c]));
    }
}

impl CpuOp for Activation {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (x, c) = (run.input(0), run.channels());
        run.for_each_row(|row, out| {
            out.copy_from_slice(&x[row * c..][..c]);
            activate(out, *self);
        });
    }
}

/// The first half of the channels times GELU of the second.
pub(crate) struct CpuGeglu;

impl CpuOp for CpuGeglu {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (x, c) = (run.input(0), run.channels());
        run.for_each_row(|row, out| {
            let (value, gate) = x[row * 2 * c..][..2 * c].split_at(c);
            times_gelu(out, value, gate);
        });
    }
}

/// The sum; the second operand repeats where it is smaller.
pub(crate) struct CpuAdd;

impl CpuOp for CpuAdd {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (a, b, c) = (run.input(0), run.input(1), run.channels());
        run.for_each_row(|row, out| {
            out.copy_from_slice(&a[row * c..][..c]);
            add(out, &b[row * c % b.len()..][..c]);
        });
    }
}

/// A row of the second operand added to all rows of its image.
pub(crate) struct CpuBroadcastAdd;

impl CpuOp for CpuBroadcastAdd {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (a, b, c) = (run.input(0), run.input(1), run.channels());
        let per_image = run.rows() / run.shape()[0];
        run.for_each_row(|row, out| {
            out.copy_from_slice(&a[row * c..][..c]);
            add(out, &b[row / per_image * c..][..c]);
        });
    }
}

/// Each row times its factor.
pub(crate) struct CpuScaleRows;

impl CpuOp for CpuScaleRows {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (x, factors, c) = (run.input(0), run.input(1), run.channels());
        run.for_each_row(|row, out| {
            let factor = factors[row % factors.len()];
            out.iter_mut().zip(&x[row * c..][..c]).for_each(|(out, x)| *out = x * factor);
        });
    }
}

/// The channels of two operands side by side.
pub(crate) struct CpuConcat;

impl CpuOp for CpuConcat {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (a, b, rows) = (run.input(0), run.input(1), run.rows());
        let (wa, wb) = (a.len() / rows, b.len() / rows);
        run.for_each_row(|row, out| {
            out[..wa].copy_from_slice(&a[row * wa..][..wa]);
            out[wa..].copy_from_slice(&b[row * wb..][..wb]);
        });
    }
}

/// Enlargement by nearest neighbour.
pub(crate) struct CpuUpsample;

impl CpuOp for CpuUpsample {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (x, from, to, c) = (run.input(0), run.input_shape(0), run.shape(), run.channels());
        let (h, w, oh, ow) = (from[1], from[2], to[1], to[2]);
        run.for_each_row(|row, out| {
            let (image, y, x0) = (row / (oh * ow), row / ow % oh, row % ow);
            let at = (image * h + nearest(y, oh, h)) * w + nearest(x0, ow, w);
            out.copy_from_slice(&x[at * c..][..c]);
        });
    }
}

/// The row of a source that enlarging it to `grid` rows by nearest neighbour puts at row `at`: torch's rule, the scale in f32,
/// rounded down.
pub(crate) fn nearest(at: usize, grid: usize, source: usize) -> usize {
    ((at as f32 * (source as f32 / grid as f32)) as usize).min(source - 1)
}

/// Sines and cosines of each value.
pub(crate) struct CpuTimestepEmbedding {
    pub(crate) flip: bool,
    pub(crate) shift: f32,
}

impl CpuOp for CpuTimestepEmbedding {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (x, half) = (run.input(0), run.channels() / 2);
        run.for_each_row(|row, out| {
            for i in 0..half {
                let exponent = -(10_000f32.ln()) * i as f32 / (half as f32 - self.shift);
                let angle = x[row] * exponent.exp();
                let (first, second) = if self.flip { (angle.cos(), angle.sin()) } else { (angle.sin(), angle.cos()) };
                out[i] = first;
                out[half + i] = second;
            }
        });
    }
}

/// One row of each image: the one that the second operand names, or the first.
pub(crate) struct CpuGather;

impl CpuOp for CpuGather {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (x, c) = (run.input(0), run.channels());
        let places = (run.operands() > 1).then(|| run.integers(1));
        let tokens = x.len() / (run.rows() * c);
        run.for_each_row(|row, out| {
            let t = places.map_or(0, |places| index(places[row]).min(tokens - 1));
            out.copy_from_slice(&x[(row * tokens + t) * c..][..c]);
        });
    }
}

/// Each channel times a factor of its own.
pub(crate) struct CpuScaleChannels {
    pub(crate) start: usize,
}

impl CpuOp for CpuScaleChannels {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let (x, c) = (run.input(0), run.channels());
        let factors = &run.input(1)[self.start..][..c];
        run.for_each_row(|row, out| {
            out.iter_mut().zip(&x[row * c..][..c]).zip(factors).for_each(|((o, x), factor)| *o = x * factor);
        });
    }
}

/// Writes the function of each element.
fn for_each_element(run: &OpRun<'_>, function: impl Fn(f32) -> f32 + Sync) {
    let (x, c) = (run.input(0), run.channels());
    run.for_each_row(|row, out| out.iter_mut().zip(&x[row * c..][..c]).for_each(|(o, x)| *o = function(*x)));
}

/// `x * scale + shift`.
pub(crate) struct CpuScaleShift {
    pub(crate) scale: f32,
    pub(crate) shift: f32,
}

impl CpuOp for CpuScaleShift {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let Self { scale, shift } = *self;
        for_each_element(run, |x| x * scale + shift);
    }
}

/// 0 in the place of what is below it; NaN stays.
pub(crate) struct CpuRelu;

impl CpuOp for CpuRelu {
    unsafe fn run(&self, run: &OpRun<'_>) {
        for_each_element(run, |x| if x < 0.0 { 0.0 } else { x });
    }
}

/// `bound * tanh(x / bound)`.
pub(crate) struct CpuSoftClamp {
    pub(crate) bound: f32,
}

impl CpuOp for CpuSoftClamp {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let bound = self.bound;
        for_each_element(run, |x| bound * (x / bound).tanh());
    }
}

for_every_isa! {
    /// `x += y` over the length of x.
    pub(crate) fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

for_every_isa! {
    /// `out = value * gelu(gate)`.
    pub(crate) fn times_gelu(out: &mut [f32], value: &[f32], gate: &[f32]) {
        for ((o, v), g) in out.iter_mut().zip(value).zip(gate) {
            *o = v * gelu::<FMA>(*g);
        }
    }
}

for_every_isa! {
    /// Applies an activation in place.
    pub(crate) fn activate(x: &mut [f32], kind: Activation) {
        activated::<FMA>(x, kind);
    }
}

/// [`activate`] as part of a larger loop.
#[inline(always)]
pub(super) fn activated<const FMA: bool>(x: &mut [f32], kind: Activation) {
    match kind {
        Activation::Silu => x.iter_mut().for_each(|x| *x = swish::<FMA>(*x, 1.0)),
        Activation::Gelu => x.iter_mut().for_each(|x| *x = gelu::<FMA>(*x)),
        Activation::QuickGelu => x.iter_mut().for_each(|x| *x /= 1.0 + exp::<FMA>(-1.702 * *x)),
    }
}
