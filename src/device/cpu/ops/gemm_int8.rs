//! Fully connected layers and convolutions with products of int8.
//!
//! All rows of the operands are quantized first, each with a scale of its own: those of a matrix, or the pixels of an image. A sum is taken
//! tap by tap in integers, times the scales of pixel and column, and added up in f32; what follows the sums is [`CpuGemm`]'s.

use super::convolution::RowSource;
use super::epilogue::Item;
use super::gemm::{Buffers, CpuGemm, MAX_GROUP};
use crate::device::cpu::fp_math::Operands;
use crate::device::cpu::int8::{magnitude, quantize, scale, tile_int8, words};
use crate::device::cpu::int8_panels::{Int8Panels, Int8Weights, MAX_TAPS, PanelLayout};
use crate::device::cpu::microkernel::{MR, TILE};
use crate::device::cpu::op::{CpuOp, OpRun};
use crate::device::cpu::pool::Pool;
use crate::device::cpu::scratch::split;
use crate::graph::ImplicitGemm;
use std::ops::Range;
use std::sync::Arc;

/// The fewest channels that are worth it, and the most whose sums fit into 32 bits.
const CHANNELS: Range<usize> = 16..1 << 16;
/// Bytes of an item's panels, which stay in the second-level cache while rows pass by.
const MAX_PANELS: usize = 640 << 10;
/// Rows that are quantized as one item.
const QUANTIZED_ROWS: usize = 16;

/// Whether a layer can be computed so: its weights may be quantized, and it has a kernel of at most 3x3 and enough channels.
pub(super) fn can_be_int8(gemm: ImplicitGemm<'_>) -> bool {
    let channels = |part: &crate::graph::LinearWeights| part.weight.shape().get(1).copied().unwrap_or(0);
    gemm.parts.iter().all(|part| part.quantizable && CHANNELS.contains(&channels(part)))
        && gemm.conv.is_none_or(|conv| conv.kernel * conv.kernel <= MAX_TAPS)
}

/// A fully connected layer or a convolution prepared for its shapes.
pub(crate) struct CpuInt8Gemm {
    /// The same layer's low-rank updates and way out.
    gemm: CpuGemm,
    panels: Arc<Int8Panels>,
    /// Channels of the sources, whose quantized rows are joined.
    channels: Vec<usize>,
    /// Rows of each source.
    source_rows: usize,
    /// The way to the quantized rows.
    source: RowSource,
    /// Rows of the result.
    m: usize,
    cut: Cut,
    threads: usize,
}

/// The cut of the work: items of `rows` rows by `panels` panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    rows: usize,
    panels: usize,
}

/// Picks the cut with the shortest time on `threads` equal threads, for `panels` panels of so many bytes; `written` says whether an item
/// writes those that it uses.
fn cut(m: usize, panels: usize, bytes: usize, written: bool, threads: usize) -> Cut {
    // In units of a row's products with a panel: fetching a panel from memory, or quantizing it; a 32th of a unit: reading a row again.
    let (fetch, read) = (if written { 150 } else { 16 }, 8);
    let most = (MAX_PANELS / bytes.max(1)).clamp(1, MAX_GROUP);
    let (mut best, mut cost) = (Cut { rows: m.max(1), panels: 1 }, usize::MAX);
    for group in 1..=panels.clamp(1, most) {
        for chunks in 1..=(8 * threads).min(m.div_ceil(MR).max(1)) {
            let rows = m.div_ceil(chunks).next_multiple_of(MR).max(MR);
            let items = m.div_ceil(rows).max(1) * panels.div_ceil(group);
            let time = items.div_ceil(threads) * (group * (rows + fetch) * 32 + read * rows);
            if time < cost {
                (best, cost) = (Cut { rows, panels: group }, time);
            }
        }
    }
    best
}

impl CpuInt8Gemm {
    /// Prepares `gemm` for sources and a result of these shapes; its weights are quantized where they are not yet.
    pub(crate) fn new(
        gemm: ImplicitGemm<'_>,
        sources: &[&[usize]],
        result: &[usize],
        (weights, pool): (&Int8Weights, &Pool),
    ) -> Self {
        let threads = pool.threads();
        let channels: Vec<usize> = sources[..gemm.sources].iter().map(|s| s.last().copied().unwrap_or(0)).collect();
        let all = channels.iter().sum();
        let source_rows = sources[0].iter().product::<usize>() / channels[0].max(1);
        let m = result.iter().product::<usize>() / result.last().copied().unwrap_or(1).max(1);
        let layout = PanelLayout { channels: all, taps: gemm.conv.map_or(1, |conv| conv.kernel * conv.kernel) };
        let parts = gemm.parts.iter().map(|part| part.weight.clone()).collect();
        let source = RowSource::new(gemm.conv, [1 + words(all), 0], sources[0], result);
        let gemm = CpuGemm::new(gemm, sources, result, threads, Operands::F32);
        let panels = weights.panels(gemm.weights(), parts, layout, pool);
        let cut = cut(m, gemm.panel_count(), layout.words() * 4, panels.are_written(), threads);
        Self { gemm, panels, channels, source_rows, source, m, cut, threads }
    }

    /// Words of a quantized row: its scale, then its elements.
    fn row_words(&self) -> usize {
        1 + words(self.channels.iter().sum())
    }

    /// Rows of the result that are summed before they go out: all of an item where there are low-rank updates, whose panels are made once.
    fn rows_at_a_time(&self) -> usize {
        if self.gemm.low_rank_floats() > 0 { self.cut.rows } else { MR }
    }

    /// Floats of a thread's parts: panels of low-rank updates, sums, panels that are written.
    fn sizes(&self) -> [usize; 3] {
        let written = if self.panels.are_written() { self.panels.layout().words() } else { 0 };
        let sums = self.rows_at_a_time().div_ceil(MR) * TILE;
        [self.gemm.low_rank_floats(), sums, written].map(|floats| floats * self.cut.panels)
    }

    /// Quantizes row `row` of the sources into `out`.
    ///
    /// # Safety
    /// As [`CpuOp::run`]; the row exists.
    unsafe fn quantize_row(&self, run: &OpRun<'_>, row: usize, out: &mut [f32]) {
        let sources = self.channels.iter().enumerate().map(|(k, &len)| {
            // SAFETY: the row exists.
            unsafe { std::slice::from_raw_parts(run.operand(k).add(row * len), len) }
        });
        let (scale, inverse) = scale(sources.clone().fold(0.0, |most, values| magnitude(values, most)));
        out[0] = scale;
        let mut bytes = bytemuck::cast_slice_mut::<f32, u8>(&mut out[1..]);
        for values in sources {
            let (now, rest) = bytes.split_at_mut(values.len());
            quantize(values, inverse, 0x80, now);
            bytes = rest;
        }
        // The weights there are 0; any byte would do.
        bytes.fill(0);
    }

    /// Computes an item from the quantized rows.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn item(&self, buffer: &mut [f32], run: &OpRun<'_>, Item { panels: numbers, rows }: &Item) {
        let [packed, sums, written] = split(buffer, self.sizes());
        let mut written = bytemuck::cast_slice_mut::<f32, i32>(written);
        let mut panels: [&[i32]; MAX_GROUP] = [&[]; MAX_GROUP];
        let step = if self.panels.are_written() { self.panels.layout().words() } else { 0 };
        for (panel, p) in panels.iter_mut().zip(numbers.clone()) {
            let (buffer, rest) = written.split_at_mut(step);
            *panel = self.panels.get(self.gemm.weights(), p, buffer);
            written = rest;
        }
        let panels = &panels[..numbers.len()];
        let step = self.rows_at_a_time();
        for first in rows.clone().step_by(step) {
            let item = Item { panels: numbers.clone(), rows: first..rows.end.min(first + step) };
            for (m, acc) in item.rows.clone().step_by(MR).zip(sums.chunks_exact_mut(panels.len() * TILE)) {
                // SAFETY: the rows exist.
                unsafe { self.multiply(run, m..item.rows.end.min(m + MR), panels, acc) };
            }
            let mut buffers = Buffers { packed, rounded: &mut [], acc: sums };
            // SAFETY: the caller's promise.
            unsafe {
                self.gemm.add_low_rank(run, &item, &mut buffers);
                self.gemm.store(buffers.acc, run, &item);
            }
        }
    }

    /// Sums the products of up to [`MR`] rows with panels, a tile of `acc` for each.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn multiply(&self, run: &OpRun<'_>, rows: Range<usize>, panels: &[&[i32]], acc: &mut [f32]) {
        let layout = self.panels.layout();
        let (height, k) = (rows.len(), self.row_words() - 1);
        let mut pointers = [run.zeros.as_ptr(); MR];
        for tap in 0..layout.taps {
            // SAFETY: the quantized rows lie in the shared buffer. Where a tap lies in the padding, the row of zeros has scale 0.
            unsafe {
                let first = run.scratch.shared().cast_const();
                self.source.rows(first, 0, tap, rows.start, run.zeros.as_ptr(), &mut pointers[..height]);
            }
            for (panel, acc) in panels.iter().zip(acc.chunks_exact_mut(TILE)) {
                let (scales, words) = (PanelLayout::scales(panel), layout.tap(panel, tap));
                // SAFETY: each row has a scale and k words, the panel is of that layout.
                unsafe { tile_int8(k, &pointers, height, &words, scales, acc.as_mut_ptr(), tap > 0) };
            }
        }
    }
}

impl CpuOp for CpuInt8Gemm {
    fn scratch(&self) -> usize {
        self.sizes().iter().sum()
    }

    fn shared_scratch(&self) -> usize {
        self.source_rows * self.row_words()
    }

    fn bytes(&self) -> usize {
        self.gemm.bytes() + self.source.bytes()
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        debug_assert_eq!(run.pool.threads(), self.threads);
        let width = self.row_words();
        run.pool.run(self.source_rows.div_ceil(QUANTIZED_ROWS), &|item, _| {
            for row in item * QUANTIZED_ROWS..self.source_rows.min((item + 1) * QUANTIZED_ROWS) {
                // SAFETY: the shared buffer has that row, and one item writes it.
                unsafe {
                    let out = std::slice::from_raw_parts_mut(run.scratch.shared().add(row * width), width);
                    self.quantize_row(run, row, out);
                }
            }
        });
        let panels = self.gemm.panel_count();
        let chunks = self.m.div_ceil(self.cut.rows);
        run.pool.run(panels.div_ceil(self.cut.panels) * chunks, &|item, thread| {
            // Items of the same panels follow one another, so that the threads read the same weights at about the same time.
            let (p, m) = (item / chunks * self.cut.panels, item % chunks * self.cut.rows);
            // SAFETY: each thread has a scratch of its own of at least `self.scratch()` floats.
            let buffer = unsafe { run.scratch.of(thread, self.scratch()) };
            let item = Item { panels: p..panels.min(p + self.cut.panels), rows: m..self.m.min(m + self.cut.rows) };
            // SAFETY: the caller's promise; items write disjoint parts of the result.
            unsafe { self.item(buffer, run, &item) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads have about equal shares, and an item's panels fit into a cache.
    #[test]
    fn balanced_cuts() {
        for (m, panels, words, threads) in [
            (2048, 60, 161, 2),
            (512, 320, 321, 2),
            (8192, 10, 9 * 81, 2),
            (512, 40, 9 * 641, 16),
            (154, 40, 321, 2),
            (1, 1, 5, 8),
        ] {
            for written in [false, true] {
                let bytes = words * 128;
                let c = cut(m, panels, bytes, written, threads);
                let items = m.div_ceil(c.rows) * panels.div_ceil(c.panels);
                let share = items.div_ceil(threads) * threads * c.rows.min(m) * c.panels;
                let waste = share as f64 / (m * panels) as f64;
                assert!(waste < 1.35 || items <= threads, "{m} {panels}: {c:?} wastes {waste}");
                assert!(c.panels == 1 || c.panels <= MAX_GROUP && c.panels * bytes <= MAX_PANELS, "{c:?}");
                assert!(c.rows.is_multiple_of(MR));
            }
        }
    }
}
