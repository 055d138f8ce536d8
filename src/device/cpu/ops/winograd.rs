//! Convolutions of 3x3 by Winograd's F(4x4, 3x3), sixteen results from 36 products where there were 144, or F(2x2, 3x3), four from 16
//! where there were 36.
//!
//! A tile of 6 by 6 (4 by 4) inputs, the weights and the results each go through a small transform, and between them lie 36 (16)
//! independent products of matrices. The result is off by 3e-6 (4e-7) of its size where that of plain sums is by 3e-7
//! (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016).
//! Weights are transformed panel by panel in the cache, and forgotten, as those of the other products are widened.

use super::epilogue::Item;
use super::gemm::{Buffers, CpuGemm};
use super::winograd_tiles::{Form, TileInputs, Tiles, transform_weights};
use crate::device::cpu::fp_math::Operands;
use crate::device::cpu::microkernel::{MR, NR, TILE, tile};
use crate::device::cpu::op::{CpuOp, OpRun};
use crate::device::cpu::scratch::split;
use crate::graph::Conv2dParams;
use std::ops::Range;

/// Input channels from which on it is worth the transforms.
const MIN_CHANNELS: usize = 16;
/// Bytes of transformed inputs that a thread keeps, but where one stripe or [`MIN_KEPT`] tiles have more.
const MAX_INPUTS: usize = 4 << 20;
const MIN_KEPT: usize = 48;

/// Tiles of an image from which on it is worth transforming the weights.
fn min_tiles(form: Form) -> usize {
    match form {
        Form::F2 => 4,
        Form::F4 => 16,
    }
}

/// The form in which a convolution is better done so, if any: `channels` of the input, `result` the height and width. The number of
/// images does not count, so that one alone gets the same sums as in a batch.
pub(crate) fn form(conv: Conv2dParams, channels: usize, result: [usize; 2], operands: Operands) -> Option<Form> {
    let fits = |form: Form| {
        let out = form.out();
        let tiles = result[0].div_ceil(out) * result[1].div_ceil(out);
        // Most results of the tiles of a thin image are dropped.
        let thin = result[0].min(result[1]) < out;
        conv.kernel == 3 && conv.stride == 1 && channels >= MIN_CHANNELS && tiles >= min_tiles(form) && !thin
    };
    // The products of F(4x4) are in f32 in any case: that is exacter than 144 of bf16, and no slower on a processor that does them twice
    // as fast. The 16 of F(2x2) are slower than its 36.
    let f2 = (operands == Operands::F32).then_some(Form::F2);
    [Some(Form::F4), f2].into_iter().flatten().find(|form| fits(*form))
}

/// A convolution prepared for its shapes.
pub(crate) struct CpuWinograd {
    /// The same convolution's weights, channel blocks and way out.
    gemm: CpuGemm,
    tiles: Tiles,
    /// Channels of each source.
    channels: [usize; 2],
    /// Stripes of all images.
    stripes: usize,
    cut: Cut,
    threads: usize,
}

/// The cut of the work: items of `stripes` by `panels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    stripes: usize,
    panels: usize,
}

/// Picks the cut with the shortest time on `threads` equal threads.
fn cut(form: Form, stripes: usize, across: usize, panels: usize, channels: usize, threads: usize) -> Cut {
    // By measurement, in units of a tile's products with a channel of a panel: widening and transforming a panel's weights, and
    // transforming a tile's inputs.
    let weights = match form {
        Form::F2 => 25,
        Form::F4 => 20,
    };
    const INPUTS: usize = 1;
    let most = (MAX_INPUTS / (channels * form.points() * 4).max(1)).max(MIN_KEPT);
    let fits = most / across.max(1);
    let (mut best, mut cost) = (Cut { stripes: 1, panels: 1 }, usize::MAX);
    for per_item in 1..=fits.clamp(1, stripes.max(1)) {
        let tiles = (per_item * across).next_multiple_of(MR);
        for groups in 1..=panels {
            let group = panels.div_ceil(groups);
            let rounds = (stripes.div_ceil(per_item) * panels.div_ceil(group)).div_ceil(threads);
            let time = rounds * (group * (tiles + weights) + INPUTS * tiles);
            if time < cost {
                (best, cost) = (Cut { stripes: per_item, panels: group }, time);
            }
        }
    }
    best
}

/// The parts of a thread's memory, each with its floats.
struct Parts<'a> {
    /// A block's panel, and that panel transformed.
    packed: &'a mut [f32],
    weights: &'a mut [f32],
    /// The transformed inputs of the item, block by block and twelve tiles by twelve.
    inputs: &'a mut [f32],
    /// The sums of twelve tiles.
    sums: &'a mut [f32],
    /// The item's results in one panel.
    acc: &'a mut [f32],
}

impl CpuWinograd {
    /// Prepares the convolution of `gemm` from one or two `sources` `[N, H, W, C]` to `result` `[N, H', W', O]`.
    pub(crate) fn new(
        gemm: CpuGemm,
        form: Form,
        conv: Conv2dParams,
        sources: &[&[usize]],
        result: &[usize],
        threads: usize,
    ) -> Self {
        let tiles = Tiles::new(form, conv, sources[0], result);
        let channels = [0, 1].map(|s| sources.get(s).and_then(|s| s.last()).copied().unwrap_or(0));
        let stripes = tiles.stripes(result[0]);
        let summed = gemm.tap_blocks().iter().map(|b| b.len).sum();
        let cut = cut(form, stripes, tiles.across(), gemm.panel_count(), summed, threads);
        Self { gemm, tiles, channels, stripes, cut, threads }
    }

    fn points(&self) -> usize {
        self.tiles.form().points()
    }

    /// Floats from one tile's inputs to the next tile's.
    fn input_stride(&self) -> usize {
        // Never a power of two, so that a tile's 36 lie in different sets of a cache.
        self.gemm.tap_blocks().iter().map(|b| b.len).max().unwrap_or(0).next_multiple_of(16) + 16
    }

    /// Floats from the weights of one point to the next, for that many channels.
    fn weight_stride(len: usize) -> usize {
        len * NR + NR
    }

    /// Floats of each of [`Parts`].
    fn sizes(&self) -> [usize; 5] {
        let blocks = self.gemm.tap_blocks();
        let longest = blocks.iter().map(|b| b.len).max().unwrap_or(0);
        let (chunks, points) = ((self.cut.stripes * self.tiles.across()).div_ceil(MR), self.points());
        let inputs = blocks.len() * chunks * points * MR * self.input_stride();
        let acc = (self.cut.stripes * self.tiles.stripe_rows()).next_multiple_of(MR) * NR;
        [self.gemm.block_words() * NR, points * Self::weight_stride(longest), inputs, points * TILE, acc]
    }

    fn parts<'a>(&self, buffer: &'a mut [f32]) -> Parts<'a> {
        let [packed, weights, inputs, sums, acc] = split(buffer, self.sizes());
        Parts { packed, weights, inputs, sums, acc }
    }

    /// Computes the results of some stripes in some panels.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn item(&self, buffer: &mut [f32], run: &OpRun<'_>, panels: Range<usize>, stripes: Range<usize>) {
        let Parts { packed, weights, inputs, sums, acc } = self.parts(buffer);
        let (gemm, rows) = (&self.gemm, self.tiles.rows(stripes.clone()));
        let tiles = stripes.start * self.tiles.across()..stripes.end * self.tiles.across();
        let chunks = || tiles.clone().step_by(MR).map(|first| first..tiles.end.min(first + MR));
        let stride = self.input_stride();
        let size = self.points() * MR * stride;
        let blocks = gemm.tap_blocks();
        for (b, block) in blocks.iter().enumerate() {
            for (chunk, tiles) in chunks().enumerate() {
                let out = &mut inputs[(chunk * blocks.len() + b) * size..][..size];
                // SAFETY: the block lies in its operand, and the tiles exist.
                unsafe {
                    let first = run.operand(block.operand).add(block.start);
                    let part = TileInputs { first, width: self.channels[block.operand], len: block.len, tiles };
                    self.tiles.inputs(part, run.zeros.as_ptr(), out, stride);
                }
            }
        }
        for p in panels {
            for (b, block) in blocks.iter().enumerate() {
                let next = if b + 1 < blocks.len() { (b + 1, p) } else { (0, p + 1) };
                gemm.pack(b, p, packed, next);
                let step = Self::weight_stride(block.len);
                transform_weights(self.tiles.form(), packed, block.len, weights, step);
                for (chunk, tiles) in chunks().enumerate() {
                    let inputs = &inputs[(chunk * blocks.len() + b) * size..][..size];
                    for (point, sums) in sums.chunks_exact_mut(TILE).enumerate() {
                        let pointers = std::array::from_fn(|t| inputs[(point * MR + t) * stride..].as_ptr());
                        let panel = weights[point * step..].as_ptr();
                        // SAFETY: each pointer has `block.len` floats after it, the panel block.len * NR.
                        unsafe {
                            tile(Operands::F32, block.len, &pointers, tiles.len(), panel, sums.as_mut_ptr(), false)
                        };
                    }
                    self.tiles.results(sums, tiles, rows.start, acc, b > 0);
                }
            }
            let item = Item { panels: p..p + 1, rows: rows.clone() };
            let mut buffers = Buffers { packed, rounded: &mut [], acc };
            // SAFETY: the caller's promise.
            unsafe {
                gemm.add_low_rank(run, &item, &mut buffers);
                gemm.store(buffers.acc, run, &item);
            }
        }
    }
}

impl CpuOp for CpuWinograd {
    fn scratch(&self) -> usize {
        self.sizes().iter().sum()
    }

    fn bytes(&self) -> usize {
        self.gemm.bytes() + self.tiles.bytes()
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        debug_assert_eq!(run.pool.threads(), self.threads);
        let panels = self.gemm.panel_count();
        let chunks = self.stripes.div_ceil(self.cut.stripes);
        run.pool.run(panels.div_ceil(self.cut.panels) * chunks, &|item, thread| {
            // Items of the same panels follow one another, so that the threads read the same weights at about the same time.
            let (p, s) = (item / chunks * self.cut.panels, item % chunks * self.cut.stripes);
            // SAFETY: each thread has a scratch of its own of at least `self.scratch()` floats.
            let buffer = unsafe { run.scratch.of(thread, self.scratch()) };
            let (panels, stripes) = (p..panels.min(p + self.cut.panels), s..self.stripes.min(s + self.cut.stripes));
            // SAFETY: the caller's promise; items write disjoint parts of the result.
            unsafe { self.item(buffer, run, panels, stripes) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suitable_convolutions() {
        let conv = Conv2dParams { kernel: 3, stride: 1, padding: [1; 2], resize: None };
        let f32 = |channels, result| form(conv, channels, result, Operands::F32);
        let bf16 = |channels, result| form(conv, channels, result, Operands::Pairs);
        for (channels, result) in [(16, [16, 16]), (1280, [13, 14]), (320, [4, 61])] {
            assert_eq!([f32(channels, result), bf16(channels, result)], [Some(Form::F4); 2]);
        }
        for (channels, result) in [(16, [8, 8]), (1280, [4, 4]), (1280, [2, 7]), (320, [8, 16]), (320, [3, 100])] {
            assert_eq!([f32(channels, result), bf16(channels, result)], [Some(Form::F2), None]);
        }
        assert_eq!([f32(15, [16, 16]), f32(320, [1, 100]), f32(320, [2, 6])], [None; 3]);
        for other in [Conv2dParams { stride: 2, ..conv }, Conv2dParams { kernel: 1, ..conv }] {
            assert_eq!(form(other, 320, [64, 64], Operands::F32), None);
        }
    }

    /// Threads have about equal shares, and what a thread keeps is bounded.
    #[test]
    fn balanced_cuts() {
        for (stripes, across, panels, channels, threads) in
            [(32, 16, 10, 320, 2), (8, 4, 40, 1280, 2), (8, 4, 40, 2560, 16), (256, 256, 4, 128, 2), (5, 5, 1, 16, 8)]
        {
            for form in [Form::F2, Form::F4] {
                let c = cut(form, stripes, across, panels, channels, threads);
                let items = stripes.div_ceil(c.stripes) * panels.div_ceil(c.panels);
                let share = items.div_ceil(threads) * threads * c.stripes * c.panels;
                let waste = share as f64 / (stripes * panels) as f64;
                assert!(waste < 1.3 || items <= threads, "{stripes} {panels}: {c:?} wastes {waste}");
                let tiles = c.stripes * across;
                assert!(
                    c.stripes == 1 || tiles <= MIN_KEPT || tiles * channels * form.points() * 4 <= MAX_INPUTS,
                    "{c:?}"
                );
            }
        }
    }
}
