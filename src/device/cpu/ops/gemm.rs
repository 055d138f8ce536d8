//! Fully connected layers and convolutions: one implicit GEMM.
//!
//! The rows of the left matrix are never gathered into a buffer: the innermost loop takes twelve row pointers, and for a
//! convolution those point into the image, tap by tap (a row of zeros stands for the padding). Weights stay in their
//! file's type; a panel of 32 output channels by about 1,152 inputs is widened and transposed in cache, used for as many
//! rows as there are, and forgotten. Every result element is one chain of additions in a fixed order, whatever the
//! number of threads and the tile sizes.
//!
//! With operands of bf16 the rows are rounded before, once, where many panels read them and they are not too large; else twelve at a
//! time, all taps of a block, just before they are multiplied by the panels. Both give the same bytes.

use super::convolution::RowSource;
use super::epilogue::{Epilogue, Item};
use super::rounded_rows::RoundedRows;
use crate::device::cpu::fp_math::Operands;
use crate::device::cpu::microkernel::{MR, NR, TILE, tile};
use crate::device::cpu::op::{CpuOp, OpRun};
use crate::device::cpu::pack::Panel;
use crate::graph::{EpilogueActivation, ImplicitGemm, LinearWeights};
use std::ops::Range;

/// Words of a block, inputs times taps: a panel of them is 147 kB and stays in the second-level cache.
const BLOCK: usize = 1152;
/// Panels of an item, at most.
pub(super) const MAX_GROUP: usize = 8;
/// Words of the panels of an item, at most: 590 kB.
const MAX_GROUP_WORDS: usize = 4 * BLOCK;
/// Rows for which one widened panel is used before it is widened again.
const MAX_ROWS: usize = 1536;

/// A fully connected layer or a convolution prepared for its shapes.
pub(crate) struct CpuGemm {
    /// The panel of the weights, then those of the left factors of low-rank updates.
    panels: Vec<Panel>,
    taps: usize,
    blocks: Vec<ChannelBlock>,
    epilogue: Epilogue,
    source: RowSource,
    /// The sources' rows in words, where they are rounded before.
    rounded: Option<RoundedRows>,
    /// The rows that low-rank updates multiply.
    low_rank: RowSource,
    /// Rows of the result, all images.
    m: usize,
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
    /// The panels of the result that are stored next, where this is the last block.
    stored: Option<Range<usize>>,
}

impl Part<'_> {
    /// The group's panels that are not zero, by their places in it.
    fn present(&self) -> impl Iterator<Item = usize> {
        (0..self.present.len()).filter(|i| self.present[*i])
    }
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

/// Picks the cut with the shortest time on `threads` equal threads, from the cost of multiplying, of widening and of reading rows, for
/// blocks of at most `block` words.
fn tiling(m: usize, panels: usize, block: usize, threads: usize, operands: Operands) -> Tiling {
    // Relative costs by measurement: one panel element is used in 64 flops a row; widening it costs about `widen` rows, and
    // reading a row's element anew for every group `read` of 32.
    let (widen, read) = match operands {
        Operands::F32 => (20, 1),
        Operands::Rounded => (34, 4),
        Operands::Pairs => (25, 4),
    };
    let most = (MAX_GROUP_WORDS / block.max(1)).clamp(1, MAX_GROUP);
    let mut best = (usize::MAX, Tiling { rows: m.max(1), group: 1 });
    for group in 1..=panels.clamp(1, most) {
        let least = m.div_ceil(MAX_ROWS).max(1);
        for chunks in least..least + 4 * threads {
            let rows = m.div_ceil(chunks).next_multiple_of(MR).max(MR);
            let items = m.div_ceil(rows).max(1) * panels.div_ceil(group);
            // Prefers wide groups where they balance as well.
            let cost = items.div_ceil(threads) * (group * (rows + widen) * 32 + read * rows);
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
        let mut blocks = Vec::new();
        // An even number, so that no pair lies in two blocks.
        let pair = if operands == Operands::Pairs { 2 } else { 1 };
        let longest = (BLOCK * pair / taps).max(1);
        for operand in 0..gemm.sources {
            let (width, before) = (channels[operand], if operand == 1 { channels[0] } else { 0 });
            let len = width.div_ceil(width.div_ceil(longest).max(1)).max(1).next_multiple_of(pair);
            for start in (0..width).step_by(len) {
                let len = len.min(width - start);
                blocks.push(ChannelBlock { operand, start, len, panel: 0, weight: before + start });
            }
        }
        let geglu = gemm.epilogue.activation == EpilogueActivation::Geglu;
        let mut panels = vec![Panel::new(gemm.parts.iter().map(|p| p.weight.clone()).collect(), taps, geglu)];
        let words = blocks.iter().map(|b| operands.words(b.len) * taps).max().unwrap_or(1);
        let tiling = tiling(m, panels[0].count(), words, threads, operands);
        if let Some(operand) = gemm.low_rank() {
            add_low_rank(operand, gemm.parts, &mut panels, &mut blocks);
        }
        // Where each row is read but once or twice, there is nothing to gain.
        let often = panels[0].count().div_ceil(tiling.group) * taps > 2;
        let rounded = RoundedRows::new(operands, sources[0], channels).filter(|_| often);
        let strides = rounded.as_ref().map_or(channels, RoundedRows::strides);
        Self {
            panels,
            taps,
            blocks,
            epilogue: Epilogue::new(gemm, n, m / shape[0].max(1)),
            source: RowSource::new(gemm.conv, strides, sources[0], shape),
            rounded,
            low_rank: RowSource::Rows { channels: [gemm.rank(), 0] },
            m,
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

    /// Writes panel `p` of block `block`, and fetches what the next call will write, panel `next.1` of block `next.0`, where they are there.
    pub(super) fn pack(&self, block: usize, p: usize, out: &mut [f32], next: (usize, usize)) {
        let block = &self.blocks[block];
        let following = self.blocks.get(next.0).filter(|_| self.panels[block.panel].fetches(self.operands));
        let next = following.and_then(|block| self.panels[block.panel].lanes(next.1, block.weight, block.len));
        let words = self.operands.words(block.len) * self.taps_of(block) * NR;
        let channels = (block.weight, block.len);
        self.panels[block.panel].pack(self.operands, p, channels, &mut out[..words], &next.unwrap_or([None; NR]));
    }

    /// Whether the sums of an item are stored twelve rows by twelve: no other block adds to them.
    fn is_one_block(&self) -> bool {
        self.blocks.len() == 1
    }

    /// Computes an item.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn item(&self, buffer: &mut [f32], run: &OpRun<'_>, item: &Item) {
        let (packed, rest) = buffer.split_at_mut(self.panel_floats());
        let (rounded, acc) = rest.split_at_mut(self.row_stride() * MR);
        let mut buffers = Buffers { packed, rounded, acc };
        for block in 0..self.blocks.len() {
            // SAFETY: the caller's promise.
            unsafe { self.add_block(run, item, block, &mut buffers, block + 1 == self.blocks.len()) };
        }
    }

    /// Adds the low-rank updates to the sums of an item.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    pub(super) unsafe fn add_low_rank(&self, run: &OpRun<'_>, item: &Item, buffers: &mut Buffers<'_>) {
        for block in self.tap_blocks().len()..self.blocks.len() {
            // SAFETY: the caller's promise.
            unsafe { self.add_block(run, item, block, buffers, false) };
        }
    }

    /// Adds the products of a block to the sums of an item, those of the first block begin them, and stores the results if `store`.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn add_block(&self, run: &OpRun<'_>, item: &Item, block: usize, buffers: &mut Buffers<'_>, store: bool) {
        let (add, number, block) = (block > 0, block, &self.blocks[block]);
        let Buffers { packed, rounded, acc } = buffers;
        let stride = self.operands.words(block.len) * self.taps_of(block) * NR;
        let mut present = [false; MAX_GROUP];
        for (i, p) in item.panels.clone().enumerate() {
            present[i] = self.panels[block.panel].is_present(p);
            if present[i] {
                let next = if p + 1 < item.panels.end { (number, p + 1) } else { (number + 1, item.panels.start) };
                self.pack(number, p, &mut packed[i * stride..], next);
            }
        }
        if !store && !present.contains(&true) {
            return;
        }
        let present = &present[..item.panels.len()];
        let stored = store.then(|| item.panels.clone());
        for (t, m) in item.rows.clone().step_by(MR).enumerate() {
            let t = if self.is_one_block() { 0 } else { t };
            let acc = &mut acc[t * present.len() * TILE..][..present.len() * TILE];
            let rows = m..item.rows.end.min(m + MR);
            let part = Part { block, rows: rows.clone(), packed, present, add, stored: stored.clone() };
            // SAFETY: the caller's promise.
            unsafe {
                match self.operands {
                    Operands::F32 => self.multiply(run, &part, acc),
                    _ if self.rounded.is_some() && block.panel == 0 => self.multiply(run, &part, acc),
                    _ => self.multiply_rounded(run, &part, rounded, acc),
                }
                if store {
                    self.store(acc, run, &Item { panels: item.panels.clone(), rows });
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
        unsafe {
            let first = match &self.rounded {
                Some(rounded) if block.panel == 0 => rounded.first(run, block.operand, block.start).cast_const(),
                _ => run.operand(block.operand).add(block.start),
            };
            source.rows(first, number, tap, m, run.zeros.as_ptr(), out);
        }
    }

    /// Adds the products to the tiles of `acc`, one for each panel.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn multiply(&self, run: &OpRun<'_>, part: &Part<'_>, acc: &mut [f32]) {
        let Part { block, ref rows, packed, add, .. } = *part;
        let (height, taps, words) = (rows.len(), self.taps_of(block), self.operands.words(block.len));
        let mut pointers = [run.zeros.as_ptr(); MR];
        for tap in 0..taps {
            // SAFETY: the rows exist.
            unsafe { self.point(block, run, tap, rows.start, &mut pointers[..height]) };
            for i in part.present() {
                if tap + 1 == taps {
                    self.prefetch(run, part, i);
                }
                let panel = packed[(i * taps + tap) * words * NR..].as_ptr();
                let acc = acc[i * TILE..][..TILE].as_mut_ptr();
                // SAFETY: each pointer has `words` after it, the panel as many times NR.
                unsafe { tile(self.operands, words, &pointers, height, panel, acc, add || tap > 0) };
            }
        }
    }

    /// Fetches the results of panel `i` of the group, where they are stored next.
    fn prefetch(&self, run: &OpRun<'_>, part: &Part<'_>, i: usize) {
        if let Some(panels) = &part.stored {
            self.epilogue.prefetch(run, part.rows.clone(), panels.start + i);
        }
    }

    /// [`CpuGemm::multiply`] of rows that `rounded` holds meanwhile.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn multiply_rounded(&self, run: &OpRun<'_>, part: &Part<'_>, rounded: &mut [f32], acc: &mut [f32]) {
        let Part { block, ref rows, packed, add, .. } = *part;
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
        for i in part.present() {
            self.prefetch(run, part, i);
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
    pub(super) unsafe fn store(&self, acc: &[f32], run: &OpRun<'_>, item: &Item) {
        // SAFETY: the caller's promise.
        unsafe { self.epilogue.store(acc, run, item) };
    }
}

impl CpuOp for CpuGemm {
    fn scratch(&self) -> usize {
        let tiles = if self.is_one_block() { 1 } else { self.tiling.rows.div_ceil(MR) };
        let sums = tiles * self.tiling.group * TILE;
        self.panel_floats() + self.row_stride() * MR + sums
    }

    fn shared_scratch(&self) -> usize {
        self.rounded.as_ref().map_or(0, RoundedRows::floats)
    }

    fn bytes(&self) -> usize {
        self.epilogue.bytes() + self.source.bytes()
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        debug_assert_eq!(run.pool.threads(), self.threads);
        if let Some(rounded) = &self.rounded {
            // SAFETY: the caller's promise.
            unsafe { rounded.round(run) };
        }
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
            for operands in [Operands::F32, Operands::Rounded, Operands::Pairs] {
                let block = operands.words(k).min(BLOCK);
                let t = tiling(m, panels, block, threads, operands);
                assert!(
                    t.rows <= MAX_ROWS + MR
                        && (t.group == 1 || t.group * block <= MAX_GROUP_WORDS)
                        && t.rows.is_multiple_of(MR),
                    "{t:?}"
                );
                let items = m.div_ceil(t.rows) * panels.div_ceil(t.group);
                let rounds = items.div_ceil(threads);
                let waste = (rounds * threads * t.rows.min(m) * t.group) as f64 / (m * panels) as f64;
                assert!(waste < 1.35 || items <= threads, "{operands:?} {m} {panels}: {t:?} wastes {waste}");
            }
        }
    }
}
