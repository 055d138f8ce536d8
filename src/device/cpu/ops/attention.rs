//! Attention in blocks with an online softmax; every branch keeps a softmax of its own.

use crate::device::cpu::microkernel::{MR, NR, TILE, tile};
use crate::device::cpu::op::{CpuOp, OpRun, index};
use crate::device::cpu::simd::{exp, for_every_isa};
use crate::graph::{Attention, Node};

/// Keys of a block.
const KEYS: usize = 128;

/// An attention prepared for its shapes.
pub(crate) struct CpuAttention {
    op: Attention,
    images: usize,
    tokens: usize,
    /// Width of each operand's rows.
    widths: Vec<usize>,
    /// Tokens of each branch.
    keys: Vec<usize>,
    /// Query rows of an item.
    chunk: usize,
}

impl CpuAttention {
    /// Prepares `op` for operands of these shapes.
    pub(crate) fn new(op: &Attention, node: &Node, shapes: &[&[usize]]) -> Self {
        let images = node.shape[0];
        let count = |shape: &[usize]| shape[1..shape.len() - 1].iter().product::<usize>();
        let keys = op.branches.iter().map(|s| count(shapes[s.keys.operand])).collect();
        let widths = shapes.iter().map(|s| s.last().copied().unwrap_or(1)).collect();
        // A block of keys is packed once for a chunk; the chunk's sums stay within 256 kB.
        let chunk = (65_536 / op.dim.next_multiple_of(NR)).next_multiple_of(MR).max(MR);
        Self { op: op.clone(), images, tokens: node.tokens(), widths, keys, chunk }
    }

    fn sizes(&self) -> [usize; 6] {
        let tiles = self.chunk.min(self.tokens).div_ceil(MR);
        let wide = self.op.dim.div_ceil(NR);
        [tiles * wide * TILE, tiles * MR * 2, KEYS * self.op.dim, wide * KEYS * NR, MR * KEYS, TILE]
    }

    /// Computes some rows of one head of one image.
    ///
    /// # Safety
    /// As [`CpuOp::run`].
    unsafe fn item(
        &self,
        buffer: &mut [f32],
        run: &OpRun<'_>,
        image: usize,
        head: usize,
        rows: std::ops::Range<usize>,
    ) {
        let dim = self.op.dim;
        let wide = dim.div_ceil(NR);
        let out_width = self.op.heads * dim;
        let mut written = false;
        for (branch, &tokens) in self.op.branches.iter().zip(&self.keys) {
            let length = branch.length.map_or(tokens, |o| index(run.integers(o)[image]).min(tokens));
            // SAFETY: scales are `[.., B]` from their start.
            let scale = branch.scale.map_or(1.0, |(o, start)| unsafe { *run.operand(o).add(start + image) });
            if length == 0 || scale == 0.0 {
                continue;
            }
            // SAFETY: row and column lie inside the operand.
            let row = |operand: usize, start: usize, count: usize, t: usize| unsafe {
                run.operand(operand).add((image * count + t) * self.widths[operand] + start + head * dim)
            };
            self.branch(
                buffer,
                rows.clone(),
                length,
                |t| row(self.op.query.operand, self.op.query.start, self.tokens, t),
                |t| row(branch.keys.operand, branch.keys.start, tokens, t),
                |t| row(branch.values.operand, branch.values.start, tokens, t),
            );
            let (sums, state) = buffer.split_at(self.sizes()[0]);
            for (t, top) in rows.clone().step_by(MR).enumerate() {
                for r in 0..MR.min(rows.end - top) {
                    // SAFETY: masks are `[T]`.
                    let mask = branch.mask.map_or(1.0, |o| unsafe { *run.operand(o).add(top + r) });
                    let factor = scale * mask / state[(t * MR + r) * 2 + 1];
                    for w in 0..wide {
                        let from = &sums[(t * wide + w) * TILE + r * NR..][..NR.min(dim - w * NR)];
                        let at = (image * self.tokens + top + r) * out_width + head * dim + w * NR;
                        // SAFETY: inside the result; no other item writes these rows of this head.
                        let out = unsafe { std::slice::from_raw_parts_mut(run.out().add(at), from.len()) };
                        store(out, from, factor, written);
                    }
                }
            }
            written = true;
        }
        if !written {
            for t in rows {
                let at = (image * self.tokens + t) * out_width + head * dim;
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts_mut(run.out().add(at), dim) }.fill(0.0);
            }
        }
    }

    /// One branch for one head and some rows: leaves in `buffer` the unnormalised sums and, for each row, the greatest
    /// score and the sum of the exponentials.
    fn branch(
        &self,
        buffer: &mut [f32],
        rows: std::ops::Range<usize>,
        length: usize,
        query: impl Fn(usize) -> *const f32,
        key: impl Fn(usize) -> *const f32,
        value: impl Fn(usize) -> *const f32,
    ) {
        let dim = self.op.dim;
        let wide = dim.div_ceil(NR);
        let scale = 1.0 / (dim as f32).sqrt();
        let [n_sums, n_state, n_keys, n_values, n_scores, _] = self.sizes();
        let (sums, rest) = buffer.split_at_mut(n_sums);
        let (state, rest) = rest.split_at_mut(n_state);
        let (keys, rest) = rest.split_at_mut(n_keys);
        let (values, rest) = rest.split_at_mut(n_values);
        let (scores, acc) = rest.split_at_mut(n_scores);
        for s in state.chunks_exact_mut(2) {
            s.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
        }
        for first in (0..length).step_by(KEYS) {
            let count = KEYS.min(length - first);
            if self.op.causal && first >= rows.end {
                break;
            }
            // SAFETY: `key` and `value` point at `dim` floats for every token below the branch's length.
            unsafe { pack_keys(keys, dim, count, |i| key(first + i)) };
            // SAFETY: as above.
            unsafe { pack_values(values, dim, count, |i| value(first + i)) };
            for (t, top) in rows.clone().step_by(MR).enumerate() {
                let height = MR.min(rows.end - top);
                if self.op.causal && first >= top + height {
                    continue;
                }
                let pointers = std::array::from_fn(|r| query(top + r.min(height - 1)));
                for p in 0..count.div_ceil(NR) {
                    // SAFETY: `dim` floats behind each query pointer and dim * NR in the panel.
                    unsafe { tile(dim, &pointers, height, keys[p * dim * NR..].as_ptr(), acc.as_mut_ptr(), false) };
                    for r in 0..height {
                        scores[r * KEYS + p * NR..][..NR].copy_from_slice(&acc[r * NR..][..NR]);
                    }
                }
                for r in 0..height {
                    let seen = if self.op.causal { count.min((top + r + 1).saturating_sub(first)) } else { count };
                    let s = &mut state[(t * MR + r) * 2..][..2];
                    let (max, sum, decay) = soften(&mut scores[r * KEYS..][..count], seen, scale, s[0], s[1]);
                    s.copy_from_slice(&[max, sum]);
                    if first > 0 && decay != 1.0 {
                        for w in 0..wide {
                            let at = (t * wide + w) * TILE + r * NR;
                            sums[at..at + NR].iter_mut().for_each(|x| *x *= decay);
                        }
                    }
                }
                let pointers: [*const f32; MR] = std::array::from_fn(|r| scores[r.min(height - 1) * KEYS..].as_ptr());
                for w in 0..wide {
                    let acc = sums[(t * wide + w) * TILE..][..TILE].as_mut_ptr();
                    // SAFETY: `count` scores behind each pointer and count * NR values in the panel.
                    unsafe { tile(count, &pointers, height, values[w * KEYS * NR..].as_ptr(), acc, first > 0) };
                }
            }
        }
    }
}

impl CpuOp for CpuAttention {
    fn scratch(&self) -> usize {
        self.sizes().iter().sum()
    }

    unsafe fn run(&self, run: &OpRun<'_>) {
        let chunks = self.tokens.div_ceil(self.chunk);
        let heads = self.op.heads;
        run.pool.run(self.images * heads * chunks, &|item, thread| {
            let (image, head, chunk) = (item / (heads * chunks), item / chunks % heads, item % chunks);
            let rows = chunk * self.chunk..((chunk + 1) * self.chunk).min(self.tokens);
            // SAFETY: each thread has a scratch of its own of at least `self.scratch()` floats.
            let buffer = unsafe { run.scratch.of(thread, self.scratch()) };
            // SAFETY: the caller's promise; items write disjoint rows and columns.
            unsafe { self.item(buffer, run, image, head, rows) };
        });
    }
}

/// Transposes `count` keys into panels `[dim][32]`, zeros past the last.
///
/// # Safety
/// `key(i)` points at `dim` floats for i below `count`.
unsafe fn pack_keys(out: &mut [f32], dim: usize, count: usize, key: impl Fn(usize) -> *const f32) {
    for p in 0..count.div_ceil(NR) {
        let panel = &mut out[p * dim * NR..][..dim * NR];
        for j in 0..NR {
            if p * NR + j < count {
                // SAFETY: the caller's promise.
                let row = unsafe { std::slice::from_raw_parts(key(p * NR + j), dim) };
                row.iter().zip(panel[j..].iter_mut().step_by(NR)).for_each(|(v, o)| *o = *v);
            } else {
                panel[j..].iter_mut().step_by(NR).for_each(|o| *o = 0.0);
            }
        }
    }
}

/// Copies `count` values into panels of 32 columns, zeros past the last column.
///
/// # Safety
/// `value(i)` points at `dim` floats for i below `count`.
unsafe fn pack_values(out: &mut [f32], dim: usize, count: usize, value: impl Fn(usize) -> *const f32) {
    for i in 0..count {
        // SAFETY: the caller's promise.
        let row = unsafe { std::slice::from_raw_parts(value(i), dim) };
        for (w, part) in row.chunks(NR).enumerate() {
            let lane = &mut out[(w * KEYS + i) * NR..][..NR];
            lane[..part.len()].copy_from_slice(part);
            lane[part.len()..].fill(0.0);
        }
    }
}

for_every_isa! {
    /// One row of scores becomes exponentials: `seen` of them count, the rest become 0. Returns the new greatest score, the
    /// new sum, and the factor by which earlier sums shrink.
    fn soften(scores: &mut [f32], seen: usize, scale: f32, max: f32, sum: f32) -> (f32, f32, f32) {
        let (live, dead) = scores.split_at_mut(seen);
        dead.fill(0.0);
        if live.is_empty() {
            return (max, sum, 1.0);
        }
        let mut lanes = [f32::NEG_INFINITY; 16];
        let mut chunks = live.chunks_exact_mut(16);
        for chunk in &mut chunks {
            for (m, s) in lanes.iter_mut().zip(chunk) {
                *s *= scale;
                *m = if *s > *m { *s } else { *m };
            }
        }
        let mut greatest = max;
        for s in chunks.into_remainder() {
            *s *= scale;
            greatest = greatest.max(*s);
        }
        greatest = lanes.iter().fold(greatest, |a, b| a.max(*b));
        let mut lanes = [0f32; 16];
        let mut chunks = live.chunks_exact_mut(16);
        for chunk in &mut chunks {
            for (l, s) in lanes.iter_mut().zip(chunk) {
                *s = exp(*s - greatest);
                *l += *s;
            }
        }
        let mut total = 0.0;
        for s in chunks.into_remainder() {
            *s = exp(*s - greatest);
            total += *s;
        }
        total += lanes.iter().sum::<f32>();
        let decay = if max == f32::NEG_INFINITY { 0.0 } else { exp(max - greatest) };
        (greatest, sum * decay + total, decay)
    }
}

for_every_isa! {
    fn store(out: &mut [f32], sums: &[f32], factor: f32, add: bool) {
        if add {
            out.iter_mut().zip(sums).for_each(|(o, s)| *o += s * factor);
        } else {
            out.iter_mut().zip(sums).for_each(|(o, s)| *o = s * factor);
        }
    }
}
