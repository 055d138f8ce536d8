//! `wgmma`: products of matrices in shared memory by four warps, each of which computes its sixteen rows.
//!
//! A product is computed at issue. Until the wait for its group its accumulators hold a value that no product gives, so that reading
//! them early shows, and what it reads in shared memory may not be written: another warp's wait counts for all four, so that a wait
//! lasts until the others have come as far. Layouts are those of the PTX manual ("Asynchronous warpgroup level matrix instructions").

use super::env::{Env, RawFault};
use super::matrix::{A16, A32, C32, multiply_tiles};
use super::warp::{Accumulators, Portion, Stop, UNSET, Warp, learn};
use crate::arith::{Format, bf16_to_f32, canonical, f16_to_f32, f32_to_f16};
use crate::asynchronous::Wgmma;
use crate::error::FaultKind;
use crate::memory::{AccessKind, Accessor, Proxy, Swizzle};
use crate::operand::ElementType;

/// Rows of a warp.
const ROWS: usize = 16;

/// A matrix in shared memory as its descriptor tells it.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    start: u64,
    leading: u64,
    stride: u64,
    swizzle: Swizzle,
    /// Elements that differ in the row (of A) or column (of B) lie together, rather than those that differ in k.
    transposed: bool,
    bytes: u64,
}

impl Matrix {
    fn new(descriptor: u64, transposed: bool, bytes: u64) -> Result<Self, String> {
        let field = |at: u32| (descriptor >> at & 0x3fff) << 4;
        let swizzle =
            [Swizzle::None, Swizzle::Bytes128, Swizzle::Bytes64, Swizzle::Bytes32][(descriptor >> 62) as usize];
        if descriptor >> 49 & 7 != 0 {
            return Err("a matrix descriptor with a base offset is not supported".to_owned());
        }
        let reserved = descriptor & !(0x3fff | 0x3fff << 16 | 0x3fff << 32 | 3 << 62);
        if reserved != 0 {
            return Err(format!("a matrix descriptor {descriptor:#x} with bits that have no meaning"));
        }
        Ok(Self { start: field(0), leading: field(16), stride: field(32), swizzle, transposed, bytes })
    }

    /// The address of an element: `i` is its row in A or its column in B.
    fn element(&self, i: usize, k: usize) -> u64 {
        let (i, k) = (i as u64, k as u64);
        let (line, x) = if self.transposed { (k, i * self.bytes) } else { (i, k * self.bytes) };
        let (chunk, within, lines) = match self.swizzle.span() {
            None => (x / 16, x % 16, line % 8 * 16),
            Some(span) if self.transposed => (x / span, x % span, line % 8 * span),
            Some(span) => (0, x, line % 8 * span),
        };
        // Without a swizzle the two offsets of a transposed matrix change places.
        let (across, down) = if self.transposed && self.swizzle == Swizzle::None {
            (self.stride, self.leading)
        } else {
            (self.leading, self.stride)
        };
        self.swizzle.apply(self.start + chunk * across + line / 8 * down + lines + within)
    }
}

impl Warp {
    /// Begins a product; returns `false` if lanes have yet to arrive.
    pub fn wgmma(&mut self, env: &mut Env, w: &Wgmma, mask: u32) -> Result<bool, RawFault> {
        if !self.converge_full(env, mask)? {
            return Ok(false);
        }
        let fail = |warp: &Self, what: String| Err(warp.fault(None, FaultKind::Asynchronous(what)));
        if !self.product_fence {
            return fail(self, "wgmma without a wgmma.fence since the last commit".to_owned());
        }
        let add = w.add.lanes(&self.pred);
        if add != 0 && add != u32::MAX {
            return fail(self, "wgmma whose scale-d differs between lanes".to_owned());
        }
        let (k, n) = (usize::from(w.k), usize::from(w.n));
        let mut a = match &w.a {
            Ok(regs) => self.fragment(env, w.elem, regs, k),
            Err(descriptor) => {
                let matrix = self.matrix_of(env, *descriptor, w.transpose[0], w.elem)?;
                self.gather(env, &matrix, usize::from(self.id) % 4 * ROWS, [k, ROWS], w.elem)?
            }
        };
        let matrix = self.matrix_of(env, w.b, w.transpose[1], w.elem)?;
        let mut b = self.gather(env, &matrix, 0, [k, n], w.elem)?;
        if w.negate[0] {
            a.iter_mut().flatten().for_each(|v| *v = -*v);
        }
        if w.negate[1] {
            b.iter_mut().flatten().for_each(|v| *v = -*v);
        }
        let mut entry = self.take_accumulators(w);
        let sums = self.sums(w, &entry, add != 0);
        let sums = multiply_tiles(&a, &b, sums, env.arithmetic, w.elem);
        for (i, value) in entry.values.iter_mut().enumerate() {
            *value = std::array::from_fn(|lane| {
                let at = |c: usize| {
                    let (row, col) = C32[c % 4];
                    sums[row + lane / 4][c / 4 * 8 + col + lane % 4 * 2]
                };
                if w.half { f32_to_f16(at(2 * i)) | f32_to_f16(at(2 * i + 1)) << 16 } else { canonical(at(i)) }
            });
        }
        entry.group = self.product_groups;
        self.accumulators.push(entry);
        Ok(true)
    }

    /// The accumulators as rows of n columns; zeros where they do not count.
    fn sums(&self, w: &Wgmma, entry: &Accumulators, add: bool) -> Vec<Vec<f32>> {
        let mut sums = vec![vec![0f32; w.n.into()]; ROWS];
        for (i, value) in entry.values.iter().enumerate().filter(|_| add) {
            for (lane, v) in value.iter().enumerate() {
                let mut put = |c: usize, x: f32| {
                    let (row, col) = C32[c % 4];
                    sums[row + lane / 4][c / 4 * 8 + col + lane % 4 * 2] = x;
                };
                if w.half {
                    put(2 * i, f16_to_f32(v & 0xffff));
                    put(2 * i + 1, f16_to_f32(v >> 16));
                } else {
                    put(i, f32::from_bits(*v));
                }
            }
        }
        sums
    }

    fn matrix_of(&self, env: &Env, descriptor: u32, transposed: bool, elem: ElementType) -> Result<Matrix, RawFault> {
        let fail = |what: String| self.fault(None, FaultKind::Asynchronous(what));
        let value = self.get64(env, descriptor);
        if value.iter().any(|v| *v != value[0]) {
            return Err(fail("a matrix descriptor that differs between lanes".to_owned()));
        }
        Matrix::new(value[0], transposed, elem.bytes()).map_err(fail)
    }

    /// Reads `count` rows (of A) or columns (of B) of a matrix in shared memory as the asynchronous proxy: `[k][i]`.
    fn gather(
        &self,
        env: &mut Env,
        matrix: &Matrix,
        first: usize,
        [depth, count]: [usize; 2],
        elem: ElementType,
    ) -> Result<Vec<Vec<f32>>, RawFault> {
        const CHUNK: usize = 16;
        let fail = |kind| self.fault(None, kind);
        let bytes = elem.bytes() as usize;
        let author = env.cluster_warps() as u16 + self.number / 4 * 4;
        let by = Accessor {
            sync: self.serial,
            proxy: Some(Proxy { author, until: self.product_groups, fenced: &self.fenced }),
            ..self.accessor(0)
        };
        let mut out = vec![vec![0f32; count]; depth];
        // In every layout 16 bytes lie together, along k or, transposed, along the other side.
        let (lines, length) = if matrix.transposed { (depth, count) } else { (count, depth) };
        for line in 0..lines {
            for x in (0..length).step_by(CHUNK / bytes) {
                let (i, k) = if matrix.transposed { (x, line) } else { (line, x) };
                let place = env.check_shared(matrix.element(first + i, k), CHUNK as u32, CHUNK as u32).map_err(fail)?;
                self.record_by(env, place, CHUNK, &by, AccessKind::WarpRead).map_err(fail)?;
                for (e, data) in env.load_shared(place, CHUNK).map_err(fail)?.chunks_exact(bytes).enumerate() {
                    let value = decode(elem, data.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b)));
                    let (i, k) = if matrix.transposed { (i + e, k) } else { (i, k + e) };
                    out[k][i] = value;
                }
            }
        }
        Ok(out)
    }

    /// The fragment of A in registers: `a[k][row]`.
    fn fragment(&self, env: &Env, elem: ElementType, regs: &[u32], k: usize) -> Vec<Vec<f32>> {
        let mut a = vec![vec![0f32; ROWS]; k];
        for (i, reg) in regs.iter().enumerate() {
            for (lane, value) in self.get32(env, *reg).iter().enumerate() {
                let bits = 8 * elem.bytes() as usize;
                let (row, column) = if bits == 32 { A32[i] } else { A16[i] };
                // A register holds neighbours in k; the column of 8-bit types counts twice.
                let per = 32 / bits;
                let column = column * per / 2.min(per) + lane % 4 * per;
                for e in 0..per {
                    let mask = if bits == 32 { u32::MAX } else { (1 << bits) - 1 };
                    a[column + e][row + lane / 4] = decode(elem, value >> (bits * e) & mask);
                }
            }
        }
        a
    }

    /// Takes the accumulators of a product out of those that are pending, or out of its registers, which get a value that shows.
    fn take_accumulators(&mut self, w: &Wgmma) -> Accumulators {
        let held = self.accumulators.iter().position(|acc| {
            acc.registers.len() == w.d.len()
                && acc.registers.iter().zip(&w.d).all(|(regs, d)| regs.contains(&(*d, Portion::All)))
        });
        if let Some(i) = held {
            let mut entry = self.accumulators.remove(i);
            let others: Vec<Vec<(u32, Portion)>> = entry
                .registers
                .iter()
                .zip(&w.d)
                .map(|(regs, d)| regs.iter().copied().filter(|r| *r != (*d, Portion::All)).collect())
                .collect();
            if others.iter().any(|r| !r.is_empty()) {
                // What was moved elsewhere keeps the value of the product before.
                self.accumulators.push(Accumulators { registers: others, ..entry.clone() });
            }
            entry.registers = w.d.iter().map(|d| vec![(*d, Portion::All)]).collect();
            return entry;
        }
        let values = w.d.iter().map(|d| self.r32[*d as usize]).collect();
        for d in &w.d {
            self.r32[*d as usize] = [UNSET; 32];
        }
        Accumulators { values, registers: w.d.iter().map(|d| vec![(*d, Portion::All)]).collect(), group: 0 }
    }

    /// A move of a register of pending accumulators, or of a half: the target gets the value at the wait, too.
    pub(super) fn move_accumulator(&mut self, d: u32, a: u32, portion: Portion) {
        for entry in &mut self.accumulators {
            for regs in &mut entry.registers {
                // What the target was to get before is overwritten.
                regs.retain(|(r, _)| *r != d || *r == a);
                if regs.contains(&(a, Portion::All)) {
                    regs.push((d, portion));
                }
            }
        }
    }

    /// Closes the group of products, and allows no other before a fence.
    pub fn commit_products(&mut self, env: &mut Env) {
        self.product_groups += 1;
        self.product_fence = false;
        let number = usize::from(self.number);
        env.product_groups.resize(env.cluster_warps(), 0);
        env.product_groups[number] = self.product_groups;
        env.progress += 1;
    }

    /// Waits until at most `left` groups are pending, for the other warps of the group, too.
    pub fn wait_products(&mut self, env: &mut Env, left: u32) -> Option<Stop> {
        let over = self.product_groups.saturating_sub(left);
        env.product_groups.resize(env.cluster_warps(), 0);
        let first = usize::from(self.number) / 4 * 4;
        let last = (first + 4).min(env.cluster_warps());
        if env.product_groups[first..last].iter().any(|groups| *groups < over) {
            return Some(Stop::Poll);
        }
        for entry in self.accumulators.extract_if(.., |entry| entry.group < over) {
            for (value, regs) in entry.values.iter().zip(&entry.registers) {
                for (r, portion) in regs {
                    self.r32[*r as usize] = match portion {
                        Portion::All => *value,
                        Portion::Low => value.map(|v| v & 0xffff),
                        Portion::High => value.map(|v| v >> 16),
                    };
                }
            }
        }
        learn(&mut self.clock, (env.cluster_warps() + first) as u16, over);
        None
    }
}

/// The value of an element.
fn decode(elem: ElementType, bits: u32) -> f32 {
    match elem {
        ElementType::F16 => f16_to_f32(bits),
        ElementType::Bf16 => bf16_to_f32(bits),
        ElementType::Tf32 => f32::from_bits(bits & 0xffff_e000),
        ElementType::E4m3 => Format::E4m3.decode(bits.into()) as f32,
        ElementType::E5m2 => Format::E5m2.decode(bits.into()) as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(swizzle: Swizzle, transposed: bool) -> Matrix {
        Matrix { start: 1024, leading: 4096, stride: 1024, swizzle, transposed, bytes: 2 }
    }

    /// Places that follow from the layouts of the manual.
    #[test]
    fn places() {
        let m = matrix(Swizzle::Bytes128, false);
        assert_eq!(m.element(0, 0), 1024);
        assert_eq!(m.element(1, 0), 1024 + 128 + 16);
        assert_eq!(m.element(9, 9), 1024 + 1024 + 128 + 2);
        // Transposed: 64 columns of 16 bits in a line, lines by k, the next 64 columns at the leading offset.
        let m = matrix(Swizzle::Bytes128, true);
        assert_eq!(m.element(0, 1), 1024 + 128 + 16);
        assert_eq!(m.element(65, 0), 1024 + 4096 + 2);
        assert_eq!(m.element(0, 8), 1024 + 1024);
        // Without a swizzle: cores of 8 lines of 16 bytes.
        let m = Matrix { leading: 128, stride: 256, ..matrix(Swizzle::None, false) };
        assert_eq!((m.element(3, 2), m.element(3, 9), m.element(8, 0)), (1024 + 52, 1024 + 128 + 50, 1024 + 256));
        let m = Matrix { leading: 128, stride: 256, ..matrix(Swizzle::None, true) };
        assert_eq!((m.element(2, 3), m.element(9, 3), m.element(0, 8)), (1024 + 52, 1024 + 256 + 50, 1024 + 128));
    }
}
