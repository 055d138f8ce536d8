//! The innermost loop of every multiplication of matrices: 12 rows by a panel of 32 columns, held in registers.

#[cfg(target_arch = "x86_64")]
use super::simd::{Isa, isa};

/// Rows of a tile.
pub(crate) const MR: usize = 12;
/// Columns of a panel.
pub(crate) const NR: usize = 32;
/// Elements of a tile.
pub(crate) const TILE: usize = MR * NR;

/// `acc[r][j] (+)= sum_i rows[r][i] * panel[i][j]` for the first `height` rows.
///
/// Each element is one chain of additions in order of i, so the result does not depend on how a matrix is cut into tiles.
///
/// # Safety
/// `rows[..height]` each point at `k` readable floats, `panel` at `k * NR`, `acc` at a tile.
pub(crate) unsafe fn tile(
    k: usize,
    rows: &[*const f32; MR],
    height: usize,
    panel: *const f32,
    acc: *mut f32,
    add: bool,
) {
    // SAFETY: the caller's promise is handed on; `isa` has found the features.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match isa() {
            Isa::Avx512 => {
                return match height {
                    0..=4 => avx512::<4>(k, rows, height, panel, acc, add),
                    5..=8 => avx512::<8>(k, rows, height, panel, acc, add),
                    _ => avx512::<12>(k, rows, height, panel, acc, add),
                };
            }
            Isa::Avx2 => return avx2(k, rows, height, panel, acc, add),
            Isa::Portable => {}
        }
        portable(k, rows, height, panel, acc, add);
    }
}

/// # Safety
/// See [`tile`]; the processor has AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize>(
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
                s[0] = _mm512_fmadd_ps(a, b0, s[0]);
                s[1] = _mm512_fmadd_ps(a, b1, s[1]);
            }
        }
        for (r, s) in sum.iter().enumerate() {
            _mm512_storeu_ps(acc.add(r * NR), s[0]);
            _mm512_storeu_ps(acc.add(r * NR + 16), s[1]);
        }
    }
}

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

/// # Safety
/// See [`tile`].
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

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(k: usize, height: usize, add: bool) -> (Vec<f32>, Vec<f32>) {
        let a: Vec<f32> = (0..MR * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
        let b: Vec<f32> = (0..k * NR).map(|i| ((i * 53 % 97) as f32 - 48.0) / 64.0).collect();
        let run = |f: unsafe fn(usize, &[*const f32; MR], usize, *const f32, *mut f32, bool)| {
            let mut acc = vec![0.25f32; TILE];
            let rows = std::array::from_fn(|r| a[r * k..].as_ptr());
            // SAFETY: the buffers have the lengths that `tile` asks for.
            unsafe { f(k, &rows, height, b.as_ptr(), acc.as_mut_ptr(), add) };
            acc.truncate(height * NR);
            acc
        };
        let mut want = vec![if add { 0.25f32 } else { 0.0 }; height * NR];
        for r in 0..height {
            for j in 0..NR {
                for i in 0..k {
                    want[r * NR + j] += a[r * k + i] * b[i * NR + j];
                }
            }
        }
        let got = run(tile);
        let plain = run(portable);
        assert!(plain.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-4));
        #[cfg(target_arch = "x86_64")]
        if isa() >= Isa::Avx2 {
            assert!(run(avx2).iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-4));
        }
        (got, want)
    }

    #[test]
    fn every_height() {
        for height in 1..=MR {
            for (k, add) in [(1, false), (3, true), (100, false), (257, true)] {
                let (got, want) = naive(k, height, add);
                assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-4), "{height} rows, k {k}");
            }
        }
    }
}
