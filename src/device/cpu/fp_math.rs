//! The arithmetic of products: the type to which their operands are rounded, and the form in which a processor takes them.

use super::simd::{Isa, for_every_isa, isa};

/// The type of the operands of fully connected layers, convolutions and attention's two products. Sums are f32 with both, and so is
/// everything between the products: residuals, norms, softmax, activation functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FpMath {
    /// Operands as they are, weights widened.
    #[default]
    F32,
    /// Operands rounded to bf16, to nearest and ties to even. Fast where [`super::Cpu::bf16_products`] says so.
    Bf16,
}

/// The form of a product's operands: words of 4 bytes, in order of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operands {
    /// An f32.
    F32,
    /// An f32 that bf16 holds, for processors whose f32 products are the faster ones.
    Rounded,
    /// Two bf16 that follow one another, the first in the lower half: the operands of `vdpbf16ps`.
    Pairs,
}

impl FpMath {
    /// The form of the operands on this processor.
    pub(crate) fn operands(self) -> Operands {
        match self {
            Self::F32 => Operands::F32,
            Self::Bf16 if isa() == Isa::Avx512Bf16 => Operands::Pairs,
            Self::Bf16 => Operands::Rounded,
        }
    }
}

impl Operands {
    /// Words of `len` elements; of an odd number of them the last word's upper half is 0.
    pub(crate) fn words(self, len: usize) -> usize {
        if self == Self::Pairs { len.div_ceil(2) } else { len }
    }

    /// Packs a row into `self.words(row.len())` words.
    pub(crate) fn pack_row(self, row: &[f32], out: &mut [f32]) {
        match self {
            Self::F32 => out.copy_from_slice(row),
            Self::Rounded => round_row(row, out),
            Self::Pairs => pair_row(row, bytemuck::cast_slice_mut(out)),
        }
    }
}

/// The bits of `x` rounded to bf16, in the upper half; the lower half is undefined. A NaN stays one.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let even = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    if x.is_nan() { bits | 0x40_0000 } else { even }
}

#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    rounded(low) >> 16 | rounded(high) & 0xffff_0000
}

for_every_isa! {
    /// Rounds each element to bf16.
    pub(crate) fn round_row(row: &[f32], out: &mut [f32]) {
        for (x, o) in row.iter().zip(out) {
            *o = f32::from_bits(rounded(*x) & 0xffff_0000);
        }
    }
}

for_every_isa! {
    /// Rounds in place.
    pub(crate) fn round_in_place(row: &mut [f32]) {
        for x in row {
            *x = f32::from_bits(rounded(*x) & 0xffff_0000);
        }
    }
}

for_every_isa! {
    /// Makes pairs of an element of one row and the one in its place in the other.
    pub(crate) fn pair_rows(low: &[f32], high: &[f32], out: &mut [u32]) {
        for ((l, h), o) in low.iter().zip(high).zip(out) {
            *o = pair(*l, *h);
        }
    }
}

for_every_isa! {
    /// Makes pairs of the elements of rows `[count, taps]` in order of their first index: `out[p * taps + t]` has elements 2p and
    /// 2p + 1 of tap t.
    pub(crate) fn pair_taps(row: &[f32], taps: usize, out: &mut [u32]) {
        let mut rows = row.chunks_exact(2 * taps);
        let mut out = out.chunks_exact_mut(taps);
        for (two, out) in rows.by_ref().zip(out.by_ref()) {
            let (low, high) = two.split_at(taps);
            for ((l, h), o) in low.iter().zip(high).zip(out) {
                *o = pair(*l, *h);
            }
        }
        for (l, o) in rows.remainder().iter().zip(out.next().into_iter().flatten()) {
            *o = pair(*l, 0.0);
        }
    }
}

/// Makes pairs of the elements of a row, with 0 after the last of an odd number.
pub(crate) fn pair_row(row: &[f32], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512Bf16 {
        // SAFETY: `isa` has found the features.
        return unsafe { pair_row_avx512(row, out) };
    }
    pair_taps(row, 1, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pair_row_avx512(row: &[f32], out: &mut [u32]) {
    use std::arch::x86_64::*;
    let (chunks, rest) = row.as_chunks::<32>();
    let (pairs, last) = out.split_at_mut(chunks.len() * 16);
    for (from, to) in chunks.iter().zip(pairs.as_chunks_mut::<16>().0) {
        // SAFETY: 32 floats and 16 pairs; both types are 64 bytes of any bits.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(16)));
            let pairs: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
        }
    }
    pair_taps(rest, 1, last);
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    /// Every bf16, what lies at, just below and just above the middle between two, and NaNs with any payload.
    #[test]
    fn rounding() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                let mut got = [0.0];
                round_row(&[x], &mut got);
                let want = bf16::from_f32(x);
                assert!(got[0].to_bits() == u32::from(want.to_bits()) << 16 || got[0].is_nan() && x.is_nan(), "{x:e}");
            }
        }
    }

    #[test]
    fn pairs_of_rows() {
        for len in [1usize, 2, 31, 32, 33, 63, 64, 65, 100] {
            let row: Vec<f32> = (0..len).map(|i| (i as f32 - 7.3) / 3.0).collect();
            let at = |i: usize| row.get(i).map_or(0, |x| u32::from(bf16::from_f32(*x).to_bits()));
            let mut got = vec![0; len.div_ceil(2)];
            pair_row(&row, &mut got);
            assert!(got.iter().enumerate().all(|(i, w)| *w == at(2 * i + 1) << 16 | at(2 * i)), "{len}");
        }
        let mut got = [0; 6];
        pair_taps(&[1., 2., 3., 4., 5., 6., 7., 8., 9.], 3, &mut got);
        let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
        let want = [(1., 4.), (2., 5.), (3., 6.), (7., 0.), (8., 0.), (9., 0.)];
        assert_eq!(got, want.map(|(low, high)| bits(high) << 16 | bits(low)));
    }
}
