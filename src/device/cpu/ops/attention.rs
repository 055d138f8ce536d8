//! Attention in blocks with an online softmax; every branch keeps a softmax of its own.

use super::online_softmax::{KEYS, Strip, divide, soften};
use crate::device::cpu::fp_math::{Operands, pair_rows, round_in_place};
use crate::device::cpu::microkernel::{MR, NR, TILE, tile};
use crate::device::cpu::op::{CpuOp, OpRun, index};
use crate::device::cpu::pack::{Place, spread};
use crate::device::cpu::scratch::split;
use crate::graph::{Attention, Node};

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
    /// For each query the greatest score, and 32 parts of the sum of the exponentials.
    maxima: &'a mut [f32],
    totals: &'a mut [f32],
    /// Panels of keys and of values.
    keys: &'a mut [f32],
    values: &'a mut [f32],
    /// Tiles of scores of 12 queries, and their exponentials.
    scores: &'a mut [f32],
    weights: &'a mut [f32],
    /// A panel of keys before it is transposed.
    lanes: &'a mut [f32],
    /// The item's queries and 12 rows of exponentials, in words; empty with operands of f32, which are read where they lie.
    queries: &'a mut [f32],
    packed: &'a mut [f32],
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
    fn sizes(&self) -> [usize; 10] {
        let tiles = self.chunk.min(self.tokens).div_ceil(MR);
        let wide = self.op.dim.div_ceil(NR);
        let (dim, keys) = (self.operands.words(self.op.dim), self.operands.words(KEYS));
        let [queries, packed] = if self.operands == Operands::F32 { [0; 2] } else { [tiles * MR * dim, MR * keys] };
        let (sums, maxima) = (tiles * wide * TILE, tiles * MR);
        let (keys, values, scores) = (KEYS * dim, wide * keys * NR, KEYS * MR);
        [sums, maxima, maxima * NR, keys, values, scores, scores, NR * dim, queries, packed]
    }

    fn buffers<'a>(&self, buffer: &'a mut [f32]) -> Buffers<'a> {
        let [sums, maxima, totals, keys, values, scores, weights, lanes, queries, packed] = split(buffer, self.sizes());
        Buffers { sums, maxima, totals, keys, values, scores, weights, lanes, queries, packed }
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
            let Buffers { sums, totals, .. } = self.buffers(buffer);
            let tiles = sums.chunks_exact(wide * TILE).zip(totals.as_chunks::<NR>().0.chunks_exact(MR));
            for (top, (sums, totals)) in rows.clone().step_by(MR).zip(tiles) {
                for r in 0..MR.min(rows.end - top) {
                    // SAFETY: masks are `[T]`.
                    let mask = branch.mask.map_or(1.0, |o| unsafe { *run.operand(o).add(top + r) });
                    let at = (image * self.tokens + top + r) * out_width + head * dim;
                    // SAFETY: inside the result; no other item writes these rows of this head.
                    let out = unsafe { std::slice::from_raw_parts_mut(run.out().add(at), dim) };
                    divide(out, &sums[r * NR..], &totals[r], scale * mask, written);
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
        let Buffers { sums, maxima, totals, keys, values, scores, weights, lanes, queries, packed } =
            self.buffers(buffer);
        let totals = totals.as_chunks_mut::<NR>().0;
        maxima.fill(f32::NEG_INFINITY);
        totals.fill([0.0; NR]);
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
                pack_keys(operands, keys, lanes, dim, count, |i| key(first + i));
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
                for (p, scores) in scores.chunks_exact_mut(TILE).take(count.div_ceil(NR)).enumerate() {
                    let keys = keys[p * words * NR..].as_ptr();
                    // SAFETY: as many words behind each query pointer, and as many times NR in the panel.
                    unsafe { tile(operands, words, &pointers, height, keys, scores.as_mut_ptr(), false) };
                }
                let seen =
                    |r: usize| if self.op.causal { count.min((top + r + 1).saturating_sub(first)) } else { count };
                let sums = &mut sums[t * wide * TILE..][..wide * TILE];
                soften(Strip {
                    scores,
                    weights,
                    maxima: &mut maxima[t * MR..][..height],
                    totals: &mut totals[t * MR..][..height],
                    sums: if first > 0 { sums } else { &mut [] },
                    seen: std::array::from_fn(seen),
                    count,
                    scale: 1.0 / (dim as f32).sqrt(),
                });
                let pointers = self.pack_weights(weights, packed, height, count);
                for (w, sums) in sums.chunks_exact_mut(TILE).enumerate() {
                    let values = values[w * operands.words(KEYS) * NR..].as_ptr();
                    let count = operands.words(count);
                    // SAFETY: `count` words behind each pointer and count * NR in the panel.
                    unsafe { tile(operands, count, &pointers, height, values, sums.as_mut_ptr(), first > 0) };
                }
            }
        }
    }

    /// The rows of exponentials as operands, in `packed` where they are not f32.
    fn pack_weights(&self, weights: &[f32], packed: &mut [f32], height: usize, count: usize) -> [*const f32; MR] {
        if self.operands == Operands::F32 {
            return std::array::from_fn(|r| weights[r.min(height - 1) * KEYS..].as_ptr());
        }
        let stride = self.operands.words(KEYS);
        for r in 0..height {
            let out = &mut packed[r * stride..][..self.operands.words(count)];
            self.operands.pack_row(&weights[r * KEYS..][..count], out);
        }
        std::array::from_fn(|r| packed[r.min(height - 1) * stride..].as_ptr())
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

/// Transposes `count` keys into panels `[words][32]`, zeros past the last; `lanes` holds 32 keys meanwhile.
///
/// # Safety
/// `key(i)` points at `dim` floats for i below `count`.
unsafe fn pack_keys(
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
    let lanes = out.as_chunks_mut::<NR>().0;
    for i in 0..count {
        // SAFETY: the caller's promise.
        let row = unsafe { std::slice::from_raw_parts(value(i), dim) };
        for (w, part) in row.chunks(NR).enumerate() {
            let lane = &mut lanes[w * KEYS + i];
            if let Ok(part) = <&[f32; NR]>::try_from(part) {
                *lane = *part;
            } else {
                lane[..part.len()].copy_from_slice(part);
                lane[part.len()..].fill(0.0);
            }
        }
    }
}
