//! Matrix fragments: `ldmatrix`, `stmatrix`, `mma.sync`.
//!
//! The maps of registers to elements are those of the PTX manual ("Matrix multiply-accumulate operation using mma").

use crate::arith::{bf16_to_f32, canonical, f16_to_f32, f32_to_f16};
use crate::counts::conflicts;
use crate::env::{Env, RawFault};
use crate::program::{ElementType, Lanes32, MatrixAccess, Mma};
use crate::shared::AccessKind;
use crate::warp::Warp;

// In all of them a lane has a group `g = lane / 4` and a place in it, `t = lane % 4`.

/// Rows and columns, for g = t = 0, of the elements of the A fragment of 16-bit types: two neighbours a register. A lane's
/// are `g` rows down and `2 t` columns on.
const A16: [(usize, usize); 4] = [(0, 0), (8, 0), (0, 8), (8, 8)];
/// Rows (k) of the elements of the B fragment of 16-bit types: two below each other a register. A lane's are `2 t` rows
/// down, in column (n) `g`.
const B16: [usize; 2] = [0, 8];
/// Rows and columns of the elements of the A fragment of 32-bit types, one a register: `g` rows down, `t` columns on.
const A32: [(usize, usize); 4] = [(0, 0), (8, 0), (0, 4), (8, 4)];
/// Rows (k) of the elements of the B fragment of 32-bit types: `t` rows down, in column (n) `g`.
const B32: [usize; 2] = [0, 4];
/// Rows and columns of the accumulators: `g` rows down, `2 t` columns on.
const C32: [(usize, usize); 4] = [(0, 0), (0, 1), (8, 0), (8, 1)];

impl Warp {
    /// Each of the eight rows of matrix `m` is given by the address of lane `8 m + row`; lane `l` gets of each matrix row
    /// `l / 4`, elements `l % 4 * 2` and the next, or of the transposed matrix.
    pub fn matrix(&mut self, env: &mut Env, matrix: &MatrixAccess) -> Result<(), RawFault> {
        let address = self.addresses(env, matrix.addr);
        let count = matrix.regs.len();
        let sources: Vec<Lanes32> = matrix.regs.iter().map(|r| *self.get32(env, *r)).collect();
        let mut out = [[0u32; 32]; 4];
        for m in 0..count {
            let mut tile = [[0u16; 8]; 8];
            if matrix.store {
                for (lane, word) in sources[m].iter().enumerate() {
                    for i in 0..2 {
                        let (row, col) =
                            if matrix.trans { (lane % 4 * 2 + i, lane / 4) } else { (lane / 4, lane % 4 * 2 + i) };
                        tile[row][col] = (word >> (16 * i)) as u16;
                    }
                }
            }
            for (row, values) in tile.iter_mut().enumerate() {
                let lane = 8 * m + row;
                let fail = |kind| self.fault(Some(lane as u32), kind);
                let at = env.shared.check(address[lane], 16, 16).map_err(fail)?;
                let kind = if matrix.store { AccessKind::Write } else { AccessKind::WarpRead };
                self.record_shared(env, at, 16, lane, kind).map_err(fail)?;
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
                let (low, high) =
                    if matrix.trans { (tile[t][g], tile[t + 1][g]) } else { (tile[g][t], tile[g][t + 1]) };
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
        let mut a = [[0f32; 16]; 16];
        let mut b = [[0f32; 8]; 16];
        for (i, reg) in mma.a.iter().enumerate() {
            let (low, high) = values(mma.elem, self.get32(env, *reg));
            if mma.elem == ElementType::Tf32 {
                let (r, c) = A32[i];
                (0..32).for_each(|lane| a[r + lane / 4][c + lane % 4] = low[lane]);
            } else {
                let (r, c) = A16[i];
                for lane in 0..32 {
                    let c = c + lane % 4 * 2;
                    a[r + lane / 4][c..c + 2].copy_from_slice(&[low[lane], high[lane]]);
                }
            }
        }
        for (i, reg) in mma.b.iter().enumerate() {
            let (low, high) = values(mma.elem, self.get32(env, *reg));
            if mma.elem == ElementType::Tf32 {
                (0..32).for_each(|lane| b[B32[i] + lane % 4][lane / 4] = low[lane]);
            } else {
                for lane in 0..32 {
                    let k = B16[i] + lane % 4 * 2;
                    (b[k][lane / 4], b[k + 1][lane / 4]) = (low[lane], high[lane]);
                }
            }
        }
        let d = product(&a, &b, mma.k.into());
        for (i, (to, from)) in mma.d.iter().zip(&mma.c).enumerate() {
            let c = *self.get32(env, *from);
            let out = std::array::from_fn(|lane| {
                let at = |(row, col): (usize, usize)| d[row + lane / 4][col + lane % 4 * 2];
                if mma.half {
                    let low = f32_to_f16(at(C32[2 * i]) + f16_to_f32(c[lane] & 0xffff));
                    low | f32_to_f16(at(C32[2 * i + 1]) + f16_to_f32(c[lane] >> 16)) << 16
                } else {
                    canonical(at(C32[i]) + f32::from_bits(c[lane]))
                }
            });
            self.put32(*to, &out, u32::MAX);
        }
    }
}

/// The elements of a register: the lower halves and the upper ones, or the whole.
fn values(elem: ElementType, row: &Lanes32) -> ([f32; 32], [f32; 32]) {
    match elem {
        ElementType::F16 => (row.map(|v| f16_to_f32(v & 0xffff)), row.map(|v| f16_to_f32(v >> 16))),
        ElementType::Bf16 => (row.map(|v| bf16_to_f32(v & 0xffff)), row.map(|v| bf16_to_f32(v >> 16))),
        ElementType::Tf32 => (row.map(|v| f32::from_bits(v & 0xffff_e000)), [0.0; 32]),
    }
}

/// A B over the first `k` columns and rows: four rows at a time, so that their sums stay in registers.
fn product(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], k: usize) -> [[f32; 8]; 16] {
    let mut d = [[0f32; 8]; 16];
    for (rows, out) in a.chunks_exact(4).zip(d.chunks_exact_mut(4)) {
        let mut sums = [[0f32; 8]; 4];
        for (i, line) in b.iter().enumerate().take(k) {
            for (sum, row) in sums.iter_mut().zip(rows) {
                for (s, y) in sum.iter_mut().zip(line) {
                    *s += row[i] * y;
                }
            }
        }
        out.copy_from_slice(&sums);
    }
    d
}
