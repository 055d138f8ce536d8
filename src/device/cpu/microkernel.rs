//! The innermost loop of every multiplication of matrices: 12 rows by a panel of 32 columns, held in registers.

use super::fp_math::Operands;
#[cfg(target_arch = "x86_64")]
use super::simd::{Isa, isa};

/// Rows of a tile.
pub(crate) const MR: usize = 12;
/// Columns of a panel.
pub(crate) const NR: usize = 32;
/// The bytes of some channels of each row of a panel; none where there is no row.
pub(crate) type Lanes<'a> = [Option<&'a [u8]>; NR];
/// Elements of a tile.
pub(crate) const TILE: usize = MR * NR;

/// `acc[r][j] (+)= sum_i rows[r][i] * panel[i][j]` for the first `height` rows, over `k` words; a pair's product is the sum of both.
///
/// Each element is one chain of additions in order of i, so the result does not depend on how a matrix is cut into tiles.
///
/// # Safety
/// `rows[..height]` each point at `k` readable words of `operands`, `panel` at `k * NR`, `acc` at a tile.
pub(crate) unsafe fn tile(
    operands: Operands,
    k: usize,
    rows: &[*const f32; MR],
    height: usize,
    panel: *const f32,
    acc: *mut f32,
    add: bool,
) {
    // SAFETY: the caller's promise is handed on; `isa` has found the features.
    unsafe {
        if operands == Operands::Pairs {
            #[cfg(target_arch = "x86_64")]
            if isa() == Isa::Avx512Bf16 {
                return match height {
                    0..=4 => avx512_bf16::<4>(k, rows, height, panel, acc, add),
                    5..=8 => avx512_bf16::<8>(k, rows, height, panel, acc, add),
                    _ => avx512_bf16::<12>(k, rows, height, panel, acc, add),
                };
            }
            return portable_pairs(k, rows, height, panel, acc, add);
        }
        #[cfg(target_arch = "x86_64")]
        match isa() {
            Isa::Avx512 | Isa::Avx512Bf16 => {
                return match height {
                    0..=4 => avx512::<4>(k, rows, height, panel, acc, add),
                    5..=8 => avx512::<8>(k, rows, height, panel, acc, add),
                    _ => avx512::<12>(k, rows, height, panel, acc, add),
                };
            }
            Isa::Avx2 => return avx2(k, rows, height, panel, acc, add),
            Isa::Portable => {}
        }
        #[cfg(target_arch = "aarch64")]
        match height {
            0..=4 => neon::<4>(k, rows, height, panel, acc, add),
            5..=8 => neon::<8>(k, rows, height, panel, acc, add),
            _ => neon::<12>(k, rows, height, panel, acc, add),
        }
        #[cfg(not(target_arch = "aarch64"))]
        portable(k, rows, height, panel, acc, add);
    }
}

/// Declares a loop of 512-bit registers that adds `$product(sum, a, b)` to its sums.
#[cfg(target_arch = "x86_64")]
macro_rules! loop_of_512_bits {
    ($name:ident, $features:literal, $product:expr) => {
        /// # Safety
        /// See [`tile`]; the processor has the features.
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize>(
            k: usize,
            rows: &[*const f32; MR],
            height: usize,
            panel: *const f32,
            acc: *mut f32,
            add: bool,
        ) {
            use std::arch::x86_64::*;
            // SAFETY: all pointers are used within the lengths that the caller promises; rows past the height repeat the last one.
            unsafe {
                let rows: [*const f32; R] = std::array::from_fn(|r| rows[r.min(height - 1)]);
                let mut sum = [[_mm512_setzero_ps(); 2]; R];
                if add {
                    for (r, s) in sum.iter_mut().enumerate() {
                        *s = [_mm512_loadu_ps(acc.add(r * NR)), _mm512_loadu_ps(acc.add(r * NR + 16))];
                    }
                }
                for i in 0..k {
                    let b0 = _mm512_loadu_ps(panel.add(i * NR));
                    let b1 = _mm512_loadu_ps(panel.add(i * NR + 16));
                    for (s, row) in sum.iter_mut().zip(&rows) {
                        let a = _mm512_set1_ps(*row.add(i));
                        s[0] = $product(s[0], a, b0);
                        s[1] = $product(s[1], a, b1);
                    }
                }
                for (r, s) in sum.iter().enumerate() {
                    _mm512_storeu_ps(acc.add(r * NR), s[0]);
                    _mm512_storeu_ps(acc.add(r * NR + 16), s[1]);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
loop_of_512_bits!(avx512, "avx512f", |sum, a, b| _mm512_fmadd_ps(a, b, sum));
#[cfg(target_arch = "x86_64")]
loop_of_512_bits!(avx512_bf16, "avx512f,avx512bf16", |sum, a, b| {
    _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b))
});

/// # Safety
/// See [`tile`]; the processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(k: usize, rows: &[*const f32; MR], height: usize, panel: *const f32, acc: *mut f32, add: bool) {
    use std::arch::x86_64::*;
    const R: usize = 6; // 6 x 16 fills the sixteen registers
    // SAFETY: as in `avx512`.
    unsafe {
        for top in (0..height).step_by(R) {
            let rows: [*const f32; R] = std::array::from_fn(|r| rows[(top + r).min(height - 1)]);
            for left in (0..NR).step_by(16) {
                let acc = acc.add(top * NR + left);
                let mut sum = [[_mm256_setzero_ps(); 2]; R];
                if add {
                    for (r, s) in sum.iter_mut().enumerate() {
                        *s = [_mm256_loadu_ps(acc.add(r * NR)), _mm256_loadu_ps(acc.add(r * NR + 8))];
                    }
                }
                for i in 0..k {
                    let b0 = _mm256_loadu_ps(panel.add(i * NR + left));
                    let b1 = _mm256_loadu_ps(panel.add(i * NR + left + 8));
                    for (s, row) in sum.iter_mut().zip(&rows) {
                        let a = _mm256_broadcast_ss(&*row.add(i));
                        s[0] = _mm256_fmadd_ps(a, b0, s[0]);
                        s[1] = _mm256_fmadd_ps(a, b1, s[1]);
                    }
                }
                for (r, s) in sum.iter().enumerate() {
                    _mm256_storeu_ps(acc.add(r * NR), s[0]);
                    _mm256_storeu_ps(acc.add(r * NR + 8), s[1]);
                }
            }
        }
    }
}

/// Eight columns after eight: with twelve rows their sums fill 24 of the 32 registers.
///
/// # Safety
/// See [`tile`].
#[cfg(target_arch = "aarch64")]
unsafe fn neon<const R: usize>(
    k: usize,
    rows: &[*const f32; MR],
    height: usize,
    panel: *const f32,
    acc: *mut f32,
    add: bool,
) {
    use std::arch::aarch64::*;
    // SAFETY: as in `avx512`; every aarch64 that the standard library runs on has NEON.
    unsafe {
        let rows: [*const f32; R] = std::array::from_fn(|r| rows[r.min(height - 1)]);
        for left in (0..NR).step_by(8) {
            let (panel, acc) = (panel.add(left), acc.add(left));
            let mut sum = [[vdupq_n_f32(0.0); 2]; R];
            if add {
                for (r, s) in sum.iter_mut().enumerate() {
                    *s = [vld1q_f32(acc.add(r * NR)), vld1q_f32(acc.add(r * NR + 4))];
                }
            }
            for i in 0..k {
                let (b0, b1) = (vld1q_f32(panel.add(i * NR)), vld1q_f32(panel.add(i * NR + 4)));
                for (s, row) in sum.iter_mut().zip(&rows) {
                    let a = *row.add(i);
                    *s = [vfmaq_n_f32(s[0], b0, a), vfmaq_n_f32(s[1], b1, a)];
                }
            }
            for (r, s) in sum.iter().enumerate() {
                vst1q_f32(acc.add(r * NR), s[0]);
                vst1q_f32(acc.add(r * NR + 4), s[1]);
            }
        }
    }
}

/// # Safety
/// See [`tile`].
#[cfg(any(test, not(target_arch = "aarch64")))]
unsafe fn portable(k: usize, rows: &[*const f32; MR], height: usize, panel: *const f32, acc: *mut f32, add: bool) {
    const R: usize = 4;
    const C: usize = 8;
    // SAFETY: as in `avx512`.
    unsafe {
        for top in (0..height).step_by(R) {
            let rows: [*const f32; R] = std::array::from_fn(|r| rows[(top + r).min(height - 1)]);
            for left in (0..NR).step_by(C) {
                let mut sum = [[0f32; C]; R];
                if add {
                    for (r, s) in sum.iter_mut().enumerate() {
                        s.copy_from_slice(std::slice::from_raw_parts(acc.add((top + r) * NR + left), C));
                    }
                }
                for i in 0..k {
                    let b = &*panel.add(i * NR + left).cast::<[f32; C]>();
                    for (s, row) in sum.iter_mut().zip(&rows) {
                        let a = *row.add(i);
                        for (s, b) in s.iter_mut().zip(b) {
                            *s += a * b;
                        }
                    }
                }
                for (r, s) in sum.iter().enumerate() {
                    acc.add((top + r) * NR + left).copy_from_nonoverlapping(s.as_ptr(), C);
                }
            }
        }
    }
}

/// Plain loops over pairs, for processors without an instruction for them.
///
/// # Safety
/// See [`tile`].
unsafe fn portable_pairs(
    k: usize,
    rows: &[*const f32; MR],
    height: usize,
    panel: *const f32,
    acc: *mut f32,
    add: bool,
) {
    let halves = |word: f32| {
        let bits = word.to_bits();
        (f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000))
    };
    // SAFETY: as in `avx512`.
    unsafe {
        for (r, row) in rows[..height].iter().enumerate() {
            for j in 0..NR {
                let sum = &mut *acc.add(r * NR + j);
                let mut total = if add { *sum } else { 0.0 };
                for i in 0..k {
                    let ((a0, a1), (b0, b1)) = (halves(*row.add(i)), halves(*panel.add(i * NR + j)));
                    total = (total + a1 * b1) + a0 * b0;
                }
                *sum = total;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::fp_math::pair_taps;

    type Loop = unsafe fn(usize, &[*const f32; MR], usize, *const f32, *mut f32, bool);

    /// Runs a loop on rows of `k` words and a panel: the sums of the first `height` rows.
    fn run(f: Loop, [a, b]: [&[f32]; 2], k: usize, height: usize, add: bool) -> Vec<f32> {
        let mut acc = vec![0.25f32; TILE];
        let rows = std::array::from_fn(|r| a[r * k..].as_ptr());
        // SAFETY: the buffers have the lengths that `tile` asks for.
        unsafe { f(k, &rows, height, b.as_ptr(), acc.as_mut_ptr(), add) };
        acc.truncate(height * NR);
        acc
    }

    /// The sums in f64 of elements that bf16 holds, `a` `[MR, k]` and `b` `[k, NR]`.
    fn naive([a, b]: [&[f32]; 2], k: usize, height: usize, add: bool) -> Vec<f64> {
        let sum = |r: usize, j: usize| -> f64 {
            (0..k).map(|i| f64::from(a[r * k + i]) * f64::from(b[i * NR + j])).sum::<f64>()
                + if add { 0.25 } else { 0.0 }
        };
        (0..height * NR).map(|at| sum(at / NR, at % NR)).collect()
    }

    fn close(got: &[f32], want: &[f64]) -> bool {
        got.len() == want.len() && got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-4)
    }

    #[test]
    fn every_height() {
        for height in 1..=MR {
            for (k, add) in [(1, false), (3, true), (100, false), (257, true)] {
                let a: Vec<f32> = (0..MR * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
                let b: Vec<f32> = (0..k * NR).map(|i| ((i * 53 % 97) as f32 - 48.0) / 64.0).collect();
                let want = naive([&a, &b], k, height, add);
                let check = |f: Loop| assert!(close(&run(f, [&a, &b], k, height, add), &want), "{height} rows, k {k}");
                // SAFETY: `run` keeps the promise, here and below.
                check(|k, rows, height, panel, acc, add| unsafe {
                    tile(Operands::F32, k, rows, height, panel, acc, add)
                });
                check(portable);
                #[cfg(target_arch = "x86_64")]
                if isa() >= Isa::Avx2 {
                    check(avx2);
                }
                // The same numbers in pairs.
                let words = Operands::Pairs.words(k);
                let mut pairs = [vec![0.0; MR * words], vec![0.0; words * NR]];
                for r in 0..MR {
                    Operands::Pairs.pack_row(&a[r * k..][..k], &mut pairs[0][r * words..][..words]);
                }
                pair_taps(&b, NR, bytemuck::cast_slice_mut(&mut pairs[1]));
                let check = |f: Loop| {
                    let got = run(f, [&pairs[0], &pairs[1]], words, height, add);
                    assert!(close(&got, &want), "{height} rows, k {k} in pairs");
                };
                // SAFETY: as above.
                check(|k, rows, height, panel, acc, add| unsafe {
                    tile(Operands::Pairs, k, rows, height, panel, acc, add)
                });
                check(portable_pairs);
            }
        }
    }
}
