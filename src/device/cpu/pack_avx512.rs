//! Panels by AVX-512: widened and transposed in registers.

use super::microkernel::NR;
use crate::tensor::DType;
use std::arch::x86_64::*;

/// Sixteen elements as f32, by number `at`; zeros where there is no row.
///
/// # Safety
/// The row has them.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(row: Option<&[u8]>, dtype: DType, at: usize) -> __m512 {
    let Some(row) = row else { return _mm512_setzero_ps() };
    // SAFETY: the caller's promise; the loads are unaligned ones.
    unsafe {
        let first = row.as_ptr().add(at * dtype.size());
        match dtype {
            DType::F32 => _mm512_loadu_ps(first.cast()),
            DType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(first.cast())),
            DType::BF16 => {
                let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(first.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
            }
        }
    }
}

/// Declares a function that transposes 32 lanes block by block, `$step` elements to 16 words that `$words(row, dtype, element)` makes,
/// into `out`; it gives the number of channels done.
macro_rules! pack {
    ($name:ident, $features:literal, $step:literal, $words:expr) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(
            lanes: &[Option<&[u8]>; NR],
            dtype: DType,
            (len, taps): (usize, usize),
            out: &mut [f32],
        ) -> usize {
            // Of each tap.
            let whole = len / $step * $step;
            assert!(lanes.iter().flatten().all(|lane| lane.len() >= whole * taps * dtype.size()));
            for half in [0, 16] {
                let (mut tap, mut word) = (0, 0);
                for at in (0..whole * taps).step_by($step) {
                    // SAFETY: each lane has that many elements.
                    let rows: [__m512; 16] = std::array::from_fn(|j| unsafe { $words(lanes[half + j], dtype, at) });
                    for column in transpose(rows) {
                        let row = &mut out[(tap * len + word) * NR + half..][..16];
                        // SAFETY: 16 floats follow.
                        unsafe { _mm512_storeu_ps(row.as_mut_ptr(), column) };
                        tap += 1;
                        if tap == taps {
                            (tap, word) = (0, word + 1);
                        }
                    }
                }
            }
            whole
        }
    };
}

pack!(pack_words, "avx512f", 16, load);
pack!(pack_pairs, "avx512f,avx512bf16", 32, |row, dtype, c| {
    let pairs = _mm512_cvtne2ps_pbh(load(row, dtype, c + 16), load(row, dtype, c));
    // Both types are 64 bytes of any bits.
    std::mem::transmute::<__m512bh, __m512>(pairs)
});

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
