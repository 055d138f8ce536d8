//! Fully connected layers and convolutions: one implicit GEMM.
//!
//! The rows of the left matrix are never gathered into a buffer: the innermost loop takes twelve row pointers, and for a
//! convolution those point into the picture, tap by tap (a row of zeros stands for the padding). Weights stay in their
//! file's type; a panel of 32 output channels by about 1,152 inputs is widened and transposed in cache, used for as many
//! rows as there are, and forgotten. Every result element is one chain of additions in a fixed order, whatever the
//! number of threads and the tile sizes.

use super::kernel::{MR, NR, TILE, tile};
use super::pack::Panel;
use super::pool::Pool;
use super::scratch::Scratch;
use super::simd::{exp, for_every_isa, gelu, swish};
use crate::graph::Activation;
use crate::graph::{Epilogue, EpilogueActivation, ImplicitGemm};

/// Inputs times taps of a block: a panel of them is 147 kB and stays in the second-level cache.
const BLOCK: usize = 1152;
/// Rows for which one widened panel is used before it is widened again.
const MAX_ROWS: usize = 1536;

/// A product made ready for its shapes.
pub(crate) struct CpuProduct {
    panel: Panel,
    taps: usize,
    blocks: Vec<Block>,
    bias: Vec<f32>,
    epilogue: Epilogue,
    geometry: Geometry,
    /// Rows of the result, all images.
    m: usize,
    /// Channels of the result.
    n: usize,
    images: usize,
    tiling: Tiling,
    threads: usize,
}

/// Consecutive input channels of one source.
struct Block {
    source: usize,
    start: usize,
    len: usize,
    /// Where these channels begin in the weights.
    weight: usize,
}

/// How a row of the result finds its inputs.
enum Geometry {
    /// Row m of every source, sources of these widths.
    Rows([usize; 2]),
    /// Pixels under a window.
    Window {
        /// Channels of the sources.
        channels: [usize; 2],
        /// Height and width of the sources.
        source: [usize; 2],
        /// Height and width of the result.
        result: [usize; 2],
        kernel: usize,
        /// For each result row and tap the source row, or none where it lies in the padding; then the same for columns.
        y: Vec<Option<u32>>,
        x: Vec<Option<u32>>,
    },
}

/// The row of a source that enlarging it to `grid` rows by nearest neighbour puts at row `at`: torch's rule, the scale in f32,
/// rounded down.
pub(crate) fn nearest(at: usize, grid: usize, source: usize) -> usize {
    ((at as f32 * (source as f32 / grid as f32)) as usize).min(source - 1)
}

/// How the work is cut: items of `rows` rows by `group` panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiling {
    rows: usize,
    group: usize,
}

/// Picks the cut with the shortest time on `threads` equal threads, from the cost of multiplying and of widening.
fn tiling(m: usize, panels: usize, k: usize, threads: usize) -> Tiling {
    // Relative costs by measurement: one panel element is used in 64 flops a row; widening it costs about 30 rows.
    const WIDEN: usize = 30;
    let mut best = (usize::MAX, Tiling { rows: m.max(1), group: 1 });
    for group in 1..=panels.clamp(1, 4) {
        let least = m.div_ceil(MAX_ROWS).max(1);
        for chunks in least..least + 4 * threads {
            let rows = m.div_ceil(chunks).next_multiple_of(MR).max(MR);
            let items = m.div_ceil(rows).max(1) * panels.div_ceil(group);
            // Reading the rows anew for every group costs a little: prefer wide groups where they balance as well.
            let cost = items.div_ceil(threads) * k * (group * (rows + WIDEN) * 32 + rows);
            if cost < best.0 {
                best = (cost, Tiling { rows, group });
            }
        }
    }
    best.1
}

/// Pointers of one run.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) sources: [*const f32; 2],
    pub(crate) rows: *const f32,
    pub(crate) residual: *const f32,
    pub(crate) zeros: *const f32,
    pub(crate) out: *mut f32,
}

// SAFETY: the pointers are read by all threads and `out` is written in disjoint places.
unsafe impl Sync for Operands {}

impl CpuProduct {
    /// Prepares `gemm` for sources and a result of these shapes.
    pub(crate) fn new(gemm: ImplicitGemm<'_>, sources: &[&[usize]], shape: &[usize], threads: usize) -> Self {
        let n = shape.last().copied().unwrap_or(1);
        let m = shape.iter().product::<usize>() / n.max(1);
        let channel = |s: usize| sources.get(s).and_then(|s| s.last()).copied().unwrap_or(0);
        let channels = [channel(0), if gemm.sources == 2 { channel(1) } else { 0 }];
        let (taps, geometry) = match gemm.conv {
            None => (1, Geometry::Rows(channels)),
            Some(w) => {
                let (h, wd) = (sources[0][1], sources[0][2]);
                let (gh, gw) = w.resize.unwrap_or((h, wd));
                let axis = |out: usize, grid: usize, source: usize| {
                    let mut table = Vec::with_capacity(out * w.kernel);
                    for o in 0..out {
                        for k in 0..w.kernel {
                            let at = (o * w.stride + k).checked_sub(w.padding).filter(|&i| i < grid);
                            table.push(at.map(|i| nearest(i, grid, source) as u32));
                        }
                    }
                    table
                };
                let geometry = Geometry::Window {
                    channels,
                    source: [h, wd],
                    result: [shape[1], shape[2]],
                    kernel: w.kernel,
                    y: axis(shape[1], gh, h),
                    x: axis(shape[2], gw, wd),
                };
                (w.kernel * w.kernel, geometry)
            }
        };
        let mut blocks = Vec::new();
        let longest = (BLOCK / taps).max(1);
        for source in 0..gemm.sources {
            let (width, before) = (channels[source], if source == 1 { channels[0] } else { 0 });
            let len = width.div_ceil(width.div_ceil(longest).max(1)).max(1);
            for start in (0..width).step_by(len) {
                blocks.push(Block { source, start, len: len.min(width - start), weight: before + start });
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
        let panel = Panel::new(gemm.parts.iter().map(|p| p.weight.clone()).collect(), taps, geglu);
        let k = channels.iter().sum::<usize>() * taps;
        let tiling = tiling(m, panel.count(), k, threads);
        let images = shape[0].max(1);
        Self { panel, taps, blocks, bias, epilogue: gemm.epilogue, geometry, m, n, images, tiling, threads }
    }

    /// Floats of scratch that each thread needs.
    pub(crate) fn scratch(&self) -> usize {
        self.panel_floats() + self.tiling.rows.div_ceil(MR) * self.tiling.group * TILE
    }

    /// Bytes held besides the mapped weights.
    pub(crate) fn bytes(&self) -> usize {
        let tables = match &self.geometry {
            Geometry::Rows(_) => 0,
            Geometry::Window { y, x, .. } => (y.len() + x.len()) * 8,
        };
        self.bias.len() * 4 + tables
    }

    fn panel_floats(&self) -> usize {
        self.tiling.group * self.blocks.iter().map(|b| b.len).max().unwrap_or(0) * self.taps * NR
    }

    /// Computes the result.
    ///
    /// # Safety
    /// Sources, rows, residual and `out` have the lengths of the shapes given to [`CpuProduct::new`]; `zeros` is as long as
    /// the widest source row.
    pub(crate) unsafe fn run(&self, pool: &Pool, scratch: &Scratch, operands: Operands) {
        debug_assert_eq!(pool.threads(), self.threads);
        let Tiling { rows, group } = self.tiling;
        let panels = self.panel.count();
        let groups = panels.div_ceil(group);
        let chunks = self.m.div_ceil(rows);
        pool.run(groups * chunks, &|item, thread| {
            // Items of one group follow one another, so that the threads read the same weights at about the same time.
            let (g, chunk) = (item / chunks, item % chunks);
            let (p0, p1) = (g * group, ((g + 1) * group).min(panels));
            let (m0, m1) = (chunk * rows, ((chunk + 1) * rows).min(self.m));
            // SAFETY: each thread has a scratch of its own of at least `self.scratch()` floats.
            let buffer = unsafe { scratch.of(thread, self.scratch()) };
            // SAFETY: the caller's promise; items write disjoint parts of the result.
            unsafe { self.item(buffer, &operands, p0..p1, m0..m1) };
        });
    }

    /// # Safety
    /// See [`CpuProduct::run`].
    unsafe fn item(
        &self,
        buffer: &mut [f32],
        operands: &Operands,
        panels: std::ops::Range<usize>,
        ms: std::ops::Range<usize>,
    ) {
        let (packed, acc) = buffer.split_at_mut(self.panel_floats());
        let count = panels.len();
        for (b, block) in self.blocks.iter().enumerate() {
            let stride = block.len * self.taps * NR;
            for (i, p) in panels.clone().enumerate() {
                self.panel.pack(p, block.weight, block.len, &mut packed[i * stride..(i + 1) * stride]);
            }
            for (t, m) in ms.clone().step_by(MR).enumerate() {
                let height = MR.min(ms.end - m);
                let mut pointers = [operands.zeros; MR];
                for tap in 0..self.taps {
                    // SAFETY: rows m..m + height exist.
                    unsafe { self.point(operands, block, tap, m, height, &mut pointers) };
                    for i in 0..count {
                        let panel = packed[i * stride + tap * block.len * NR..].as_ptr();
                        let acc = acc[(t * count + i) * TILE..][..TILE].as_mut_ptr();
                        // SAFETY: each pointer has `block.len` floats after it, the panel block.len * NR.
                        unsafe { tile(block.len, &pointers, height, panel, acc, b > 0 || tap > 0) };
                    }
                }
            }
        }
        let per_image = self.m / self.images;
        let width = if self.epilogue.activation == EpilogueActivation::Geglu { NR / 2 } else { NR };
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
                        let rows =
                            self.epilogue.per_image_bias.then(|| slice(operands.rows, row / per_image * self.n + n0));
                        let residual = self.epilogue.residual.then(|| slice(operands.residual, at));
                        let out = std::slice::from_raw_parts_mut(operands.out.add(at), columns);
                        self.finish(sum, n0, rows, residual, out);
                    }
                }
            }
        }
    }

    /// Bias, rows, the nonlinear end and the residual, for one row of one panel.
    fn finish(&self, sum: &mut [f32], n0: usize, rows: Option<&[f32]>, residual: Option<&[f32]>, out: &mut [f32]) {
        let columns = out.len();
        if self.epilogue.activation == EpilogueActivation::Geglu {
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
            if let Some(rows) = rows {
                add(sum, rows);
            }
            if let EpilogueActivation::Pointwise(kind) = self.epilogue.activation {
                activate(sum, kind);
            }
            out.copy_from_slice(sum);
        }
        if let Some(residual) = residual {
            add(out, residual);
        }
    }

    /// Points at the inputs of rows m.. under one tap.
    ///
    /// # Safety
    /// The rows exist.
    unsafe fn point(
        &self,
        operands: &Operands,
        block: &Block,
        tap: usize,
        m: usize,
        height: usize,
        out: &mut [*const f32; MR],
    ) {
        let source = operands.sources[block.source];
        match &self.geometry {
            Geometry::Rows(channels) => {
                let width = channels[block.source];
                for (r, p) in out[..height].iter_mut().enumerate() {
                    // SAFETY: row m + r of a matrix of that width.
                    *p = unsafe { source.add((m + r) * width + block.start) };
                }
            }
            Geometry::Window { channels, source: [h, w], result: [rh, rw], kernel, y, x } => {
                let width = channels[block.source];
                let (ky, kx) = (tap / kernel, tap % kernel);
                for (r, p) in out[..height].iter_mut().enumerate() {
                    let pixel = m + r;
                    let (image, rest) = (pixel / (rh * rw), pixel % (rh * rw));
                    let (oy, ox) = (rest / rw, rest % rw);
                    *p = match (y[oy * kernel + ky], x[ox * kernel + kx]) {
                        (Some(iy), Some(ix)) => {
                            let pixel = (image * h + iy as usize) * w + ix as usize;
                            // SAFETY: the tables hold places inside the source.
                            unsafe { source.add(pixel * width + block.start) }
                        }
                        _ => operands.zeros,
                    };
                }
            }
        }
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
            *o = v * gelu(*g);
        }
    }
}

for_every_isa! {
    /// Applies an activation in place.
    pub(crate) fn activate(x: &mut [f32], kind: Activation) {
        match kind {
            Activation::Silu => x.iter_mut().for_each(|x| *x = swish(*x, 1.0)),
            Activation::Gelu => x.iter_mut().for_each(|x| *x = gelu(*x)),
            Activation::QuickGelu => x.iter_mut().for_each(|x| *x /= 1.0 + exp(-1.702 * *x)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cut_balances_threads() {
        for (m, panels, k, threads) in [(128, 40, 1280, 2), (2048, 10, 2880, 2), (2, 40, 1280, 16), (1, 1, 4, 1)] {
            let t = tiling(m, panels, k, threads);
            assert!(t.rows <= MAX_ROWS + MR && t.group <= 4 && t.rows.is_multiple_of(MR), "{t:?}");
            let items = m.div_ceil(t.rows) * panels.div_ceil(t.group);
            let rounds = items.div_ceil(threads);
            let waste = (rounds * threads * t.rows.min(m) * t.group) as f64 / (m * panels) as f64;
            assert!(waste < 1.35 || items <= threads, "{m} {panels}: {t:?} wastes {waste}");
        }
    }
}
