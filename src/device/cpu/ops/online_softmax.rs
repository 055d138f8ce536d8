//! The softmax of attention's scores, block by block of keys.

use crate::device::cpu::microkernel::{MR, NR, TILE};
use crate::device::cpu::simd::{exp, for_every_isa, mul_add};

/// Keys of a block.
pub(super) const KEYS: usize = 128;
/// Elements that one vector takes.
const LANES: usize = 16;

/// Up to [`MR`] queries on a block of keys.
pub(super) struct Strip<'a> {
    /// Tiles of scores, those of 32 keys after one another.
    pub(super) scores: &'a mut [f32],
    /// The result: for each query the exponentials of its [`KEYS`] scores.
    pub(super) weights: &'a mut [f32],
    /// For each query the greatest score until now, times the scale.
    pub(super) maxima: &'a mut [f32],
    /// For each query 32 parts of the sum of its exponentials.
    pub(super) totals: &'a mut [[f32; NR]],
    /// The tiles of sums of values, one for 32 columns.
    pub(super) sums: &'a mut [f32],
    /// The keys of the block that count, for each query.
    pub(super) seen: [usize; MR],
    /// The keys of the block.
    pub(super) count: usize,
    /// The factor of a score.
    pub(super) scale: f32,
}

for_every_isa! {
    /// Turns scores into exponentials and, where a maximum has moved, shrinks what was summed before. A query that sees none of the
    /// keys keeps what it has.
    pub(super) fn soften(strip: Strip<'_>) {
        let Strip { scores, weights, maxima, totals, sums, seen, count, scale } = strip;
        let whole = count.next_multiple_of(NR);
        let mut decay = [0.0; LANES];
        for (r, (max, decay)) in maxima.iter_mut().zip(&mut decay).enumerate() {
            for i in seen[r]..whole {
                scores[i / NR * TILE + r * NR + i % NR] = f32::NEG_INFINITY;
            }
            let mut lanes = [f32::NEG_INFINITY; LANES];
            for scores in scores.chunks_exact(TILE).take(whole / NR) {
                for scores in scores[r * NR..][..NR].as_chunks::<LANES>().0 {
                    for (m, s) in lanes.iter_mut().zip(scores) {
                        *m = if *s > *m { *s } else { *m };
                    }
                }
            }
            let (greatest, before) = (greatest(lanes) * scale, *max);
            *max = if greatest > before { greatest } else { before };
            *decay = before - *max;
        }
        decay.iter_mut().for_each(|x| *x = exp::<FMA>(*x));
        // To multiply by 1 changes nothing.
        if decay[..maxima.len()].iter().any(|x| *x != 1.0) {
            for (r, (total, decay)) in totals.iter_mut().zip(&decay).enumerate() {
                total.iter_mut().for_each(|x| *x *= decay);
                for tile in sums.chunks_exact_mut(TILE) {
                    tile[r * NR..][..NR].iter_mut().for_each(|x| *x *= decay);
                }
            }
        }
        for (r, (max, total)) in maxima.iter().zip(totals).enumerate() {
            let rows = weights[r * KEYS..][..whole].as_chunks_mut::<NR>().0;
            for (row, scores) in rows.iter_mut().zip(scores.chunks_exact(TILE)) {
                let scores = &scores[r * NR..][..NR];
                for l in 0..NR {
                    row[l] = exp::<FMA>(mul_add::<FMA>(scores[l], scale, -max));
                    total[l] += row[l];
                }
            }
        }
    }
}

/// The greatest of the lanes.
#[inline(always)]
fn greatest(lanes: [f32; LANES]) -> f32 {
    fold(lanes, |a, b| if b > a { b } else { a })
}

/// Folds lanes by halves.
#[inline(always)]
fn fold<const N: usize>(mut lanes: [f32; N], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] = f(lanes[l], lanes[l + half]);
        }
        half /= 2;
    }
    lanes[0]
}

for_every_isa! {
    /// Writes a query's sums, one of 32 columns in each tile, times a factor over its total, or adds them.
    pub(super) fn divide(out: &mut [f32], sums: &[f32], total: &[f32; NR], factor: f32, add: bool) {
        let factor = factor / fold(*total, |a, b| a + b);
        for (out, sums) in out.chunks_mut(NR).zip(sums.chunks(TILE)) {
            if add {
                out.iter_mut().zip(sums).for_each(|(o, s)| *o += s * factor);
            } else {
                out.iter_mut().zip(sums).for_each(|(o, s)| *o = s * factor);
            }
        }
    }
}
