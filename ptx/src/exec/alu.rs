//! Operations on registers alone: arithmetic, logic, comparisons, selections, moves.

use super::env::Env;
use super::warp::{Portion, Warp};
use crate::arith::off_by;
use crate::instruction::{BoolOp, NONE, Pred, Reg, SetP, SpecialRegister, Wide};
use crate::lanes::{Binary32, Binary64, Cmp32, Cmp64, CmpPair, Lanes64, Ternary32, Unary32};
use crate::launch::Arithmetic;

impl Warp {
    #[inline(always)]
    pub(super) fn unary32(&mut self, env: &Env, f: Unary32, d: u32, a: u32, mask: u32) {
        let mut out = [0; 32];
        f(self.get32(env, a), &mut out);
        self.put32(d, &out, mask);
    }

    /// Computes an approximation, which the hardware's arithmetic puts off by up to `units` in the last place.
    #[inline(always)]
    pub(super) fn approx32(&mut self, env: &Env, f: Unary32, d: u32, a: u32, units: u32, mask: u32) {
        let operands = self.get32(env, a);
        let mut out = [0; 32];
        f(operands, &mut out);
        if env.arithmetic == Arithmetic::Hardware {
            out = std::array::from_fn(|i| off_by(out[i], operands[i], units));
        }
        self.put32(d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn binary32(&mut self, env: &Env, f: Binary32, d: u32, [a, b]: [u32; 2], mask: u32) {
        let mut out = [0; 32];
        f(self.get32(env, a), self.get32(env, b), &mut out);
        self.put32(d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn ternary32(&mut self, env: &Env, f: Ternary32, d: u32, [a, b, c]: [u32; 3], mask: u32) {
        let mut out = [0; 32];
        f(self.get32(env, a), self.get32(env, b), self.get32(env, c), &mut out);
        self.put32(d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn binary64(&mut self, env: &Env, f: Binary64, d: u32, [a, b]: [u32; 2], mask: u32) {
        let mut out = [0; 32];
        f(self.get64(env, a), self.get64(env, b), &mut out);
        self.put64(d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn wide(&mut self, env: &Env, wide: &Wide, mask: u32) {
        // In place: arrays of this size are not moved for nothing.
        let mut s = [[0; 32]; 4];
        for (to, reg) in s.iter_mut().zip(wide.s) {
            match reg {
                Reg::None => {}
                Reg::B16(r) | Reg::B32(r) => {
                    to.iter_mut().zip(self.get32(env, r)).for_each(|(to, v)| *to = u64::from(*v));
                }
                Reg::B64(r) => to.copy_from_slice(self.get64(env, r)),
            }
        }
        let mut out = [0; 32];
        (wide.f)(&s, wide.imm, &mut out);
        self.put(wide.d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn lop3(&mut self, env: &Env, d: u32, [a, b, c]: [u32; 3], lut: u8, mask: u32) {
        let (a, b, c) = (self.get32(env, a), self.get32(env, b), self.get32(env, c));
        let mut out = [0; 32];
        for term in 0..8u32 {
            if lut >> term & 1 != 0 {
                let (x, y, z) = (term >> 2 & 1, term >> 1 & 1, term & 1);
                for i in 0..32 {
                    // Each factor is inverted where the table's index has a zero.
                    out[i] |= (a[i] ^ x.wrapping_sub(1)) & (b[i] ^ y.wrapping_sub(1)) & (c[i] ^ z.wrapping_sub(1));
                }
            }
        }
        self.put32(d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn setp32(&mut self, env: &Env, set: &SetP<Cmp32>, mask: u32) {
        let bits = (set.f)(self.get32(env, set.a), self.get32(env, set.b));
        self.set_predicates(set, (bits, !bits), mask);
    }

    #[inline(always)]
    pub(super) fn setp64(&mut self, env: &Env, set: &SetP<Cmp64>, mask: u32) {
        let bits = (set.f)(self.get64(env, set.a), self.get64(env, set.b));
        self.set_predicates(set, (bits, !bits), mask);
    }

    #[inline(always)]
    pub(super) fn setp_packed(&mut self, env: &Env, set: &SetP<CmpPair>, mask: u32) {
        let bits = (set.f)(self.get32(env, set.a), self.get32(env, set.b));
        self.set_predicates(set, bits, mask);
    }

    /// Joins the results for `p` and `q` with the third operand of `setp` and stores them.
    fn set_predicates<F>(&mut self, set: &SetP<F>, (p, q): (u32, u32), mask: u32) {
        let c = set.c.lanes(&self.pred);
        self.put_pred(set.p, joined(set.join, p, c), mask);
        self.put_pred(set.q, joined(set.join, q, c), mask);
    }

    #[inline(always)]
    pub(super) fn select32(&mut self, env: &Env, d: u32, [a, b]: [u32; 2], p: Pred, mask: u32) {
        let p = p.lanes(&self.pred);
        let (a, b) = (self.get32(env, a), self.get32(env, b));
        let mut out = [0; 32];
        for i in 0..32 {
            let m = (p >> i & 1).wrapping_neg();
            out[i] = (a[i] & m) | (b[i] & !m);
        }
        self.put32(d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn select64(&mut self, env: &Env, d: u32, [a, b]: [u32; 2], p: Pred, mask: u32) {
        let p = p.lanes(&self.pred);
        let (a, b) = (self.get64(env, a), self.get64(env, b));
        let out = std::array::from_fn(|i| if p >> i & 1 != 0 { a[i] } else { b[i] });
        self.put64(d, &out, mask);
    }

    #[inline(always)]
    pub(super) fn logic(&mut self, d: u32, [a, b]: [Pred; 2], join: BoolOp, mask: u32) {
        let (a, b) = (a.lanes(&self.pred), b.lanes(&self.pred));
        self.put_pred(d, joined(join, a, b), mask);
    }

    #[inline(always)]
    pub(super) fn mov32(&mut self, env: &Env, d: u32, a: u32, mask: u32) {
        let values = *self.get32(env, a);
        self.put32(d, &values, mask);
        if !self.accumulators.is_empty() {
            self.move_accumulator(d, a, Portion::All);
        }
    }

    #[inline(always)]
    pub(super) fn mov64(&mut self, env: &Env, d: u32, a: u32, mask: u32) {
        let values = *self.get64(env, a);
        self.put64(d, &values, mask);
    }

    /// Packs elements, lowest first, into one register.
    pub(super) fn pack(&mut self, env: &Env, d: Reg, parts: &[Reg], mask: u32) {
        let (mut packed, mut shift) = ([0; 32], 0);
        for part in parts {
            let values = self.get(env, *part);
            for i in 0..32 {
                packed[i] |= values[i] << shift;
            }
            shift += part.bits();
        }
        self.put(d, &packed, mask);
    }

    /// Unpacks a register into elements, lowest first.
    pub(super) fn unpack(&mut self, env: &Env, parts: &[Reg], a: Reg, mask: u32) {
        let mut values = self.get(env, a);
        for part in parts {
            if !matches!(part, Reg::B16(NONE) | Reg::B32(NONE)) {
                self.put(*part, &values, mask);
            }
            values = values.map(|v| v.checked_shr(part.bits()).unwrap_or(0));
        }
        if let (false, Reg::B32(a), [Reg::B16(low), Reg::B16(high)]) = (self.accumulators.is_empty(), a, parts) {
            self.move_accumulator(*low, a, Portion::Low);
            self.move_accumulator(*high, a, Portion::High);
        }
    }

    /// Reads a special register.
    pub(super) fn special(&self, env: &Env, which: SpecialRegister) -> Lanes64 {
        let lane: Lanes64 = std::array::from_fn(|i| i as u64);
        let [x, y, _] = env.block_dim.map(u64::from);
        let thread = lane.map(|l| l + u64::from(self.id) * 32);
        let all = |v: u64| [v; 32];
        match which {
            SpecialRegister::Tid(0) => thread.map(|t| t % x),
            SpecialRegister::Tid(1) => thread.map(|t| t / x % y),
            SpecialRegister::Tid(_) => thread.map(|t| t / (x * y)),
            SpecialRegister::Ntid(d) => all(env.block_dim[usize::from(d)].into()),
            SpecialRegister::Ctaid(d) => all(env.blocks[env.rank].block[usize::from(d)].into()),
            SpecialRegister::Nctaid(d) => all(env.grid_dim[usize::from(d)].into()),
            SpecialRegister::ClusterCtaId(d) => {
                all((env.blocks[env.rank].block[usize::from(d)] % env.cluster_dim[usize::from(d)]).into())
            }
            SpecialRegister::ClusterNctaId(d) => all(env.cluster_dim[usize::from(d)].into()),
            SpecialRegister::ClusterId(d) => {
                all((env.blocks[env.rank].block[usize::from(d)] / env.cluster_dim[usize::from(d)]).into())
            }
            SpecialRegister::NClusterId(d) => {
                all(env.grid_dim[usize::from(d)].div_ceil(env.cluster_dim[usize::from(d)]).into())
            }
            SpecialRegister::ClusterCtaRank => all(env.rank as u64),
            SpecialRegister::ClusterNctaRank => all(env.blocks.len() as u64),
            SpecialRegister::LaneId => lane,
            SpecialRegister::WarpId => all(self.id.into()),
            SpecialRegister::NWarpId => all(env.threads().div_ceil(32).into()),
            SpecialRegister::LaneMaskEq => lane.map(|l| 1 << l),
            SpecialRegister::LaneMaskLt => lane.map(|l| (1 << l) - 1),
            SpecialRegister::LaneMaskLe => lane.map(|l| (2 << l) - 1),
            SpecialRegister::LaneMaskGt => lane.map(|l| 0xffff_ffff & !((2 << l) - 1)),
            SpecialRegister::LaneMaskGe => lane.map(|l| 0xffff_ffff & !((1 << l) - 1)),
            // One multiprocessor, and a clock that counts instructions.
            SpecialRegister::SmId | SpecialRegister::GridId => all(0),
            SpecialRegister::NSmId => all(1),
            SpecialRegister::Clock => all(self.serial.into()),
            SpecialRegister::DynamicShared => all(env.dynamic_shared as u64),
            SpecialRegister::TotalShared => all(env.blocks[env.rank].shared.len() as u64),
        }
    }
}

/// Combines two predicates, one bit per lane.
fn joined(join: BoolOp, a: u32, b: u32) -> u32 {
    match join {
        BoolOp::None => a,
        BoolOp::And => a & b,
        BoolOp::Or => a | b,
        BoolOp::Xor => a ^ b,
    }
}
