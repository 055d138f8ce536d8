//! Group normalisation, over one or two sources whose channels are joined.

use crate::device::cpu::op::{CpuOp, OpRun};
use crate::device::cpu::simd::{for_every_isa, swish};
use crate::graph::Node;
use crate::weights::Weight;
use std::cell::UnsafeCell;

/// Pixels whose statistics are taken together; fixed, so that the sums do not depend on the number of threads.
const ROWS: usize = 64;

/// A group normalisation prepared for its shapes.
pub(crate) struct CpuGroupNorm {
    groups: usize,
    eps: f32,
    silu: bool,
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Channels of the sources; the second is 0 where there is one source.
    channels: [usize; 2],
    images: usize,
    /// Pixels of an image.
    pixels: usize,
    /// For each image and block of pixels the channels' means, then their sums of squared deviations.
    stats: SharedBuffer,
    /// For each image the channels' factors, then their summands.
    lines: SharedBuffer,
}

/// Floats that the threads of one run share.
struct SharedBuffer(UnsafeCell<Vec<f32>>);

// SAFETY: within a run the threads write disjoint parts (see `run`), and runs do not overlap: an executable runs by `&mut`.
unsafe impl Sync for SharedBuffer {}

impl SharedBuffer {
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

/// A group normalisation without its shapes.
pub(crate) struct GroupNormParams<'a> {
    pub(crate) groups: usize,
    /// Added to the variance.
    pub(crate) eps: f32,
    /// Whether SiLU follows.
    pub(crate) silu: bool,
    pub(crate) weight: &'a Weight,
    pub(crate) bias: &'a Weight,
}

impl CpuGroupNorm {
    /// Prepares the normalisation for the result of `node` and operands of these shapes.
    pub(crate) fn new(params: &GroupNormParams<'_>, node: &Node, shapes: &[&[usize]]) -> Self {
        let GroupNormParams { groups, eps, silu, weight, bias } = *params;
        let width = |k: usize| shapes.get(k).map_or(0, |shape| shape[shape.len() - 1]);
        let (channels, images, pixels) = ([width(0), width(1)], node.shape[0], node.tokens());
        let c = channels[0] + channels[1];
        let stats = SharedBuffer::new(images * pixels.div_ceil(ROWS) * 2 * c);
        let lines = SharedBuffer::new(images * 2 * c);
        let (weight, bias) = (weight.to_f32(), bias.to_f32());
        Self { groups, eps, silu, weight, bias, channels, images, pixels, stats, lines }
    }

    /// Bytes that a norm of that many channels holds.
    pub(crate) fn bytes_of(channels: usize, images: usize, pixels: usize) -> usize {
        (2 * channels + images * 2 * channels * (1 + pixels.div_ceil(ROWS))) * 4
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

impl CpuOp for CpuGroupNorm {
    fn bytes(&self) -> usize {
        Self::bytes_of(self.weight.len(), self.images, self.pixels)
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        let c = self.weight.len();
        let blocks = self.pixels.div_ceil(ROWS);
        let sources = || self.channels.into_iter().take(run.operands()).enumerate();
        // SAFETY: an item reads the pixels of its block and writes the block's statistics.
        run.pool.run(self.images * blocks, &|item, _| unsafe {
            let (image, block) = (item / blocks, item % blocks);
            let rows = block * ROWS..((block + 1) * ROWS).min(self.pixels);
            let (means, squares) = self.stats.part(item * 2 * c, 2 * c).split_at_mut(c);
            let mut first = 0;
            for (k, width) in sources() {
                let from = run.operand(k).add((image * self.pixels + rows.start) * width);
                let data = std::slice::from_raw_parts(from, rows.len() * width);
                moments(data, &mut means[first..first + width], &mut squares[first..first + width]);
                first += width;
            }
        });
        // SAFETY: an item reads the image's statistics and writes the image's lines.
        run.pool.run(self.images, &|image, _| unsafe {
            let stats = self.stats.part(image * blocks * 2 * c, blocks * 2 * c);
            self.merge(stats, self.lines.part(image * 2 * c, 2 * c));
        });
        // SAFETY: an item reads the image's lines and writes the pixels of its block.
        run.pool.run(self.images * blocks, &|item, _| unsafe {
            let (image, block) = (item / blocks, item % blocks);
            let (factors, summands) = self.lines.part(image * 2 * c, 2 * c).split_at(c);
            for pixel in block * ROWS..((block + 1) * ROWS).min(self.pixels) {
                let at = image * self.pixels + pixel;
                let out = std::slice::from_raw_parts_mut(run.out().add(at * c), c);
                let mut first = 0;
                for (k, width) in sources() {
                    let x = std::slice::from_raw_parts(run.operand(k).add(at * width), width);
                    let range = first..first + width;
                    line(&mut out[range.clone()], x, &factors[range.clone()], &summands[range], self.silu);
                    first += width;
                }
            }
        });
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
    /// `x * factor + summand` of each channel, and SiLU where it follows.
    fn line(out: &mut [f32], x: &[f32], factors: &[f32], summands: &[f32], silu: bool) {
        let values = x.iter().zip(factors).zip(summands).map(|((x, f), s)| x * f + s);
        if silu {
            out.iter_mut().zip(values).for_each(|(o, v)| *o = swish::<FMA>(v, 1.0));
        } else {
            out.iter_mut().zip(values).for_each(|(o, v)| *o = v);
        }
    }
}
