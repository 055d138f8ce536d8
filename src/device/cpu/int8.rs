//! Products of int8: rows and panels rounded to 8 bits, the innermost loop that multiplies them.
//!
//! A row of activations has one scale, and its elements lie between -127 and 127 times that; a row of weights (an output channel)
//! likewise. Products are summed in integers, exactly, so the only errors are those of rounding.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes. So activations are stored with 128 added, and each sum begins with what that adds too
//! much: -128 times the sum of the weights.

use super::microkernel::{MR, NR};
use super::simd::for_every_isa;
#[cfg(target_arch = "x86_64")]
use super::simd::int8_products;

/// The largest magnitude of an element.
pub(crate) const MOST: f32 = 127.0;
/// 1.5 * 2^23: the lowest byte of a sum with it is the other summand, rounded to nearest and ties to even.
const ROUND: f32 = 12_582_912.0;
/// Magnitudes below are zero: their inverse times [`MOST`] would be infinite.
const LEAST: f32 = 1e-35;

/// Words of 4 bytes that hold `len` elements.
pub(crate) fn words(len: usize) -> usize {
    len.div_ceil(4)
}

for_every_isa! {
    /// The greatest magnitude of `values` and `most`; NaN where one is not finite.
    pub(crate) fn magnitude(values: &[f32], most: f32) -> f32 {
        // Without their signs, floats are ordered as integers, NaN above infinity.
        let bits = values.iter().fold(most.to_bits(), |most, v| most.max(v.to_bits() & 0x7fff_ffff));
        if bits < f32::INFINITY.to_bits() { f32::from_bits(bits) } else { f32::NAN }
    }
}

/// The scale of elements up to `magnitude`, and its inverse. That of magnitudes that are not finite is NaN, so that all results are.
pub(crate) fn scale(magnitude: f32) -> (f32, f32) {
    if magnitude < LEAST { (0.0, 0.0) } else { (magnitude / MOST, MOST / magnitude) }
}

for_every_isa! {
    /// Rounds `values * inverse` to bytes and flips the bits of `flip` in them: 0x80 adds 128.
    pub(crate) fn quantize(values: &[f32], inverse: f32, flip: u8, out: &mut [u8]) {
        for (v, o) in values.iter().zip(out) {
            *o = (v * inverse + ROUND).to_bits() as u8 ^ flip;
        }
    }
}

/// A row of a panel under one tap, as [`tile_int8`] reads it: the words with which the sums of its columns begin, then the words of the
/// weights, 32 columns each.
pub(crate) struct TapPanel {
    pub(crate) start: *const i32,
    pub(crate) words: *const i32,
}

/// `acc[r][j] (+)= scale of row r * scale of column j * sum_i row r[i] * panel[i][j]` for the first `height` rows.
///
/// A row is a word with its scale, then `k` words of unsigned bytes.
///
/// # Safety
/// `rows[..height]` each point at 1 + `k` words, `panel.start` at 32 words, `panel.words` at 32 * `k`, `acc` at a tile; `height` is at
/// least 1.
pub(crate) unsafe fn tile_int8(
    k: usize,
    rows: &[*const f32; MR],
    height: usize,
    panel: &TapPanel,
    scales: &[f32; NR],
    acc: *mut f32,
    add: bool,
) {
    // SAFETY: the caller's promise is handed on; `int8_products` has found the features.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if int8_products() {
            return match height {
                0..=4 => vnni::<4>(k, rows, height, panel, scales, acc, add),
                5..=8 => vnni::<8>(k, rows, height, panel, scales, acc, add),
                _ => vnni::<12>(k, rows, height, panel, scales, acc, add),
            };
        }
        for (r, row) in rows[..height].iter().enumerate() {
            let acc = &mut *acc.add(r * NR).cast::<[f32; NR]>();
            let bytes = std::slice::from_raw_parts(row.add(1).cast::<[u8; 4]>(), k);
            let words = std::slice::from_raw_parts(panel.words.cast::<[i8; 4 * NR]>(), k);
            any_row(bytes, words, &*panel.start.cast(), **row, scales, acc, add);
        }
    }
}

for_every_isa! {
    /// One row of [`tile_int8`], for processors without the instruction.
    fn any_row(
        row: &[[u8; 4]],
        panel: &[[i8; 4 * NR]],
        start: &[i32; NR],
        scale: f32,
        scales: &[f32; NR],
        acc: &mut [f32; NR],
        add: bool,
    ) {
        let mut sums = *start;
        for (a, b) in row.iter().zip(panel) {
            for (sum, b) in sums.iter_mut().zip(b.as_chunks::<4>().0) {
                for (a, b) in a.iter().zip(b) {
                    *sum += i32::from(*a) * i32::from(*b);
                }
            }
        }
        for ((acc, sum), column) in acc.iter_mut().zip(sums).zip(scales) {
            *acc = sum as f32 * (scale * column) + if add { *acc } else { 0.0 };
        }
    }
}

/// # Safety
/// See [`tile_int8`]; the processor has the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn vnni<const R: usize>(
    k: usize,
    rows: &[*const f32; MR],
    height: usize,
    panel: &TapPanel,
    scales: &[f32; NR],
    acc: *mut f32,
    add: bool,
) {
    use std::arch::x86_64::*;
    // SAFETY: all pointers are used within the lengths that the caller promises; rows past the height repeat the last one.
    unsafe {
        let rows: [*const f32; R] = std::array::from_fn(|r| rows[r.min(height - 1)]);
        let words: [*const i32; R] = rows.map(|row| row.add(1).cast());
        let start = [_mm512_loadu_si512(panel.start.cast()), _mm512_loadu_si512(panel.start.add(16).cast())];
        let mut sums = [start; R];
        for i in 0..k {
            let b0 = _mm512_loadu_si512(panel.words.add(i * NR).cast());
            let b1 = _mm512_loadu_si512(panel.words.add(i * NR + 16).cast());
            for (s, row) in sums.iter_mut().zip(&words) {
                let a = _mm512_set1_epi32(row.add(i).read_unaligned());
                s[0] = _mm512_dpbusd_epi32(s[0], a, b0);
                s[1] = _mm512_dpbusd_epi32(s[1], a, b1);
            }
        }
        let columns = [_mm512_loadu_ps(scales.as_ptr()), _mm512_loadu_ps(scales.as_ptr().add(16))];
        for (r, (s, row)) in sums.iter().zip(&rows).enumerate() {
            let scale = _mm512_set1_ps(**row);
            for half in 0..2 {
                let acc = acc.add(r * NR + half * 16);
                let before = if add { _mm512_loadu_ps(acc) } else { _mm512_setzero_ps() };
                let factor = _mm512_mul_ps(scale, columns[half]);
                _mm512_storeu_ps(acc, _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[half]), factor, before));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::microkernel::TILE;

    #[test]
    fn rounding() {
        let values: Vec<f32> = (-1270..=1270).map(|i| i as f32 * 0.05).collect();
        let mut out = vec![0; values.len()];
        quantize(&values, 2.0, 0, &mut out);
        for (v, o) in values.iter().zip(&out) {
            assert_eq!(f32::from(*o as i8), (v * 2.0).round_ties_even(), "{v}");
        }
        quantize(&[-63.5, 0.0, 63.5], 2.0, 0x80, &mut out[..3]);
        assert_eq!(out[..3], [1, 128, 255]);
    }

    #[test]
    fn scales() {
        assert_eq!(magnitude(&[1.0, -3.0, 2.0], 0.5), 3.0);
        assert_eq!(magnitude(&[], 0.5), 0.5);
        assert_eq!(scale(254.0), (2.0, 0.5));
        assert_eq!((scale(0.0), scale(1e-40)), ((0.0, 0.0), (0.0, 0.0)));
        assert!(scale(2e-35).1.is_finite());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(scale(magnitude(&[1.0, bad, 2.0], 0.0)).0.is_nan());
            assert!(scale(magnitude(&[1.0], bad.abs())).0.is_nan());
        }
    }

    /// Every height, with extreme bytes among the others: sums are those of i64.
    #[test]
    fn exact_sums() {
        let scales: [f32; NR] = std::array::from_fn(|j| 0.5 + j as f32);
        for height in 1..=MR {
            for (k, add) in [(1usize, false), (3, true), (80, false)] {
                let byte = |i: usize| if i.is_multiple_of(5) { 255 } else { (i * 37 % 256) as u8 };
                let weight = |i: usize| if i.is_multiple_of(7) { -127 } else { (i * 53 % 255) as i32 - 127 };
                let rows: Vec<Vec<f32>> = (0..height)
                    .map(|r| {
                        let word = |i| f32::from_bits(u32::from_le_bytes(std::array::from_fn(|b| byte(r + 4 * i + b))));
                        [0.25 * r as f32].into_iter().chain((0..k).map(word)).collect()
                    })
                    .collect();
                let start: [i32; NR] = std::array::from_fn(|j| -1000 * j as i32);
                let panel: Vec<i32> = (0..k * NR)
                    .map(|at| i32::from_le_bytes(std::array::from_fn(|b| weight(4 * at + b) as i8 as u8)))
                    .collect();
                let mut acc = vec![0.75f32; TILE];
                let pointers = std::array::from_fn(|r| rows[r.min(height - 1)].as_ptr());
                let tap = TapPanel { start: start.as_ptr(), words: panel.as_ptr() };
                // SAFETY: the lengths are those that are asked for.
                unsafe { tile_int8(k, &pointers, height, &tap, &scales, acc.as_mut_ptr(), add) };
                for (at, got) in acc[..height * NR].iter().enumerate() {
                    let (r, j) = (at / NR, at % NR);
                    let sum: i64 = (0..4 * k)
                        .map(|i| i64::from(byte(r + i)) * i64::from(weight(4 * ((i / 4) * NR + j) + i % 4)))
                        .sum();
                    let sum = (sum - 1000 * j as i64) as f64;
                    let want = sum * f64::from(0.25 * r as f32 * scales[j]) + if add { 0.75 } else { 0.0 };
                    assert!((f64::from(*got) - want).abs() <= 3e-7 * want.abs(), "{height} {k} {at}: {got} {want}");
                }
                assert!(acc[height.next_multiple_of(4) * NR..].iter().all(|v| *v == 0.75));
            }
        }
    }
}
