//! Group and layer normalisation.

use super::pool::Pool;
use super::simd::{for_every_isa, swish};
use std::cell::UnsafeCell;

/// Pixels whose statistics are taken together; fixed, so that the sums do not depend on the number of threads.
const ROWS: usize = 64;

/// A group normalisation made ready for its shapes.
pub(crate) struct CpuGroupNorm {
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    pub(crate) silu: bool,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    /// Channels of the sources; the second is 0 where there is one source.
    pub(crate) channels: [usize; 2],
    pub(crate) images: usize,
    /// Pixels of an image.
    pub(crate) pixels: usize,
    /// For each image and block of pixels the channels' means, then their sums of squared deviations.
    stats: Shared,
    /// For each image the channels' factors, then their summands.
    lines: Shared,
}

struct Shared(UnsafeCell<Vec<f32>>);

// SAFETY: within a run the threads write disjoint parts (see `run`), and runs do not overlap: they take `&mut` programs.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(len: usize) -> Self {
        Self(UnsafeCell::new(vec![0.0; len]))
    }

    /// # Safety
    /// No two live slices overlap unless both are only read.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, at: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller's promise, and the index is checked.
        unsafe { &mut (&mut *self.0.get())[at..at + len] }
    }
}

/// Pointers of one run.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) sources: [*const f32; 2],
    pub(crate) out: *mut f32,
}

// SAFETY: sources are only read; items write disjoint parts of `out`.
unsafe impl Sync for Operands {}

// Methods, so that a closure captures the whole (which is `Sync`) and not a field (which is not).
impl Operands {
    fn sources(&self) -> &[*const f32; 2] {
        &self.sources
    }

    fn out(&self) -> *mut f32 {
        self.out
    }
}

impl CpuGroupNorm {
    #[allow(clippy::too_many_arguments)] // a constructor for exactly these fields
    pub(crate) fn new(
        groups: usize,
        eps: f32,
        silu: bool,
        weight: Vec<f32>,
        bias: Vec<f32>,
        channels: [usize; 2],
        images: usize,
        pixels: usize,
    ) -> Self {
        let c = channels[0] + channels[1];
        let stats = Shared::new(images * pixels.div_ceil(ROWS) * 2 * c);
        Self { groups, eps, silu, weight, bias, channels, images, pixels, stats, lines: Shared::new(images * 2 * c) }
    }

    /// Bytes that a norm of that many channels holds.
    pub(crate) fn bytes(channels: usize, images: usize, pixels: usize) -> usize {
        (2 * channels + images * 2 * channels * (1 + pixels.div_ceil(ROWS))) * 4
    }

    /// Computes the result.
    ///
    /// # Safety
    /// The operands have the lengths of the shapes given to [`CpuGroupNorm::new`].
    pub(crate) unsafe fn run(&self, pool: &Pool, operands: Operands) {
        let c = self.weight.len();
        let blocks = self.pixels.div_ceil(ROWS);
        // SAFETY: an item reads the pixels of its block and writes the block's statistics.
        pool.run(self.images * blocks, &|item, _| unsafe {
            let (image, block) = (item / blocks, item % blocks);
            let rows = block * ROWS..((block + 1) * ROWS).min(self.pixels);
            let (means, squares) = self.stats.part(item * 2 * c, 2 * c).split_at_mut(c);
            let mut first = 0;
            for (source, width) in operands.sources().iter().zip(self.channels) {
                if width > 0 {
                    let from = source.add((image * self.pixels + rows.start) * width);
                    let data = std::slice::from_raw_parts(from, rows.len() * width);
                    moments(data, &mut means[first..first + width], &mut squares[first..first + width]);
                    first += width;
                }
            }
        });
        // SAFETY: an item reads the image's statistics and writes the image's lines.
        pool.run(self.images, &|image, _| unsafe {
            let stats = self.stats.part(image * blocks * 2 * c, blocks * 2 * c);
            self.merge(stats, self.lines.part(image * 2 * c, 2 * c));
        });
        // SAFETY: an item reads the image's lines and writes the pixels of its block.
        pool.run(self.images * blocks, &|item, _| unsafe {
            let (image, block) = (item / blocks, item % blocks);
            let (factors, summands) = self.lines.part(image * 2 * c, 2 * c).split_at(c);
            for pixel in block * ROWS..((block + 1) * ROWS).min(self.pixels) {
                let at = image * self.pixels + pixel;
                let out = std::slice::from_raw_parts_mut(operands.out().add(at * c), c);
                let mut first = 0;
                for (source, width) in operands.sources().iter().zip(self.channels) {
                    let x = std::slice::from_raw_parts(source.add(at * width), width);
                    let range = first..first + width;
                    line(&mut out[range.clone()], x, &factors[range.clone()], &summands[range], self.silu);
                    first += width;
                }
            }
        });
    }

    /// Joins the blocks' moments of each group (Chan's formula, f64, fixed order) into a factor and a summand a channel.
    fn merge(&self, stats: &[f32], lines: &mut [f32]) {
        let c = self.weight.len();
        let width = c / self.groups;
        let (factors, summands) = lines.split_at_mut(c);
        for group in 0..self.groups {
            let (mut count, mut mean, mut squares) = (0f64, 0f64, 0f64);
            for (block, stat) in stats.chunks_exact(2 * c).enumerate() {
                let rows = ROWS.min(self.pixels - block * ROWS) as f64;
                for channel in group * width..(group + 1) * width {
                    let delta = f64::from(stat[channel]) - mean;
                    let total = count + rows;
                    mean += delta * rows / total;
                    squares += f64::from(stat[c + channel]) + delta * delta * count * rows / total;
                    count = total;
                }
            }
            let scale = 1.0 / (squares / count + f64::from(self.eps)).sqrt();
            for channel in group * width..(group + 1) * width {
                let factor = scale * f64::from(self.weight[channel]);
                factors[channel] = factor as f32;
                summands[channel] = (f64::from(self.bias[channel]) - mean * factor) as f32;
            }
        }
    }
}

for_every_isa! {
    /// Means and sums of squared deviations of each column.
    fn moments(data: &[f32], means: &mut [f32], squares: &mut [f32]) {
        let width = means.len();
        means.fill(0.0);
        squares.fill(0.0);
        for row in data.chunks_exact(width) {
            means.iter_mut().zip(row).for_each(|(m, x)| *m += x);
        }
        let scale = 1.0 / (data.len() / width) as f32;
        means.iter_mut().for_each(|m| *m *= scale);
        for row in data.chunks_exact(width) {
            for ((s, m), x) in squares.iter_mut().zip(&*means).zip(row) {
                *s += (x - m) * (x - m);
            }
        }
    }
}

for_every_isa! {
    fn line(out: &mut [f32], x: &[f32], factors: &[f32], summands: &[f32], silu: bool) {
        let values = x.iter().zip(factors).zip(summands).map(|((x, f), s)| x * f + s);
        if silu {
            out.iter_mut().zip(values).for_each(|(o, v)| *o = swish(v, 1.0));
        } else {
            out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
        }
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
    pub(crate) fn layer_norm(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
        let n = x.len() as f32;
        let mean = sum(x) / n;
        let scale = 1.0 / (sum_of_squares(x, mean) / n + eps).sqrt();
        for (((o, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *o = (x - mean) * scale * w + b;
        }
    }
}
