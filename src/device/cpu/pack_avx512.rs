//! Panels by AVX-512: widened and transposed in registers.

use super::microkernel::{Lanes, NR};
use crate::tensor::DType;
use std::arch::x86_64::*;

/// The places of sixteen lanes, and for each a mask of all bits, or of none where the lane has no row and any other's place.
type Places = ([*const u8; 16], [u16; 16]);

fn places(lanes: &[Option<&[u8]>]) -> Places {
    let any = lanes.iter().flatten().next().map_or(std::ptr::null(), |lane| lane.as_ptr());
    let place = |j: usize| lanes[j].map_or((any, 0), |lane| (lane.as_ptr(), u16::MAX));
    (std::array::from_fn(|j| place(j).0), std::array::from_fn(|j| place(j).1))
}

/// Sixteen elements at `from`, as f32; zeros where the mask has no bit.
///
/// # Safety
/// They are there; `from` need not be aligned.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_f32(from: *const u8, mask: u16) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_maskz_loadu_ps(mask, from.cast()) }
}

/// As [`load_f32`], of f16.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_f16(from: *const u8, mask: u16) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_maskz_cvtph_ps(mask, unsafe { _mm256_loadu_si256(from.cast()) })
}

/// As [`load_f32`], of bf16.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_bf16(from: *const u8, mask: u16) -> __m512 {
    // SAFETY: the caller's promise.
    let halves = _mm512_maskz_cvtepu16_epi32(mask, unsafe { _mm256_loadu_si256(from.cast()) });
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
}

/// Declares a function that transposes 32 lanes block by block, `$step` elements to 16 words that `$words(load, row, mask, bytes)` makes,
/// into `out`, and fetches the lanes `next` meanwhile; it gives the number of channels done.
macro_rules! pack {
    ($name:ident, $features:literal, $step:literal, $words:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(
            lanes: &Lanes<'_>,
            dtype: DType,
            (len, taps): (usize, usize),
            out: &mut [f32],
            next: &Lanes<'_>,
        ) -> usize {
            // Of each tap.
            let (whole, size) = (len / $step * $step, dtype.size());
            assert!(lanes.iter().flatten().all(|lane| lane.len() >= whole * taps * size));
            // The words of the last tap, and of no other, end behind those that are whole.
            assert!(taps > 0 && out.len() >= ((taps - 1) * len + whole * 16 / $step) * NR);
            for half in [0, 16] {
                let (first, ahead) = (&lanes[half..half + 16], if half == 0 { &lanes[16..] } else { &next[..16] });
                let (from, masks) = places(first);
                if from[0].is_null() {
                    // No lane has a row.
                    for tap in 0..taps {
                        for row in out[tap * len * NR..].chunks_mut(NR).take(whole * 16 / $step) {
                            row[half..half + 16].fill(0.0);
                        }
                    }
                    continue;
                }
                macro_rules! blocks {
                    ($load:ident) => {{
                        let (mut tap, mut word) = (0, 0);
                        for at in (0..whole * taps).step_by($step) {
                            fetch(ahead, at * size);
                            // SAFETY: each lane has that many elements, and `out` a place for each word, by the checks above.
                            unsafe {
                                let row = |j: usize| $words!($load, from[j].add(at * size), masks[j], size);
                                for column in transpose(std::array::from_fn(row)) {
                                    _mm512_storeu_ps(out.as_mut_ptr().add((tap * len + word) * NR + half), column);
                                    tap += 1;
                                    if tap == taps {
                                        (tap, word) = (0, word + 1);
                                    }
                                }
                            }
                        }
                    }};
                }
                match dtype {
                    DType::F32 => blocks!(load_f32),
                    DType::F16 => blocks!(load_f16),
                    DType::BF16 => blocks!(load_bf16),
                }
            }
            whole
        }
    };
}

macro_rules! word {
    ($load:ident, $from:expr, $mask:expr, $size:expr) => {
        $load($from, $mask)
    };
}

macro_rules! pair {
    ($load:ident, $from:expr, $mask:expr, $size:expr) => {{
        let pairs = _mm512_cvtne2ps_pbh($load($from.add(16 * $size), $mask), $load($from, $mask));
        // Both types are 64 bytes of any bits.
        std::mem::transmute::<__m512bh, __m512>(pairs)
    }};
}

pack!(pack_words, "avx512f", 16, word);
pack!(pack_pairs, "avx512f,avx512bf16", 32, pair);

/// Fetches the lines of each of `lanes` that begin or lie at byte `at` into the second-level cache, once a line. A processor foresees how
/// a row goes on, not where the next begins, and the panels' rows are short.
#[inline]
fn fetch(lanes: &[Option<&[u8]>], at: usize) {
    const LINE: usize = 64;
    if at.is_multiple_of(LINE) {
        for lane in lanes.iter().flatten() {
            // SAFETY: a prefetch of any address does nothing else.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(lane.as_ptr().wrapping_add(at).cast()) };
        }
    }
}

/// The transpose of a 16 by 16 block.
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(r: [__m512; 16]) -> [__m512; 16] {
    let pairs: [__m512; 16] = std::array::from_fn(|i| {
        let (a, b) = (r[i / 2 * 2], r[i / 2 * 2 + 1]);
        if i % 2 == 0 { _mm512_unpacklo_ps(a, b) } else { _mm512_unpackhi_ps(a, b) }
    });
    // Row q of quad k holds columns q, q + 4, q + 8, q + 12 of rows 4k to 4k + 3.
    let quads: [__m512; 16] = std::array::from_fn(|i| {
        let (k, q) = (i / 4 * 4, i % 4);
        let (a, b) = (_mm512_castps_pd(pairs[k + q / 2]), _mm512_castps_pd(pairs[k + q / 2 + 2]));
        _mm512_castpd_ps(if q % 2 == 0 { _mm512_unpacklo_pd(a, b) } else { _mm512_unpackhi_pd(a, b) })
    });
    let eights: [__m512; 16] = std::array::from_fn(|i| {
        let (base, q) = (i / 8 * 8, i % 4);
        let (a, b) = (quads[base + q], quads[base + q + 4]);
        if i % 8 < 4 { _mm512_shuffle_f32x4::<0x88>(a, b) } else { _mm512_shuffle_f32x4::<0xdd>(a, b) }
    });
    std::array::from_fn(|i| {
        let (a, b) = (eights[i % 8], eights[i % 8 + 8]);
        if i < 8 { _mm512_shuffle_f32x4::<0x88>(a, b) } else { _mm512_shuffle_f32x4::<0xdd>(a, b) }
    })
}
