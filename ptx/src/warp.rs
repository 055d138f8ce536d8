//! A warp: its registers, where its lanes are, and the loop that runs it.
//!
//! All lanes that stand at the lowest program counter run together. While every live lane is there, which is most of the
//! time, that is the whole warp and the rest is not looked at. A lane that reaches an operation which needs others stalls
//! until they come to the same instruction.

use crate::env::{Env, RawFault};
use crate::error::FaultKind;
use crate::program::{BoolOp, CONST, Instruction, Lanes32, Lanes64, NONE, Op, Pred, Reg, SpecialRegister};

/// Why a warp stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Its turn is over.
    TimeSlice,
    /// It waits at a barrier.
    Barrier,
    /// All lanes have exited.
    Done,
}

/// Where a warp waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BarrierWait {
    pub id: u32,
    /// Threads the barrier is for; `None`: the block.
    pub count: Option<u32>,
    pub pc: u32,
    /// Lanes for which the reduction's predicate holds.
    pub vote: u32,
}

/// A `cp.async` of one lane that was not waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingCopy {
    pub lane: u8,
    pub size: u8,
    /// Bytes that come from the source.
    pub from: u8,
    pub landed: bool,
    pub group: u32,
    pub pc: u32,
    pub dst: usize,
    pub src: u64,
}

pub(crate) struct Warp {
    pub id: u16,
    pub r32: Vec<Lanes32>,
    pub r64: Vec<Lanes64>,
    pub pred: Vec<u32>,
    pub local: Vec<u8>,
    pub local_written: Vec<bool>,
    /// Lanes that have not exited.
    pub live: u32,
    /// Lanes that run, all at `pc`.
    pub active: u32,
    pub pc: u32,
    /// Where the other lanes are.
    pcs: [u32; 32],
    /// The lowest of those that are not stalled.
    next: u32,
    stalled: u32,
    /// Live lanes when the stalled ones were last tried again.
    retried: u32,
    /// Instructions so far.
    pub serial: u32,
    /// The instruction that synchronised the lanes last.
    pub sync: u32,
    /// For each warp, its clock up to which all it did came before; see [`crate::shared`].
    pub clock: Vec<u32>,
    pub copies: Vec<PendingCopy>,
    pub committed: [u32; 32],
    pub waiting: Option<BarrierWait>,
}

/// In a register that nothing wrote: as a number a NaN, as an address out of bounds.
const UNSET: u32 = 0x7fff_dead;

impl Warp {
    pub fn new(id: u16, env: &Env) -> Self {
        let kernel = env.kernel;
        let local = kernel.local_bytes * 32;
        let mut warp = Self {
            id,
            r32: vec![[0; 32]; kernel.n32],
            r64: vec![[0; 32]; kernel.n64],
            pred: vec![0; kernel.npred],
            local: vec![0; local],
            local_written: vec![false; local],
            live: 0,
            active: 0,
            pc: 0,
            pcs: [0; 32],
            next: u32::MAX,
            stalled: 0,
            retried: 0,
            serial: 1,
            sync: 1,
            clock: Vec::new(),
            copies: Vec::new(),
            committed: [0; 32],
            waiting: None,
        };
        warp.reset(env);
        warp
    }

    /// For the next block.
    pub fn reset(&mut self, env: &Env) {
        let threads = env.threads();
        let first = u32::from(self.id) * 32;
        let lanes = (threads - first).min(32);
        // What a register holds before it is written is anything, so not a zero that would hide it.
        self.r32.fill([UNSET; 32]);
        self.r64.fill([u64::from(UNSET) << 32 | u64::from(UNSET); 32]);
        self.pred.fill(0);
        self.local_written.fill(false);
        self.live = u32::MAX >> (32 - lanes);
        self.active = self.live;
        (self.pc, self.next, self.stalled, self.retried) = (0, u32::MAX, 0, 0);
        self.pcs = [0; 32];
        (self.serial, self.sync) = (1, 1);
        self.clock = vec![0; threads.div_ceil(32) as usize];
        self.clock[usize::from(self.id)] = 1;
        self.copies.clear();
        self.committed = [0; 32];
        self.waiting = None;
    }

    pub fn done(&self) -> bool {
        self.live == 0
    }

    /// Runs up to `turn` instructions.
    pub fn run(&mut self, env: &mut Env, slice: u64) -> Result<Stop, RawFault> {
        let slice = slice.min(env.step_limit.saturating_sub(env.steps) + 1);
        let mut left = slice;
        let code: &[Instruction] = &env.kernel.code;
        let result = loop {
            if left == 0 {
                break Ok(Stop::TimeSlice);
            }
            left -= 1;
            let Some(inst) = code.get(self.pc as usize) else { break Err(self.fault(None, FaultKind::Trap)) };
            env.executed[self.pc as usize] += 1;
            self.serial = self.serial.wrapping_add(1);
            let mask = self.active & inst.guard.lanes(&self.pred);
            match self.step(env, inst, mask) {
                Ok(None) => {}
                Ok(Some(stop)) => break Ok(stop),
                Err(fault) => break Err(fault),
            }
            if self.pc >= self.next {
                self.reschedule();
            }
        };
        env.steps += slice - left;
        if env.steps > env.step_limit {
            return Err(self.fault(None, FaultKind::StepLimit { limit: env.step_limit }));
        }
        result
    }

    pub fn fault(&self, lane: Option<u32>, kind: FaultKind) -> RawFault {
        RawFault { pc: self.pc, warp: self.id, lane, kind }
    }

    /// Chooses the lanes at the lowest program counter.
    fn reschedule(&mut self) {
        for lane in lanes(self.active) {
            self.pcs[lane] = self.pc;
        }
        let ready = self.live & !self.stalled;
        let Some(pc) = lanes(ready).map(|l| self.pcs[l]).min() else { return };
        self.activate(pc);
    }

    /// Makes the live lanes at `pc`, stalled ones too, the active ones.
    fn activate(&mut self, pc: u32) {
        self.active = lanes(self.live).filter(|l| self.pcs[*l] == pc).fold(0, |m, l| m | 1 << l);
        self.stalled &= !self.active;
        self.pc = pc;
        let others = self.live & !self.active & !self.stalled;
        self.next = lanes(others).map(|l| self.pcs[l]).min().unwrap_or(u32::MAX);
    }

    /// Whether the lanes in `need` are all here. Where not, the active ones stall, and `Ok(false)` means that others run.
    pub fn converge(&mut self, need: u32, env: &Env) -> Result<bool, RawFault> {
        if need & !self.active == 0 {
            return Ok(true);
        }
        for lane in lanes(self.active) {
            self.pcs[lane] = self.pc;
        }
        self.activate(self.pc);
        if need & !self.active == 0 {
            return Ok(true);
        }
        self.stalled |= self.active;
        self.resume_others(env)?;
        Ok(false)
    }

    /// Goes on with some lanes after the active ones stalled or exited.
    fn resume_others(&mut self, env: &Env) -> Result<(), RawFault> {
        if self.live == 0 {
            return Ok(());
        }
        if self.live & !self.stalled == 0 {
            if self.retried == self.live {
                let pc = lanes(self.live).map(|l| self.pcs[l]).min().unwrap_or(self.pc);
                let kind = FaultKind::Divergent { what: self.whereabouts(env) };
                return Err(RawFault { pc, ..self.fault(None, kind) });
            }
            // Since some lanes exited, what the others wait for may be here.
            self.retried = self.live;
            self.stalled = 0;
        }
        let ready = self.live & !self.stalled;
        if let Some(pc) = lanes(ready).map(|l| self.pcs[l]).min() {
            self.activate(pc);
        }
        Ok(())
    }

    fn whereabouts(&self, env: &Env) -> String {
        let mut text = String::from("lanes of one warp wait at different instructions");
        let mut left = self.live;
        while left != 0 {
            let pc = self.pcs[left.trailing_zeros() as usize];
            let here = lanes(left).filter(|l| self.pcs[*l] == pc).fold(0u32, |m, l| m | 1 << l);
            text += &format!("; lanes {here:#010x} at {}", env.site(pc));
            left &= !here;
        }
        text
    }

    /// The lanes leave.
    fn exit(&mut self, mask: u32, env: &Env) -> Result<(), RawFault> {
        self.live &= !mask;
        self.active &= !mask;
        if self.active != 0 {
            self.pc += 1;
            return Ok(());
        }
        self.resume_others(env)
    }

    fn branch(&mut self, mask: u32, target: u32) {
        if mask == self.active {
            self.pc = target;
        } else if mask == 0 {
            self.pc += 1;
        } else {
            for lane in lanes(self.active) {
                self.pcs[lane] = if mask >> lane & 1 != 0 { target } else { self.pc + 1 };
            }
            let ready = self.live & !self.stalled;
            if let Some(pc) = lanes(ready).map(|l| self.pcs[l]).min() {
                self.activate(pc);
            }
        }
    }

    #[inline(always)]
    pub fn get32<'b>(&'b self, env: &'b Env, r: u32) -> &'b Lanes32 {
        if r & CONST != 0 { &env.const32[(r & !CONST) as usize] } else { &self.r32[r as usize] }
    }

    #[inline(always)]
    pub fn get64<'b>(&'b self, env: &'b Env, r: u32) -> &'b Lanes64 {
        if r & CONST != 0 { &env.const64[(r & !CONST) as usize] } else { &self.r64[r as usize] }
    }

    /// An operand widened to 64 bits; zero where there is none.
    #[inline]
    pub fn get(&self, env: &Env, slot: Reg) -> Lanes64 {
        match slot {
            Reg::None => [0; 32],
            Reg::B16(r) | Reg::B32(r) => self.get32(env, r).map(u64::from),
            Reg::B64(r) => *self.get64(env, r),
        }
    }

    #[inline(always)]
    pub fn put32(&mut self, d: u32, row: &Lanes32, mask: u32) {
        let to = &mut self.r32[d as usize];
        if mask == u32::MAX {
            *to = *row;
        } else {
            for i in 0..32 {
                let m = (mask >> i & 1).wrapping_neg();
                to[i] = (row[i] & m) | (to[i] & !m);
            }
        }
    }

    #[inline(always)]
    pub fn put64(&mut self, d: u32, row: &Lanes64, mask: u32) {
        let to = &mut self.r64[d as usize];
        if mask == u32::MAX {
            *to = *row;
        } else {
            for i in 0..32 {
                let m = u64::from(mask >> i & 1).wrapping_neg();
                to[i] = (row[i] & m) | (to[i] & !m);
            }
        }
    }

    /// A result of any width, cut to its register's.
    #[inline]
    pub fn put(&mut self, d: Reg, row: &Lanes64, mask: u32) {
        match d {
            Reg::None => {}
            Reg::B16(d) => self.put32(d, &row.map(|v| v as u32 & 0xffff), mask),
            Reg::B32(d) => self.put32(d, &row.map(|v| v as u32), mask),
            Reg::B64(d) => self.put64(d, row, mask),
        }
    }

    pub fn put_pred(&mut self, p: u32, bits: u32, mask: u32) {
        if p != NONE {
            let to = &mut self.pred[p as usize];
            *to = (bits & mask) | (*to & !mask);
        }
    }

    fn set_preds(&mut self, (p, q): (u32, u32), (low, high): (u32, u32), join: BoolOp, c: Pred, mask: u32) {
        let c = c.lanes(&self.pred);
        let joined = |bits| match join {
            BoolOp::None => bits,
            BoolOp::And => bits & c,
            BoolOp::Or => bits | c,
            BoolOp::Xor => bits ^ c,
        };
        let (low, high) = (joined(low), joined(high));
        self.put_pred(p, low, mask);
        self.put_pred(q, high, mask);
    }

    /// One instruction for the lanes of `mask`; `pc` moves on.
    #[inline(always)]
    fn step(&mut self, env: &mut Env, inst: &Instruction, mask: u32) -> Result<Option<Stop>, RawFault> {
        match &inst.op {
            Op::Branch { target } => {
                self.branch(mask, *target);
                return Ok(None);
            }
            _ if mask == 0 => {}
            Op::Unary32 { f, d, a } => {
                let mut out = [0; 32];
                f(self.get32(env, *a), &mut out);
                self.put32(*d, &out, mask);
            }
            Op::Binary32 { f, d, a, b } => {
                let mut out = [0; 32];
                f(self.get32(env, *a), self.get32(env, *b), &mut out);
                self.put32(*d, &out, mask);
            }
            Op::Ternary32 { f, d, a, b, c } => {
                let mut out = [0; 32];
                f(self.get32(env, *a), self.get32(env, *b), self.get32(env, *c), &mut out);
                self.put32(*d, &out, mask);
            }
            Op::Binary64 { f, d, a, b } => {
                let mut out = [0; 32];
                f(self.get64(env, *a), self.get64(env, *b), &mut out);
                self.put64(*d, &out, mask);
            }
            Op::Wide(w) => {
                let s = w.s.map(|slot| self.get(env, slot));
                let mut out = [0; 32];
                (w.f)(&s, w.imm, &mut out);
                self.put(w.d, &out, mask);
            }
            Op::Lop3 { d, a, b, c, lut } => {
                let (a, b, c) = (self.get32(env, *a), self.get32(env, *b), self.get32(env, *c));
                let mut out = [0; 32];
                for term in 0..8u32 {
                    if lut >> term & 1 != 0 {
                        let (x, y, z) = (term >> 2 & 1, term >> 1 & 1, term & 1);
                        for i in 0..32 {
                            // Each factor is inverted where the table's index has a zero.
                            out[i] |=
                                (a[i] ^ x.wrapping_sub(1)) & (b[i] ^ y.wrapping_sub(1)) & (c[i] ^ z.wrapping_sub(1));
                        }
                    }
                }
                self.put32(*d, &out, mask);
            }
            Op::SetP32(s) => {
                let bits = (s.f)(self.get32(env, s.a), self.get32(env, s.b));
                self.set_preds((s.p, s.q), (bits, !bits), s.join, s.c, mask);
            }
            Op::SetP64(s) => {
                let bits = (s.f)(self.get64(env, s.a), self.get64(env, s.b));
                self.set_preds((s.p, s.q), (bits, !bits), s.join, s.c, mask);
            }
            Op::SetPacked(s) => {
                let bits = (s.f)(self.get32(env, s.a), self.get32(env, s.b));
                self.set_preds((s.p, s.q), bits, s.join, s.c, mask);
            }
            Op::Sel32 { d, a, b, p } => {
                let p = p.lanes(&self.pred);
                let (a, b) = (self.get32(env, *a), self.get32(env, *b));
                let mut out = [0; 32];
                for i in 0..32 {
                    let m = (p >> i & 1).wrapping_neg();
                    out[i] = (a[i] & m) | (b[i] & !m);
                }
                self.put32(*d, &out, mask);
            }
            Op::Sel64 { d, a, b, p } => {
                let p = p.lanes(&self.pred);
                let (a, b) = (self.get64(env, *a), self.get64(env, *b));
                let out = std::array::from_fn(|i| if p >> i & 1 != 0 { a[i] } else { b[i] });
                self.put64(*d, &out, mask);
            }
            Op::Logic { d, a, b, join } => {
                let (a, b) = (a.lanes(&self.pred), b.lanes(&self.pred));
                let bits = match join {
                    BoolOp::None => a,
                    BoolOp::And => a & b,
                    BoolOp::Or => a | b,
                    BoolOp::Xor => a ^ b,
                };
                self.put_pred(*d, bits, mask);
            }
            Op::Special { d, which } => {
                let row = self.special(env, *which);
                self.put(*d, &row, mask);
            }
            Op::Mov32 { d, a } => {
                let row = *self.get32(env, *a);
                self.put32(*d, &row, mask);
            }
            Op::Mov64 { d, a } => {
                let row = *self.get64(env, *a);
                self.put64(*d, &row, mask);
            }
            Op::Pack { d, parts } => {
                let (mut row, mut shift) = ([0; 32], 0);
                for part in parts {
                    let (value, bits) = (self.get(env, *part), slot_bits(*part));
                    for i in 0..32 {
                        row[i] |= value[i] << shift;
                    }
                    shift += bits;
                }
                self.put(*d, &row, mask);
            }
            Op::Unpack { parts, a } => {
                let mut row = self.get(env, *a);
                for part in parts {
                    if !matches!(part, Reg::B16(NONE) | Reg::B32(NONE)) {
                        self.put(*part, &row, mask);
                    }
                    let bits = slot_bits(*part);
                    row = row.map(|v| v.checked_shr(bits).unwrap_or(0));
                }
            }
            Op::Load(access) => self.load(env, access, mask)?,
            Op::Store(access) => self.store(env, access, mask)?,
            Op::Atom(atom) => self.atom(env, atom, mask)?,
            Op::CopyAsync(copy) => self.copy_async(env, copy, mask)?,
            Op::Commit => {
                for lane in lanes(mask) {
                    self.committed[lane] += 1;
                }
            }
            Op::Wait { left } => self.wait(env, *left, mask)?,
            Op::Matrix(matrix) => {
                if !self.full_warp(env, mask)? {
                    return Ok(None);
                }
                self.matrix(env, matrix)?;
            }
            Op::Mma(mma) => {
                if !self.full_warp(env, mask)? {
                    return Ok(None);
                }
                self.mma(env, mma);
            }
            Op::Collective(w) => {
                if !self.warpwide(env, w, mask)? {
                    return Ok(None);
                }
            }
            Op::ActiveMask { d } => {
                let row = [self.active; 32];
                self.put32(*d, &row, mask);
            }
            Op::Barrier(barrier) => return self.barrier(env, barrier, mask),
            Op::BranchTable { index, targets } => {
                let index = *self.get32(env, *index);
                for lane in lanes(self.active) {
                    self.pcs[lane] = self.pc + 1;
                    if mask >> lane & 1 != 0 {
                        let Some(target) = targets.get(index[lane] as usize) else {
                            let what = format!("brx.idx {} of {} targets", index[lane], targets.len());
                            return Err(self.fault(Some(lane as u32), FaultKind::Divergent { what }));
                        };
                        self.pcs[lane] = *target;
                    }
                }
                let ready = self.live & !self.stalled;
                if let Some(pc) = lanes(ready).map(|l| self.pcs[l]).min() {
                    self.activate(pc);
                }
                return Ok(None);
            }
            Op::Exit => {
                self.exit(mask, env)?;
                return Ok(self.done().then_some(Stop::Done));
            }
            Op::Trap => return Err(self.fault(Some(mask.trailing_zeros()), FaultKind::Trap)),
            Op::Nop => {}
        }
        self.pc += 1;
        Ok(None)
    }

    /// An `.aligned` instruction: all lanes of a full warp run it. `false`: some are yet to come.
    fn full_warp(&mut self, env: &Env, mask: u32) -> Result<bool, RawFault> {
        if !self.converge(self.live, env)? {
            return Ok(false);
        }
        // The guard was evaluated for the lanes that were here before.
        let mask = if mask == u32::MAX { mask } else { self.active & self.guard(env) };
        if mask != u32::MAX {
            let what = format!("an instruction of the whole warp runs on lanes {mask:#010x} only");
            return Err(self.fault(None, FaultKind::Divergent { what }));
        }
        Ok(true)
    }

    /// The lanes for which the current instruction's guard holds.
    pub fn guard(&self, env: &Env) -> u32 {
        env.kernel.code[self.pc as usize].guard.lanes(&self.pred)
    }

    fn special(&self, env: &Env, which: SpecialRegister) -> Lanes64 {
        let lane: Lanes64 = std::array::from_fn(|i| i as u64);
        let [x, y, _] = env.block_dim.map(u64::from);
        let thread = lane.map(|l| l + u64::from(self.id) * 32);
        let all = |v: u64| [v; 32];
        match which {
            SpecialRegister::Tid(0) => thread.map(|t| t % x),
            SpecialRegister::Tid(1) => thread.map(|t| t / x % y),
            SpecialRegister::Tid(_) => thread.map(|t| t / (x * y)),
            SpecialRegister::Ntid(d) => all(env.block_dim[usize::from(d)].into()),
            SpecialRegister::Ctaid(d) => all(env.block[usize::from(d)].into()),
            SpecialRegister::Nctaid(d) => all(env.grid_dim[usize::from(d)].into()),
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
            SpecialRegister::TotalShared => all(env.shared.len() as u64),
        }
    }
}

fn slot_bits(slot: Reg) -> u32 {
    match slot {
        Reg::None => 0,
        Reg::B16(_) => 16,
        Reg::B32(_) => 32,
        Reg::B64(_) => 64,
    }
}

/// The lanes of a mask, lowest first.
#[inline]
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}
