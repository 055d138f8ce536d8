//! Matrix fragments: `ldmatrix`, `stmatrix`, `mma.sync`.
//!
//! The maps of registers to elements are those of the PTX manual ("Matrix multiply-accumulate operation using mma").

use super::env::{Env, RawFault};
use super::warp::Warp;
use crate::arith::{bf16_to_f32, canonical, f16_to_f32, f32_to_f16, multiply};
use crate::counts::conflicts;
use crate::instruction::{ElementType, MatrixAccess, Mma};
use crate::lanes::Lanes32;
use crate::launch::Arithmetic;
use crate::memory::AccessKind;

// In all fragments a lane belongs to group `g = lane / 4` and is number `t = lane % 4` in it, as the manual names them
// (groupID, threadID_in_group).

/// A fragment of 16-bit types: row and column of each register's first element for g = t = 0, the second is to the right. A
/// lane's elements are `g` rows down and `2 t` columns to the right.
pub(super) const A16: [(usize, usize); 4] = [(0, 0), (8, 0), (0, 8), (8, 8)];
/// B fragment of 16-bit types: row (k) of each register's first element, the second is below. A lane's elements are `2 t`
/// rows down, in column (n) `g`.
const B16: [usize; 2] = [0, 8];
/// A fragment of 32-bit types: row and column of each register's element; `g` rows down, `t` columns to the right.
pub(super) const A32: [(usize, usize); 4] = [(0, 0), (8, 0), (0, 4), (8, 4)];
/// B fragment of 32-bit types: row (k) of each register's element; `t` rows down, in column (n) `g`.
const B32: [usize; 2] = [0, 4];
/// Accumulators: row and column of each element; `g` rows down, `2 t` columns to the right.
pub(super) const C32: [(usize, usize); 4] = [(0, 0), (0, 1), (8, 0), (8, 1)];

impl Warp {
    /// Loads or stores 8 x 8 matrices of 16-bit elements; returns `false` if lanes have yet to arrive.
    ///
    /// Lane `8 m + row` has the address of a row of matrix `m`. Of each matrix, lane `l` holds the elements `l % 4 * 2` and
    /// the next of row `l / 4`, or of that row of the transposed matrix.
    pub fn matrix(&mut self, env: &mut Env, matrix: &MatrixAccess, mask: u32) -> Result<bool, RawFault> {
        if !self.converge_full(env, mask)? {
            return Ok(false);
        }
        let address = self.addresses(env, matrix.addr);
        let count = matrix.regs.len();
        let mut out = [[0u32; 32]; 4];
        for (m, reg) in matrix.regs.iter().enumerate() {
            let mut tile = if matrix.store { tile(self.get32(env, *reg), matrix.trans) } else { Tile::default() };
            for (row, values) in tile.iter_mut().enumerate() {
                let lane = 8 * m + row;
                let fail = |kind| self.fault(Some(lane as u32), kind);
                let at = env.check_shared(address[lane], 16, 16).map_err(fail)?;
                if matrix.store {
                    self.record_store(env, at, &to_bytes(values), lane).map_err(fail)?;
                    env.store_shared(at, &to_bytes(values));
                    continue;
                }
                self.record_shared(env, at, 16, lane, AccessKind::WarpRead).map_err(fail)?;
                let bytes = env.load_shared(at, 16).map_err(fail)?;
                if matrix.trans {
                    *values = from_bytes(bytes);
                } else {
                    // Two neighbours a lane, as they lie there.
                    let words = out[m][4 * row..].iter_mut().zip(bytes.as_chunks::<4>().0);
                    words.for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
                }
            }
            if !matrix.store && matrix.trans {
                out[m] = transposed_fragment(&tile);
            }
        }
        let banks = if matrix.store { &mut env.counts.shared_stores } else { &mut env.counts.shared_loads };
        conflicts(banks, &address[..8 * count], 16);
        if !matrix.store {
            for (values, d) in out.iter().zip(&matrix.regs) {
                self.put32(*d, values, u32::MAX);
            }
        }
        Ok(true)
    }

    /// Computes D = A B + C; returns `false` if lanes have yet to arrive.
    ///
    /// The products are exact; they are summed in f32 in order of k, and C is added last, or all as an A100 does it.
    ///
    /// The hardware's order and inner precision are not specified; a kernel's error bound must hold for any.
    pub fn mma(&mut self, env: &mut Env, mma: &Mma, mask: u32) -> Result<bool, RawFault> {
        if !self.converge_full(env, mask)? {
            return Ok(false);
        }
        let (a, b) = self.factors(env, mma);
        let mut c = [[0f32; 8]; 16];
        // Two neighbours of eight rows are those of one lane after the other.
        let blocks = c.as_flattened_mut().chunks_exact_mut(64);
        if mma.half {
            for (block, reg) in blocks.zip(&mma.c) {
                block.copy_from_slice(&pairs(ElementType::F16, self.get32(env, *reg)));
            }
        } else {
            for (block, regs) in blocks.zip(mma.c.chunks_exact(2)) {
                let (even, odd) = (self.get32(env, regs[0]), self.get32(env, regs[1]));
                for lane in 0..32 {
                    block[2 * lane] = f32::from_bits(even[lane]);
                    block[2 * lane + 1] = f32::from_bits(odd[lane]);
                }
            }
        }
        let d = match env.arithmetic {
            Arithmetic::Exact => sum(product(&a, &b, mma.k.into()), &c),
            Arithmetic::Hardware => {
                let block = if mma.elem == ElementType::Tf32 { 4 } else { 8 };
                multiply(&a, &b, &c, mma.k.into(), block)
            }
        };
        for (i, to) in mma.d.iter().enumerate() {
            let block = &d.as_flattened()[64 * if mma.half { i } else { i / 2 }..][..64];
            let mut out = [0; 32];
            for (lane, value) in out.iter_mut().enumerate() {
                *value = match mma.half {
                    true => f32_to_f16(block[2 * lane]) | f32_to_f16(block[2 * lane + 1]) << 16,
                    false => canonical(block[2 * lane + i % 2]),
                };
            }
            self.put32(*to, &out, u32::MAX);
        }
        Ok(true)
    }

    /// The matrices A, by rows, and B, by rows of one k.
    fn factors(&self, env: &Env, mma: &Mma) -> ([[f32; 16]; 16], [[f32; 8]; 16]) {
        let mut a = [[0f32; 16]; 16];
        let mut b = [[0f32; 8]; 16];
        for (i, reg) in mma.a.iter().enumerate() {
            let values = self.get32(env, *reg);
            if mma.elem == ElementType::Tf32 {
                let ((r, c), values) = (A32[i], values.map(tf32));
                for (to, from) in a[r..r + 8].iter_mut().zip(values.chunks_exact(4)) {
                    to[c..c + 4].copy_from_slice(from);
                }
            } else {
                let ((r, c), values) = (A16[i], pairs(mma.elem, values));
                for (to, from) in a[r..r + 8].iter_mut().zip(values.chunks_exact(8)) {
                    to[c..c + 8].copy_from_slice(from);
                }
            }
        }
        for (i, reg) in mma.b.iter().enumerate() {
            let values = self.get32(env, *reg);
            if mma.elem == ElementType::Tf32 {
                transpose(&mut b[B32[i]..B32[i] + 4], &values.map(tf32));
            } else {
                transpose(&mut b[B16[i]..B16[i] + 8], &pairs(mma.elem, values));
            }
        }
        (a, b)
    }
}

/// An 8 x 8 matrix of 16-bit elements, by rows.
type Tile = [[u16; 8]; 8];

/// Collects a matrix from the registers of the lanes: two neighbours in a row each.
fn tile(registers: &Lanes32, trans: bool) -> Tile {
    let mut tile = Tile::default();
    for (lane, word) in registers.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4 * 2);
        for i in 0..2 {
            let (row, col) = if trans { (t + i, g) } else { (g, t + i) };
            tile[row][col] = (word >> (16 * i)) as u16;
        }
    }
    tile
}

/// Distributes a matrix to the registers of the lanes, transposed: the inverse of [`tile`].
fn transposed_fragment(tile: &Tile) -> Lanes32 {
    std::array::from_fn(|lane| {
        let (g, t) = (lane / 4, lane % 4 * 2);
        u32::from(tile[t][g]) | u32::from(tile[t + 1][g]) << 16
    })
}

fn to_bytes(row: &[u16; 8]) -> [u8; 16] {
    std::array::from_fn(|i| row[i / 2].to_le_bytes()[i % 2])
}

fn from_bytes(bytes: &[u8]) -> [u16; 8] {
    std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]))
}

/// The 16-bit elements of a register as f32, lane by lane: by rows of eight, if a lane's two are neighbours in a row.
fn pairs(elem: ElementType, values: &Lanes32) -> [f32; 64] {
    fn halves(values: &Lanes32, convert: impl Fn(u32) -> f32) -> [f32; 64] {
        let mut out = [0.0; 64];
        for lane in 0..32 {
            out[2 * lane] = convert(values[lane] & 0xffff);
            out[2 * lane + 1] = convert(values[lane] >> 16);
        }
        out
    }
    match elem {
        ElementType::F16 => halves(values, f16_to_f32),
        // `mma` of 8-bit types is not decoded.
        _ => halves(values, bf16_to_f32),
    }
}

/// An element of tf32.
fn tf32(value: u32) -> f32 {
    f32::from_bits(value & 0xffff_e000)
}

/// Turns eight columns, one after the other, into rows.
fn transpose(rows: &mut [[f32; 8]], columns: &[f32]) {
    for (k, row) in rows.iter_mut().enumerate() {
        *row = std::array::from_fn(|n| columns[n * (columns.len() / 8) + k]);
    }
}

/// Adds A B to sixteen rows of sums: `a[k][row]`, `b[k][column]`.
pub(super) fn multiply_tiles(
    a: &[Vec<f32>],
    b: &[Vec<f32>],
    mut sums: Vec<Vec<f32>>,
    arithmetic: Arithmetic,
    elem: ElementType,
) -> Vec<Vec<f32>> {
    if arithmetic == Arithmetic::Exact {
        for (r, row) in sums.iter_mut().enumerate() {
            let mut total = vec![0f32; row.len()];
            for (column, line) in a.iter().zip(b) {
                total.iter_mut().zip(line).for_each(|(s, y)| *s += column[r] * y);
            }
            row.iter_mut().zip(total).for_each(|(s, t)| *s += t);
        }
        return sums;
    }
    // As many products as 32 bytes hold are added at once.
    let width = 32 / elem.bytes() as usize;
    for first in (0..a.len()).step_by(16) {
        let count = (a.len() - first).min(16);
        let rows: [[f32; 16]; 16] =
            std::array::from_fn(|r| std::array::from_fn(|k| if k < count { a[first + k][r] } else { 0.0 }));
        for j in (0..b[0].len()).step_by(8) {
            let columns: [[f32; 8]; 16] =
                std::array::from_fn(|k| std::array::from_fn(|c| if k < count { b[first + k][j + c] } else { 0.0 }));
            let before: [[f32; 8]; 16] = std::array::from_fn(|r| std::array::from_fn(|c| sums[r][j + c]));
            let after = multiply(&rows, &columns, &before, count, width.min(count));
            for (row, after) in sums.iter_mut().zip(after) {
                row[j..j + 8].copy_from_slice(&after);
            }
        }
    }
    sums
}

/// Multiplies A and B over the first `k` columns and rows, four rows at a time so that their sums stay in registers.
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

/// The sums of the elements.
fn sum(mut d: [[f32; 8]; 16], c: &[[f32; 8]; 16]) -> [[f32; 8]; 16] {
    d.as_flattened_mut().iter_mut().zip(c.as_flattened()).for_each(|(d, c)| *d += c);
    d
}
