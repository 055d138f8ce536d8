//! Attention in blocks with an online softmax; every branch keeps a softmax of its own.

use crate::device::cpu::fp_math::{Operands, pair_rows, round_in_place};
use crate::device::cpu::microkernel::{MR, NR, TILE, tile};
use crate::device::cpu::op::{CpuOp, OpRun, index};
use crate::device::cpu::pack::{Place, spread};
use crate::device::cpu::scratch::split;
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
    operands: Operands,
}

/// The parts of a thread's memory, each with its floats.
struct Buffers<'a> {
    /// Tiles of sums, those of 12 queries one after the other.
    sums: &'a mut [f32],
    /// For each query the greatest score and the sum of the exponentials.
    state: &'a mut [f32],
    /// Panels of keys and of values.
    keys: &'a mut [f32],
    values: &'a mut [f32],
    scores: &'a mut [f32],
    acc: &'a mut [f32],
    /// The item's queries, 12 rows of scores and 32 of keys, in words; empty with operands of f32, which are read where they lie.
    queries: &'a mut [f32],
    weights: &'a mut [f32],
    lanes: &'a mut [f32],
}

impl CpuAttention {
    /// Prepares `op` for operands of these shapes.
    pub(crate) fn new(op: &Attention, node: &Node, shapes: &[&[usize]], operands: Operands) -> Self {
        let images = node.shape[0];
        let count = |shape: &[usize]| shape[1..shape.len() - 1].iter().product::<usize>();
        let keys = op.branches.iter().map(|s| count(shapes[s.keys.operand])).collect();
        let widths = shapes.iter().map(|s| s.last().copied().unwrap_or(1)).collect();
        // A block of keys is packed once for a chunk; the chunk's sums stay within 256 kB.
        let chunk = (65_536 / op.dim.next_multiple_of(NR)).next_multiple_of(MR).max(MR);
        Self { op: op.clone(), images, tokens: node.tokens(), widths, keys, chunk, operands }
    }

    /// Floats of each of [`Buffers`].
    fn sizes(&self) -> [usize; 9] {
        let tiles = self.chunk.min(self.tokens).div_ceil(MR);
        let wide = self.op.dim.div_ceil(NR);
        let (dim, keys) = (self.operands.words(self.op.dim), self.operands.words(KEYS));
        let packed = if self.operands == Operands::F32 { [0; 3] } else { [tiles * MR * dim, MR * keys, NR * dim] };
        let [queries, weights, lanes] = packed;
        let (sums, state) = (tiles * wide * TILE, tiles * MR * 2);
        [sums, state, KEYS * dim, wide * keys * NR, MR * KEYS, TILE, queries, weights, lanes]
    }

    fn buffers<'a>(&self, buffer: &'a mut [f32]) -> Buffers<'a> {
        let [sums, state, keys, values, scores, acc, queries, weights, lanes] = split(buffer, self.sizes());
        Buffers { sums, state, keys, values, scores, acc, queries, weights, lanes }
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
            let Buffers { sums, state, .. } = self.buffers(buffer);
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
        let (operands, dim) = (self.operands, self.op.dim);
        let wide = dim.div_ceil(NR);
        let words = operands.words(dim);
        let Buffers { sums, state, keys, values, scores, acc, queries, weights, lanes } = self.buffers(buffer);
        for s in state.chunks_exact_mut(2) {
            s.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
        }
        if operands != Operands::F32 {
            for (t, out) in rows.clone().zip(queries.chunks_exact_mut(words)) {
                // SAFETY: `query` points at `dim` floats for every row.
                operands.pack_row(unsafe { std::slice::from_raw_parts(query(t), dim) }, out);
            }
        }
        for first in (0..length).step_by(KEYS) {
            let count = KEYS.min(length - first);
            if self.op.causal && first >= rows.end {
                break;
            }
            // SAFETY: `key` and `value` point at `dim` floats for every token below the branch's length.
            unsafe {
                match operands {
                    Operands::F32 => pack_keys(keys, dim, count, |i| key(first + i)),
                    _ => pack_words(operands, keys, lanes, dim, count, |i| key(first + i)),
                }
                match operands {
                    Operands::Pairs => pair_values(values, dim, count, |i| value(first + i)),
                    _ => pack_values(values, dim, count, |i| value(first + i)),
                }
            }
            if operands == Operands::Rounded {
                round_in_place(values);
            }
            for (t, top) in rows.clone().step_by(MR).enumerate() {
                let height = MR.min(rows.end - top);
                if self.op.causal && first >= top + height {
                    continue;
                }
                let pointers = std::array::from_fn(|r| match operands {
                    Operands::F32 => query(top + r.min(height - 1)),
                    _ => queries[(t * MR + r.min(height - 1)) * words..].as_ptr(),
                });
                for p in 0..count.div_ceil(NR) {
                    let keys = keys[p * words * NR..].as_ptr();
                    // SAFETY: as many words behind each query pointer, and as many times NR in the panel.
                    unsafe { tile(operands, words, &pointers, height, keys, acc.as_mut_ptr(), false) };
                    for r in 0..height {
                        scores[r * KEYS + p * NR..][..NR].copy_from_slice(&acc[r * NR..][..NR]);
                    }
                }
                let state = &mut state[t * MR * 2..][..height * 2];
                let sums = &mut sums[t * wide * TILE..][..wide * TILE];
                self.soften(scores, top, first, count, state, sums);
                let pointers = self.weights(scores, weights, height, count);
                for (w, sums) in sums.chunks_exact_mut(TILE).enumerate() {
                    let values = values[w * operands.words(KEYS) * NR..].as_ptr();
                    let count = operands.words(count);
                    // SAFETY: `count` words behind each pointer and count * NR in the panel.
                    unsafe { tile(operands, count, &pointers, height, values, sums.as_mut_ptr(), first > 0) };
                }
            }
        }
    }

    /// Rows of scores become exponentials, from which sums and state go on.
    fn soften(&self, scores: &mut [f32], top: usize, first: usize, count: usize, state: &mut [f32], sums: &mut [f32]) {
        let scale = 1.0 / (self.op.dim as f32).sqrt();
        for (r, s) in state.chunks_exact_mut(2).enumerate() {
            let seen = if self.op.causal { count.min((top + r + 1).saturating_sub(first)) } else { count };
            let (max, sum, decay) = soften(&mut scores[r * KEYS..][..count], seen, scale, s[0], s[1]);
            s.copy_from_slice(&[max, sum]);
            if first > 0 && decay != 1.0 {
                for tile in sums.chunks_exact_mut(TILE) {
                    tile[r * NR..][..NR].iter_mut().for_each(|x| *x *= decay);
                }
            }
        }
    }

    /// The rows of exponentials as operands, in `weights` where they are not f32.
    fn weights(&self, scores: &[f32], weights: &mut [f32], height: usize, count: usize) -> [*const f32; MR] {
        if self.operands == Operands::F32 {
            return std::array::from_fn(|r| scores[r.min(height - 1) * KEYS..].as_ptr());
        }
        let stride = self.operands.words(KEYS);
        for r in 0..height {
            let out = &mut weights[r * stride..][..self.operands.words(count)];
            self.operands.pack_row(&scores[r * KEYS..][..count], out);
        }
        std::array::from_fn(|r| weights[r.min(height - 1) * stride..].as_ptr())
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

/// [`pack_keys`] in words; `lanes` holds 32 keys meanwhile.
///
/// # Safety
/// As [`pack_keys`].
unsafe fn pack_words(
    operands: Operands,
    out: &mut [f32],
    lanes: &mut [f32],
    dim: usize,
    count: usize,
    key: impl Fn(usize) -> *const f32,
) {
    let words = operands.words(dim);
    for (p, panel) in out.chunks_exact_mut(words * NR).take(count.div_ceil(NR)).enumerate() {
        for (j, lane) in lanes.chunks_exact_mut(words).enumerate() {
            if p * NR + j < count {
                // SAFETY: the caller's promise.
                operands.pack_row(unsafe { std::slice::from_raw_parts(key(p * NR + j), dim) }, lane);
            } else {
                lane.fill(0.0);
            }
        }
        spread(lanes, words, 1, Place { first: 0, count: words, of: words }, panel);
    }
}

/// [`pack_values`] in pairs of a value and the next one, of an odd number the last one with zeros.
///
/// # Safety
/// As [`pack_values`].
unsafe fn pair_values(out: &mut [f32], dim: usize, count: usize, value: impl Fn(usize) -> *const f32) {
    let zeros = [0.0; NR];
    for (i, word) in (0..count).step_by(2).enumerate() {
        for (w, start) in (0..dim).step_by(NR).enumerate() {
            let columns = NR.min(dim - start);
            // SAFETY: the caller's promise.
            let part = |i| unsafe { std::slice::from_raw_parts(value(i).add(start), columns) };
            let next = if word + 1 < count { part(word + 1) } else { &zeros[..columns] };
            let lane = &mut out[(w * KEYS.div_ceil(2) + i) * NR..][..NR];
            lane[columns..].fill(0.0);
            pair_rows(part(word), next, bytemuck::cast_slice_mut(&mut lane[..columns]));
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
