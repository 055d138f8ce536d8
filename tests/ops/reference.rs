//! The operations as plain loops in f64.

use super::functions::{gelu, swish};
use braid::graph::Activation;

/// `x w^T + bias`: rows of `inputs` values to rows of `outputs`.
pub fn linear(x: &[f64], w: &[f64], bias: Option<&[f64]>, inputs: usize, outputs: usize) -> Vec<f64> {
    let row = |x: &[f64], j: usize| -> f64 {
        let dot: f64 = x.iter().zip(&w[j * inputs..]).map(|(a, b)| a * b).sum();
        dot + bias.map_or(0.0, |bias| bias[j])
    };
    x.chunks(inputs).flat_map(|x| (0..outputs).map(move |j| row(x, j))).collect()
}

/// A convolution over images of `grid`, to which those given are enlarged by the nearest pixel.
pub struct Convolution {
    pub kernel: usize,
    pub stride: usize,
    /// Before and after.
    pub padding: [usize; 2],
    pub grid: (usize, usize),
}

impl Convolution {
    /// Images [n, h, w, c], weights [o, c, kernel, kernel].
    pub fn apply(
        &self,
        x: &[f64],
        [n, h, w, c]: [usize; 4],
        weights: &[f64],
        bias: Option<&[f64]>,
        o: usize,
    ) -> Vec<f64> {
        let Self { kernel, stride, padding, grid } = *self;
        let side = |grid: usize| (grid + padding[0] + padding[1] - kernel) / stride + 1;
        let (oh, ow, padding) = (side(grid.0), side(grid.1), padding[0]);
        let mut out = Vec::new();
        for at in 0..n * oh * ow * o {
            let (i, y, xx, oc) = (at / (oh * ow * o), at / (ow * o) % oh, at / o % ow, at % o);
            let mut sum = bias.map_or(0.0, |bias| bias[oc]);
            for tap in 0..kernel * kernel {
                let (ky, kx) = (tap / kernel, tap % kernel);
                let (gy, gx) = (y * stride + ky, xx * stride + kx);
                if gy < padding || gx < padding || gy - padding >= grid.0 || gx - padding >= grid.1 {
                    continue;
                }
                let (sy, sx) = ((gy - padding) * h / grid.0, (gx - padding) * w / grid.1);
                for ic in 0..c {
                    sum += x[((i * h + sy) * w + sx) * c + ic] * weights[((oc * c + ic) * kernel + ky) * kernel + kx];
                }
            }
            out.push(sum);
        }
        out
    }
}

pub fn activation(kind: Activation, v: f64) -> f64 {
    match kind {
        Activation::Silu => swish(v, 1.0),
        Activation::Gelu => gelu(v),
        Activation::QuickGelu => swish(v, 1.702),
        other => panic!("{other:?} has no reference"),
    }
}

/// The first half of each row times the GELU of the second.
pub fn geglu(x: &[f64], inner: usize) -> Vec<f64> {
    let row = |x: &[f64]| (0..inner).map(|j| x[j] * activation(Activation::Gelu, x[inner + j])).collect::<Vec<_>>();
    x.chunks(2 * inner).flat_map(row).collect()
}

/// Row `i` of `a`, then row `i` of `b`.
pub fn concat(a: &[f64], ca: usize, b: &[f64], cb: usize) -> Vec<f64> {
    a.chunks(ca).zip(b.chunks(cb)).flat_map(|(a, b)| a.iter().chain(b).copied()).collect()
}

/// Values at these places become normal together.
fn normalize(x: &mut [f64], places: &[usize], eps: f64) {
    let mean = places.iter().map(|p| x[*p]).sum::<f64>() / places.len() as f64;
    let variance = places.iter().map(|p| (x[*p] - mean).powi(2)).sum::<f64>() / places.len() as f64;
    places.iter().for_each(|p| x[*p] = (x[*p] - mean) / (variance + eps).sqrt());
}

pub struct Norm<'a> {
    pub weight: &'a [f64],
    pub bias: &'a [f64],
    pub eps: f64,
}

impl Norm<'_> {
    fn scaled(&self, x: Vec<f64>) -> Vec<f64> {
        let c = self.weight.len();
        x.iter().enumerate().map(|(i, v)| v * self.weight[i % c] + self.bias[i % c]).collect()
    }

    pub fn layer(&self, x: &[f64]) -> Vec<f64> {
        let (mut x, c) = (x.to_vec(), self.weight.len());
        (0..x.len() / c).for_each(|row| normalize(&mut x, &(row * c..(row + 1) * c).collect::<Vec<_>>(), self.eps));
        self.scaled(x)
    }

    pub fn group(&self, x: &[f64], images: usize, groups: usize) -> Vec<f64> {
        let (mut x, c) = (x.to_vec(), self.weight.len());
        let (pixels, width) = (x.len() / images / c, c / groups);
        for at in 0..images * groups {
            let (image, group) = (at / groups, at % groups);
            let place = |e: usize| (image * pixels + e / width) * c + group * width + e % width;
            normalize(&mut x, &(0..pixels * width).map(place).collect::<Vec<_>>(), self.eps);
        }
        self.scaled(x)
    }
}

/// Attention within one image: rows of `heads * dim` values.
#[derive(Clone, Copy)]
pub struct Attention {
    pub heads: usize,
    pub dim: usize,
    pub causal: bool,
}

impl Attention {
    /// The first `seen` keys count.
    pub fn apply(&self, q: &[f64], k: &[f64], v: &[f64], seen: usize) -> Vec<f64> {
        let Self { heads, dim, causal } = *self;
        let c = heads * dim;
        let mut out = vec![0.0; q.len()];
        for at in 0..q.len() / dim {
            let (t, head) = (at / heads, at % heads);
            let keys = if causal { seen.min(t + 1) } else { seen };
            let row = |x: &[f64], r: usize| x[r * c + head * dim..][..dim].to_vec();
            let dot = |j: usize| row(q, t).iter().zip(row(k, j)).map(|(a, b)| a * b).sum::<f64>();
            let scores: Vec<f64> = (0..keys).map(|j| dot(j) / (dim as f64).sqrt()).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for d in 0..dim {
                let weighted = |j: usize| (scores[j] - max).exp() / sum * v[j * c + head * dim + d];
                out[t * c + head * dim + d] = (0..keys).map(weighted).sum();
            }
        }
        out
    }
}
