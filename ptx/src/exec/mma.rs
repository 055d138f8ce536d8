//! Matrix fragments: `ldmatrix`, `stmatrix`, `mma.sync`.
//!
//! The maps of registers to elements are those of the PTX manual ("Matrix multiply-accumulate operation using mma").

use crate::arith::{bf16_to_f32, canonical, f16_to_f32, f32_to_f16};
use crate::counts::conflicts;
use crate::env::{Env, Trip};
use crate::program::{Elem, Matrix, Mma, R32};
use crate::shared::Touch;
use crate::warp::Warp;

/// Row and column of element `i` of lane `lane` in the A fragment of 16-bit types: `i` counts the halves of the registers.
pub(crate) fn a16(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let row = if i / 2 % 2 == 0 { group } else { group + 8 };
    (row, thread * 2 + i % 2 + if i >= 4 { 8 } else { 0 })
}

/// Row (k) and column (n) in the B fragment of 16-bit types.
pub(crate) fn b16(lane: usize, i: usize) -> (usize, usize) {
    (lane % 4 * 2 + i % 2 + if i >= 2 { 8 } else { 0 }, lane / 4)
}

/// Row and column in the A fragment of 32-bit types: one element a register.
pub(crate) fn a32(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i % 2 == 1 { 8 } else { 0 }, lane % 4 + if i >= 2 { 4 } else { 0 })
}

/// Row (k) and column (n) in the B fragment of 32-bit types.
pub(crate) fn b32(lane: usize, i: usize) -> (usize, usize) {
    (lane % 4 + 4 * i, lane / 4)
}

/// Row and column of element `i` in the accumulators.
pub(crate) fn c32(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i >= 2 { 8 } else { 0 }, lane % 4 * 2 + i % 2)
}

impl Warp {
    /// Each of the eight rows of matrix `m` is given by the address of lane `8 m + row`; lane `l` gets of each matrix row
    /// `l / 4`, elements `l % 4 * 2` and the next, or of the transposed matrix.
    pub fn matrix(&mut self, env: &mut Env, matrix: &Matrix) -> Result<(), Trip> {
        let address = self.addresses(env, matrix.addr);
        let count = matrix.regs.len();
        let sources: Vec<R32> = matrix.regs.iter().map(|r| *self.get32(env, *r)).collect();
        let mut out = [[0u32; 32]; 4];
        for m in 0..count {
            let mut tile = [[0u16; 8]; 8];
            if matrix.store {
                for lane in 0..32 {
                    for i in 0..2 {
                        let (row, col) = if matrix.trans { (lane % 4 * 2 + i, lane / 4) } else { (lane / 4, lane % 4 * 2 + i) };
                        tile[row][col] = (sources[m][lane] >> (16 * i)) as u16;
                    }
                }
            }
            for (row, values) in tile.iter_mut().enumerate() {
                let lane = 8 * m + row;
                let fail = |kind| self.trip(Some(lane as u32), kind);
                let at = env.shared.check(address[lane], 16, 16).map_err(fail)?;
                let touch = if matrix.store { Touch::Write } else { Touch::Read };
                self.touch_shared(env, at, 16, lane, touch).map_err(fail)?;
                if matrix.store {
                    let mut bytes = [0; 16];
                    for (to, value) in bytes.chunks_exact_mut(2).zip(values) {
                        to.copy_from_slice(&value.to_le_bytes());
                    }
                    env.shared.store(at, &bytes);
                } else {
                    let bytes = env.shared.load(at, 16).map_err(fail)?;
                    for (value, from) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                        *value = u16::from_le_bytes([from[0], from[1]]);
                    }
                }
            }
            for (lane, value) in out[m].iter_mut().enumerate() {
                let (g, t) = (lane / 4, lane % 4 * 2);
                let (low, high) = if matrix.trans { (tile[t][g], tile[t + 1][g]) } else { (tile[g][t], tile[g][t + 1]) };
                *value = u32::from(low) | u32::from(high) << 16;
            }
        }
        let banks = if matrix.store { &mut env.counts.shared_stores } else { &mut env.counts.shared_loads };
        conflicts(banks, &address[..8 * count], 16);
        if !matrix.store {
            for (row, d) in out.iter().zip(&matrix.regs) {
                self.put32(*d, row, u32::MAX);
            }
        }
        Ok(())
    }

    /// D = A B + C. The products are exact; they are summed in f32 in order of k, C is added last.
    ///
    /// The hardware's order and inner precision are not specified; a kernel's error bound must hold for any.
    pub fn mma(&mut self, env: &mut Env, mma: &Mma) {
        let k = usize::from(mma.k);
        let mut a = [[0f32; 16]; 16];
        let mut b = [[0f32; 8]; 16];
        let mut d = [[0f32; 8]; 16];
        let value = |bits: u32| match mma.elem {
            Elem::F16 => f16_to_f32(bits),
            Elem::Bf16 => bf16_to_f32(bits),
            Elem::Tf32 => f32::from_bits(bits & 0xffff_e000),
        };
        let halves = mma.elem != Elem::Tf32;
        for (i, reg) in mma.a.iter().enumerate() {
            let row = self.get32(env, *reg);
            for lane in 0..32 {
                if halves {
                    let (r, c) = a16(lane, 2 * i);
                    a[r][c] = value(row[lane] & 0xffff);
                    a[r][c + 1] = value(row[lane] >> 16);
                } else {
                    let (r, c) = a32(lane, i);
                    a[r][c] = value(row[lane]);
                }
            }
        }
        for (i, reg) in mma.b.iter().enumerate() {
            let row = self.get32(env, *reg);
            for lane in 0..32 {
                if halves {
                    let (r, c) = b16(lane, 2 * i);
                    b[r][c] = value(row[lane] & 0xffff);
                    b[r + 1][c] = value(row[lane] >> 16);
                } else {
                    let (r, c) = b32(lane, i);
                    b[r][c] = value(row[lane]);
                }
            }
        }
        for (row, sums) in a.iter().zip(&mut d) {
            for (x, line) in row.iter().zip(&b).take(k) {
                for (sum, y) in sums.iter_mut().zip(line) {
                    *sum += x * y;
                }
            }
        }
        for (i, (to, from)) in mma.d.iter().zip(&mma.c).enumerate() {
            let c = *self.get32(env, *from);
            let out = std::array::from_fn(|lane| {
                if mma.half {
                    let (row, col) = c32(lane, 2 * i);
                    let low = f32_to_f16(d[row][col] + f16_to_f32(c[lane] & 0xffff));
                    low | f32_to_f16(d[row][col + 1] + f16_to_f32(c[lane] >> 16)) << 16
                } else {
                    let (row, col) = c32(lane, i);
                    canonical(d[row][col] + f32::from_bits(c[lane]))
                }
            });
            self.put32(*to, &out, u32::MAX);
        }
    }
}
