//! The state of a warp: registers, local memory, lanes, clocks.

use super::env::{Env, RawFault};
use crate::error::FaultKind;
use crate::instruction::{CONST, NONE, Reg};
use crate::lanes::{Lanes32, Lanes64};

/// Reasons for a warp to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Its time slice is over.
    TimeSlice,
    /// It waits at a barrier.
    Barrier,
    /// All lanes have exited.
    Done,
}

/// The barrier at which a warp waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BarrierWait {
    pub id: u32,
    /// Number of threads the barrier waits for; `None`: the whole block.
    pub count: Option<u32>,
    pub pc: u32,
    /// Lanes for which the reduction's predicate holds.
    pub vote: u32,
}

/// A `cp.async` of one lane that was not waited for yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingCopy {
    pub lane: u8,
    pub size: u8,
    /// Bytes read from the source; the rest is zero.
    pub from: u8,
    /// Whether the bytes have moved.
    pub landed: bool,
    pub group: u32,
    pub pc: u32,
    pub dst: usize,
    pub src: u64,
}

/// A warp of the current block.
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
    /// Program counters of the other lanes.
    pub(super) pcs: [u32; 32],
    /// Lowest program counter of the other lanes that are not stalled.
    pub(super) next: u32,
    /// Lanes that wait for others at an instruction.
    pub(super) stalled: u32,
    /// The live lanes when the stalled ones last tried again.
    pub(super) retried: u32,
    /// Number of instructions so far.
    pub serial: u32,
    /// `serial` at the last synchronisation of the lanes.
    pub sync: u32,
    /// Vector clock: for each warp, the clock below which all its accesses came before; see `memory::thread_races`.
    pub clock: Vec<u32>,
    pub copies: Vec<PendingCopy>,
    /// Groups of `cp.async` committed by each lane.
    pub committed: [u32; 32],
    pub waiting: Option<BarrierWait>,
}

/// The value of a register that was never written: as a number a NaN, as an address out of bounds.
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

    /// Resets the warp for the next block.
    pub fn reset(&mut self, env: &Env) {
        let threads = env.threads();
        let first = u32::from(self.id) * 32;
        let lanes = (threads - first).min(32);
        // The initial value of a register is undefined; a zero would hide the use of one.
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

    /// Whether all lanes have exited.
    pub fn done(&self) -> bool {
        self.live == 0
    }

    /// Whether the warp has lanes to run and does not wait at a barrier.
    pub fn ready(&self) -> bool {
        !self.done() && self.waiting.is_none()
    }

    /// A fault at the current instruction.
    pub fn fault(&self, lane: Option<u32>, kind: FaultKind) -> RawFault {
        RawFault { pc: self.pc, warp: self.id, lane, kind }
    }

    /// Reads a 32-bit operand.
    #[inline(always)]
    pub fn get32<'b>(&'b self, env: &'b Env, r: u32) -> &'b Lanes32 {
        if r & CONST != 0 { &env.const32[(r & !CONST) as usize] } else { &self.r32[r as usize] }
    }

    /// Reads a 64-bit operand.
    #[inline(always)]
    pub fn get64<'b>(&'b self, env: &'b Env, r: u32) -> &'b Lanes64 {
        if r & CONST != 0 { &env.const64[(r & !CONST) as usize] } else { &self.r64[r as usize] }
    }

    /// Reads an operand of any width, zero-extended to 64 bits; zero for [`Reg::None`].
    #[inline]
    pub fn get(&self, env: &Env, reg: Reg) -> Lanes64 {
        match reg {
            Reg::None => [0; 32],
            Reg::B16(r) | Reg::B32(r) => self.get32(env, r).map(u64::from),
            Reg::B64(r) => *self.get64(env, r),
        }
    }

    /// Writes the lanes of `mask` of a 32-bit register.
    #[inline(always)]
    pub fn put32(&mut self, d: u32, values: &Lanes32, mask: u32) {
        let to = &mut self.r32[d as usize];
        if mask == u32::MAX {
            *to = *values;
        } else {
            for i in 0..32 {
                let m = (mask >> i & 1).wrapping_neg();
                to[i] = (values[i] & m) | (to[i] & !m);
            }
        }
    }

    /// Writes the lanes of `mask` of a 64-bit register.
    #[inline(always)]
    pub fn put64(&mut self, d: u32, values: &Lanes64, mask: u32) {
        let to = &mut self.r64[d as usize];
        if mask == u32::MAX {
            *to = *values;
        } else {
            for i in 0..32 {
                let m = u64::from(mask >> i & 1).wrapping_neg();
                to[i] = (values[i] & m) | (to[i] & !m);
            }
        }
    }

    /// Writes the lanes of `mask` of a register of any width, truncated to it.
    #[inline]
    pub fn put(&mut self, d: Reg, values: &Lanes64, mask: u32) {
        match d {
            Reg::None => {}
            Reg::B16(d) => self.put32(d, &values.map(|v| v as u32 & 0xffff), mask),
            Reg::B32(d) => self.put32(d, &values.map(|v| v as u32), mask),
            Reg::B64(d) => self.put64(d, values, mask),
        }
    }

    /// Writes the lanes of `mask` of a predicate, one bit per lane.
    pub fn put_pred(&mut self, p: u32, bits: u32, mask: u32) {
        if p != NONE {
            let to = &mut self.pred[p as usize];
            *to = (bits & mask) | (*to & !mask);
        }
    }

    /// The lanes for which the current instruction's guard holds.
    pub fn guard(&self, env: &Env) -> u32 {
        env.kernel.code[self.pc as usize].guard.lanes(&self.pred)
    }
}
