//! Fully connected layers and convolutions: one implicit GEMM.
//!
//! The rows of the left matrix are never gathered into a buffer: the innermost loop takes twelve row pointers, and for a
//! convolution those point into the image, tap by tap (a row of zeros stands for the padding). Weights stay in their
//! file's type; a panel of 32 output channels by about 1,152 inputs is widened and transposed in cache, used for as many
//! rows as there are, and forgotten. Every result element is one chain of additions in a fixed order, whatever the
//! number of threads and the tile sizes.
//!
//! With operands of bf16 twelve rows are rounded at a time, all taps of a block, just before they are multiplied by the panels.

use super::convolution::RowSource;
use super::pointwise::{activate, add, times_gelu};
use crate::device::cpu::fp_math::Operands;
use crate::device::cpu::microkernel::{MR, NR, TILE, tile};
use crate::device::cpu::op::{CpuOp, OpRun};
use crate::device::cpu::pack::Panel;
use crate::graph::{EpilogueActivation, ImplicitGemm, LinearWeights};
use std::ops::Range;

/// Inputs times taps of a block: a panel of them is 147 kB and stays in the second-level cache.
const BLOCK: usize = 1152;
/// Panels of an item, at most; half as many where a word is one element.
pub(super) const MAX_GROUP: usize = 8;
/// Rows for which one widened panel is used before it is widened again.
const MAX_ROWS: usize = 1536;

/// A fully connected layer or a convolution prepared for its shapes.
pub(crate) struct CpuGemm {
    /// The panel of the weights, then those of the left factors of low-rank updates.
    panels: Vec<Panel>,
    taps: usize,
    blocks: Vec<ChannelBlock>,
    bias: Vec<f32>,
    activation: EpilogueActivation,
    /// The operand that is the per-image bias.
    per_image_bias: Option<usize>,
    /// The operand that is the residual.
    residual: Option<usize>,
    source: RowSource,
    /// The rows that low-rank updates multiply.
    low_rank: RowSource,
    /// Rows of the result, all images.
    m: usize,
    /// Channels of the result.
    n: usize,
    images: usize,
    tiling: Tiling,
    threads: usize,
    operands: Operands,
}

/// Consecutive input channels of one source.
pub(super) struct ChannelBlock {
    pub(super) operand: usize,
    pub(super) start: usize,
    pub(super) len: usize,
    /// The number of the panel with their weights, and the first of these channels there.
    panel: usize,
    weight: usize,
}

/// The work that a thread takes at a time: some rows of the result in the columns of some panels.
pub(super) struct Item {
    pub(super) panels: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// The parts of a thread's memory.
pub(super) struct Buffers<'a> {
    /// The panels of one block.
    pub(super) packed: &'a mut [f32],
    /// Twelve rounded rows; none with operands of f32.
    pub(super) rounded: &'a mut [f32],
    /// The tiles of sums, those of twelve rows one after the other.
    pub(super) acc: &'a mut [f32],
}

/// The products of up to [`MR`] rows with the panels of a group, over one block.
struct Part<'a> {
    block: &'a ChannelBlock,
    rows: Range<usize>,
    /// The group's panels, and which of them are not zero.
    packed: &'a [f32],
    present: &'a [bool],
    /// Whether there are sums of other blocks already.
    add: bool,
}

/// Adds the low-rank updates of `parts`, whose rows operand `operand` has: more channels to sum over, with a panel for each left
/// factor.
fn add_low_rank(operand: usize, parts: &[LinearWeights], panels: &mut Vec<Panel>, blocks: &mut Vec<ChannelBlock>) {
    let (mut row, mut channel) = (0, 0);
    for part in parts {
        for up in part.low_rank.iter().flat_map(|low_rank| &low_rank.up) {
            let (panel, rank) = (panels.len(), up.shape()[1]);
            panels.push(Panel::within(&panels[0], row, up.clone()));
            for start in (0..rank).step_by(BLOCK) {
                let len = BLOCK.min(rank - start);
                blocks.push(ChannelBlock { operand, start: channel + start, len, panel, weight: start });
            }
            channel += rank;
        }
        row += part.weight.shape()[0];
    }
}

/// The cut of the work: items of `rows` rows by `group` panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiling {
    rows: usize,
    group: usize,
}

/// Picks the cut with the shortest time on `threads` equal threads, from the cost of multiplying, of widening and of rounding rows.
fn tiling(m: usize, panels: usize, k: usize, threads: usize, operands: Operands) -> Tiling {
    // Relative costs by measurement: one panel element is used in 64 flops a row; widening it costs about `widen` rows, and
    // reading a row's element anew for every group `read` of 32.
    let (widen, read, most) = match operands {
        Operands::F32 => (30, 1, MAX_GROUP / 2),
        Operands::Rounded => (34, 8, MAX_GROUP / 2),
        Operands::Pairs => (50, 12, MAX_GROUP),
    };
    let mut best = (usize::MAX, Tiling { rows: m.max(1), group: 1 });
    for group in 1..=panels.clamp(1, most) {
        let least = m.div_ceil(MAX_ROWS).max(1);
        for chunks in least..least + 4 * threads {
            let rows = m.div_ceil(chunks).next_multiple_of(MR).max(MR);
            let items = m.div_ceil(rows).max(1) * panels.div_ceil(group);
            // Prefers wide groups where they balance as well.
            let cost = items.div_ceil(threads) * k * (group * (rows + widen) * 32 + read * rows);
            if cost < best.0 {
                best = (cost, Tiling { rows, group });
            }
        }
    }
    best.1
}

impl CpuGemm {
    /// Prepares `gemm` for sources and a result of these shapes.
    pub(crate) fn new(
        gemm: ImplicitGemm<'_>,
        sources: &[&[usize]],
        shape: &[usize],
        threads: usize,
        operands: Operands,
    ) -> Self {
        let n = shape.last().copied().unwrap_or(1);
        let m = shape.iter().product::<usize>() / n.max(1);
        let channel = |s: usize| sources.get(s).and_then(|s| s.last()).copied().unwrap_or(0);
        let channels = [channel(0), if gemm.sources == 2 { channel(1) } else { 0 }];
        let taps = gemm.conv.map_or(1, |conv| conv.kernel * conv.kernel);
        let source = RowSource::new(gemm.conv, channels, sources[0], shape);
        let mut blocks = Vec::new();
        let longest = (BLOCK / taps).max(1);
        for operand in 0..gemm.sources {
            let (width, before) = (channels[operand], if operand == 1 { channels[0] } else { 0 });
            let len = width.div_ceil(width.div_ceil(longest).max(1)).max(1);
            for start in (0..width).step_by(len) {
                let len = len.min(width - start);
                blocks.push(ChannelBlock { operand, start, len, panel: 0, weight: before + start });
            }
        }
        let geglu = gemm.epilogue.activation == EpilogueActivation::Geglu;
        let mut bias = Vec::new();
        if gemm.parts.iter().any(|p| p.bias.is_some()) {
            for part in gemm.parts {
                let width = part.weight.shape()[0];
                bias.extend(part.bias.as_ref().map_or_else(|| vec![0.0; width], |b| b.to_f32()));
            }
        }
        let (per_image_bias, residual) = (gemm.per_image_bias(), gemm.residual());
        let mut panels = vec![Panel::new(gemm.parts.iter().map(|p| p.weight.clone()).collect(), taps, geglu)];
        if let Some(operand) = gemm.low_rank() {
            add_low_rank(operand, gemm.parts, &mut panels, &mut blocks);
        }
        let low_rank = RowSource::Rows { channels: [gemm.rank(), 0] };
        let k = channels.iter().sum::<usize>() * taps + gemm.rank() / gemm.parts.len().max(1);
        let tiling = tiling(m, panels[0].count(), k, threads, operands);
        let images = shape[0].max(1);
        Self {
            panels,
            taps,
            blocks,
            bias,
            per_image_bias,
            residual,
            activation: gemm.epilogue.activation,
            source,
            low_rank,
            m,
            n,
            images,
            tiling,
            threads,
            operands,
        }
    }

    /// The most words that a block adds to a sum.
    pub(super) fn block_words(&self) -> usize {
        self.blocks.iter().map(|b| self.operands.words(b.len) * self.taps_of(b)).max().unwrap_or(0)
    }

    fn panel_floats(&self) -> usize {
        self.tiling.group * self.block_words() * NR
    }

    /// Words from one rounded row to the next: never a power of two, so that twelve rows lie in different sets of a cache.
    fn row_stride(&self) -> usize {
        if self.operands == Operands::F32 { 0 } else { self.block_words().next_multiple_of(32) + 16 }
    }

    fn taps_of(&self, block: &ChannelBlock) -> usize {
        if block.panel == 0 { self.taps } else { 1 }
    }

    /// The panels of the weights.
    pub(super) fn weights(&self) -> &Panel {
        &self.panels[0]
    }

    /// Floats that a panel of the left factors of low-rank updates takes; 0 where there are none.
    pub(super) fn low_rank_floats(&self) -> usize {
        let blocks = &self.blocks[self.tap_blocks().len()..];
        blocks.iter().map(|b| self.operands.words(b.len) * NR).max().unwrap_or(0)
    }

    /// The number of panels of the weights.
    pub(super) fn panel_count(&self) -> usize {
        self.panels[0].count()
    }

    /// The blocks of the weights themselves, without those of low-rank updates.
    pub(super) fn tap_blocks(&self) -> &[ChannelBlock] {
        &self.blocks[..self.blocks.partition_point(|block| block.panel == 0)]
    }

    /// Writes panel `p` of block `block`.
    pub(super) fn pack(&self, block: usize, p: usize, out: &mut [f32]) {
        let block = &self.blocks[block];
        let words = self.operands.words(block.len) * self.taps_of(block) * NR;
        self.panels[block.panel].pack(self.operands, p, block.weight, block.len, &mut out[..words]);
    }

    /// Computes an item.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn item(&self, buffer: &mut [f32], run: &OpRun<'_>, item: &Item) {
        let (packed, rest) = buffer.split_at_mut(self.panel_floats());
        let (rounded, acc) = rest.split_at_mut(self.row_stride() * MR);
        let mut buffers = Buffers { packed, rounded, acc };
        // SAFETY: the caller's promise.
        unsafe {
            (0..self.blocks.len()).for_each(|block| self.add_block(run, item, block, &mut buffers));
            self.store(buffers.acc, run, item);
        }
    }

    /// Adds the low-rank updates to the sums of an item.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    pub(super) unsafe fn add_low_rank(&self, run: &OpRun<'_>, item: &Item, buffers: &mut Buffers<'_>) {
        for block in self.tap_blocks().len()..self.blocks.len() {
            // SAFETY: the caller's promise.
            unsafe { self.add_block(run, item, block, buffers) };
        }
    }

    /// Adds the products of a block to the sums of an item; those of the first block begin them.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn add_block(&self, run: &OpRun<'_>, item: &Item, block: usize, buffers: &mut Buffers<'_>) {
        let (add, number, block) = (block > 0, block, &self.blocks[block]);
        let Buffers { packed, rounded, acc } = buffers;
        let stride = self.operands.words(block.len) * self.taps_of(block) * NR;
        let mut present = [false; MAX_GROUP];
        for (i, p) in item.panels.clone().enumerate() {
            present[i] = self.panels[block.panel].is_present(p);
            if present[i] {
                self.pack(number, p, &mut packed[i * stride..]);
            }
        }
        if !present.contains(&true) {
            return;
        }
        let present = &present[..item.panels.len()];
        for (t, m) in item.rows.clone().step_by(MR).enumerate() {
            let acc = &mut acc[t * present.len() * TILE..][..present.len() * TILE];
            let part = Part { block, rows: m..item.rows.end.min(m + MR), packed, present, add };
            // SAFETY: the caller's promise.
            unsafe {
                match self.operands {
                    Operands::F32 => self.multiply(run, &part, acc),
                    _ => self.multiply_rounded(run, &part, rounded, acc),
                }
            }
        }
    }

    /// Points `out` at the inputs of rows `m..` in a block under one tap.
    ///
    /// # Safety
    /// As [`CpuOp::run`]; the rows exist.
    unsafe fn point(&self, block: &ChannelBlock, run: &OpRun<'_>, tap: usize, m: usize, out: &mut [*const f32]) {
        let (source, number) = if block.panel == 0 { (&self.source, block.operand) } else { (&self.low_rank, 0) };
        // SAFETY: the block lies in its operand, and the rows exist.
        unsafe { source.rows(run.operand(block.operand).add(block.start), number, tap, m, run.zeros.as_ptr(), out) };
    }

    /// Adds the products to the tiles of `acc`, one for each panel.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn multiply(&self, run: &OpRun<'_>, part: &Part<'_>, acc: &mut [f32]) {
        let Part { block, ref rows, packed, present, add } = *part;
        let (height, taps) = (rows.len(), self.taps_of(block));
        let mut pointers = [run.zeros.as_ptr(); MR];
        for tap in 0..taps {
            // SAFETY: the rows exist.
            unsafe { self.point(block, run, tap, rows.start, &mut pointers[..height]) };
            for i in (0..present.len()).filter(|i| present[*i]) {
                let panel = packed[(i * taps + tap) * block.len * NR..].as_ptr();
                let acc = acc[i * TILE..][..TILE].as_mut_ptr();
                // SAFETY: each pointer has `block.len` floats after it, the panel block.len * NR.
                unsafe { tile(Operands::F32, block.len, &pointers, height, panel, acc, add || tap > 0) };
            }
        }
    }

    /// [`CpuGemm::multiply`] of rows that `rounded` holds meanwhile.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn multiply_rounded(&self, run: &OpRun<'_>, part: &Part<'_>, rounded: &mut [f32], acc: &mut [f32]) {
        let Part { block, ref rows, packed, present, add } = *part;
        let (height, taps, stride) = (rows.len(), self.taps_of(block), self.row_stride());
        let words = self.operands.words(block.len);
        let mut pointers = [run.zeros.as_ptr(); MR];
        for tap in 0..taps {
            // SAFETY: the rows exist.
            unsafe { self.point(block, run, tap, rows.start, &mut pointers[..height]) };
            for (r, row) in pointers[..height].iter().enumerate() {
                // SAFETY: each pointer has `block.len` floats after it.
                let row = unsafe { std::slice::from_raw_parts(*row, block.len) };
                self.operands.pack_row(row, &mut rounded[r * stride + tap * words..][..words]);
            }
        }
        let pointers = std::array::from_fn(|r| rounded[r * stride..].as_ptr());
        for i in (0..present.len()).filter(|i| present[*i]) {
            let panel = packed[i * taps * words * NR..].as_ptr();
            let acc = acc[i * TILE..][..TILE].as_mut_ptr();
            // SAFETY: each pointer has taps * words after it, the panel as many times NR.
            unsafe { tile(self.operands, taps * words, &pointers, height, panel, acc, add) };
        }
    }

    /// Applies the epilogue to the sums of an item and stores them.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    pub(super) unsafe fn store(&self, acc: &mut [f32], run: &OpRun<'_>, item: &Item) {
        let Item { panels, rows: ms } = item;
        let count = panels.len();
        let per_image = self.m / self.images;
        let width = if self.activation == EpilogueActivation::Geglu { NR / 2 } else { NR };
        for (t, m) in ms.clone().step_by(MR).enumerate() {
            for (i, p) in panels.clone().enumerate() {
                let n0 = p * width;
                let columns = width.min(self.n - n0);
                for r in 0..MR.min(ms.end - m) {
                    let row = m + r;
                    let sum = &mut acc[(t * count + i) * TILE + r * NR..][..NR];
                    // SAFETY: row < m and n0 + columns <= n in tensors of those sizes; no other item writes there.
                    unsafe {
                        let at = row * self.n + n0;
                        let slice = |p: *const f32, at: usize| std::slice::from_raw_parts(p.add(at), columns);
                        let per_image_bias =
                            self.per_image_bias.map(|k| slice(run.operand(k), row / per_image * self.n + n0));
                        let residual = self.residual.map(|k| slice(run.operand(k), at));
                        let out = std::slice::from_raw_parts_mut(run.out().add(at), columns);
                        self.finish(sum, n0, per_image_bias, residual, out);
                    }
                }
            }
        }
    }

    /// Bias, per-image bias, activation and residual, for one row of one panel.
    fn finish(
        &self,
        sum: &mut [f32],
        n0: usize,
        per_image_bias: Option<&[f32]>,
        residual: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let columns = out.len();
        if self.activation == EpilogueActivation::Geglu {
            let (value, gate) = sum.split_at_mut(NR / 2);
            if !self.bias.is_empty() {
                add(&mut value[..columns], &self.bias[n0..]);
                add(&mut gate[..columns], &self.bias[self.n + n0..]);
            }
            times_gelu(out, value, gate);
        } else {
            let sum = &mut sum[..columns];
            if !self.bias.is_empty() {
                add(sum, &self.bias[n0..]);
            }
            if let Some(per_image_bias) = per_image_bias {
                add(sum, per_image_bias);
            }
            if let EpilogueActivation::Pointwise(kind) = self.activation {
                activate(sum, kind);
            }
            out.copy_from_slice(sum);
        }
        if let Some(residual) = residual {
            add(out, residual);
        }
    }
}

impl CpuOp for CpuGemm {
    fn scratch(&self) -> usize {
        let sums = self.tiling.rows.div_ceil(MR) * self.tiling.group * TILE;
        self.panel_floats() + self.row_stride() * MR + sums
    }

    fn bytes(&self) -> usize {
        self.bias.len() * 4 + self.source.bytes()
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        debug_assert_eq!(run.pool.threads(), self.threads);
        let Tiling { rows, group } = self.tiling;
        let panels = self.panel_count();
        let groups = panels.div_ceil(group);
        let chunks = self.m.div_ceil(rows);
        run.pool.run(groups * chunks, &|item, thread| {
            // Items of one group follow one another, so that the threads read the same weights at about the same time.
            let (g, chunk) = (item / chunks, item % chunks);
            let (p0, p1) = (g * group, ((g + 1) * group).min(panels));
            let (m0, m1) = (chunk * rows, ((chunk + 1) * rows).min(self.m));
            // SAFETY: each thread has a scratch of its own of at least `self.scratch()` floats.
            let buffer = unsafe { run.scratch.of(thread, self.scratch()) };
            // SAFETY: the caller's promise; items write disjoint parts of the result.
            unsafe { self.item(buffer, run, &Item { panels: p0..p1, rows: m0..m1 }) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balanced_thread_shares() {
        for (m, panels, k, threads) in [(128, 40, 1280, 2), (2048, 10, 2880, 2), (2, 40, 1280, 16), (1, 1, 4, 1)] {
            for (operands, most) in [(Operands::F32, 4), (Operands::Rounded, 4), (Operands::Pairs, 8)] {
                let t = tiling(m, panels, k, threads, operands);
                assert!(t.rows <= MAX_ROWS + MR && t.group <= most && t.rows.is_multiple_of(MR), "{t:?}");
                let items = m.div_ceil(t.rows) * panels.div_ceil(t.group);
                let rounds = items.div_ceil(threads);
                let waste = (rounds * threads * t.rows.min(m) * t.group) as f64 / (m * panels) as f64;
                assert!(waste < 1.35 || items <= threads, "{operands:?} {m} {panels}: {t:?} wastes {waste}");
            }
        }
    }
}
