//! Layer normalisation and Euclidean norm: of each row.

use crate::device::cpu::op::{CpuOp, OpRun};
use crate::device::cpu::simd::for_every_isa;

/// A layer normalisation with its weights in f32.
pub(crate) struct CpuLayerNorm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) eps: f32,
}

impl CpuOp for CpuLayerNorm {
    fn bytes(&self) -> usize {
        (self.weight.len() + self.bias.len()) * 4
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        let (x, c) = (run.input(0), run.channels());
        run.for_each_row(|row, out| layer_norm(out, &x[row * c..][..c], &self.weight, &self.bias, self.eps));
    }
}

/// The Euclidean norm of each row.
pub(crate) struct CpuVectorNorm;

impl CpuOp for CpuVectorNorm {
    unsafe fn run(&self, run: &OpRun<'_>) {
        let c = run.input_shape(0).last().copied().unwrap_or(0);
        let x = run.input(0);
        run.for_each_row(|row, out| out[0] = sum_of_squares(&x[row * c..][..c], 0.0).sqrt());
    }
}

for_every_isa! {
    /// The sum over 16 lanes, which are then added in order.
    fn sum_of_squares(x: &[f32], mean: f32) -> f32 {
        let mut lanes = [0f32; 16];
        let chunks = x.chunks_exact(16);
        let rest: f32 = chunks.remainder().iter().map(|x| (x - mean) * (x - mean)).sum();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(l, x)| *l += (x - mean) * (x - mean));
        }
        lanes.iter().sum::<f32>() + rest
    }
}

for_every_isa! {
    fn sum(x: &[f32]) -> f32 {
        let mut lanes = [0f32; 16];
        let chunks = x.chunks_exact(16);
        let rest: f32 = chunks.remainder().iter().sum();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(l, x)| *l += x);
        }
        lanes.iter().sum::<f32>() + rest
    }
}

for_every_isa! {
    /// Normalises one row.
    fn layer_norm(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let n = x.len() as f32;
        let mean = sum(x) / n;
        let scale = 1.0 / (sum_of_squares(x, mean) / n + eps).sqrt();
        for (((o, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *o = (x - mean) * scale * w + b;
        }
    }
}
