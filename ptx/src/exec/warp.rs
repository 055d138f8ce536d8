//! The state of a warp: registers, local memory, lanes, clocks.

use super::env::{Env, RawFault};
use crate::error::FaultKind;
use crate::instruction::{CONST, NONE, Reg};
use crate::lanes::{Lanes32, Lanes64};
use crate::memory::SharedPlace;

/// Reasons for a warp to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Its time slice is over.
    TimeSlice,
    /// It asks for something that has yet to happen.
    Poll,
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
    pub dst: SharedPlace,
    pub src: u64,
}

/// Accumulators of pending products, which only they may touch.
#[derive(Clone)]
pub(crate) struct Accumulators {
    /// The group of the last product.
    pub group: u32,
    pub values: Vec<Lanes32>,
    /// For each value the registers that get it, the accumulator's own and what it was moved to meanwhile.
    pub registers: Vec<Vec<(u32, Portion)>>,
}

/// The bits of a value that a register gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Portion {
    All,
    Low,
    High,
}

/// A warp of the current block.
pub(crate) struct Warp {
    /// Index in the block.
    pub id: u16,
    /// The block's rank in the cluster.
    pub rank: usize,
    /// Index in the cluster: the author of accesses.
    pub number: u16,
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
    /// Lanes that asked in vain for something in this slice.
    pub(super) polled: u32,
    /// Whether they are all that can run.
    pub(super) all_polled: bool,
    /// The number of times in turn that all lanes have asked in vain, and the state of [`Env::progress`] meanwhile.
    pub idle: (u32, u64),
    /// For each author, the clock below which its writes were followed by a fence for the asynchronous proxy.
    pub fenced: Vec<u32>,
    /// The generation of the cluster's barrier that each lane waits for.
    pub cluster_generation: Option<u32>,
    /// Accumulators of pending `wgmma`, the groups committed, and whether a `wgmma.fence` came after the last commit.
    pub accumulators: Vec<Accumulators>,
    pub product_groups: u32,
    pub product_fence: bool,
    /// Groups of bulk copies committed by each lane.
    pub bulk_committed: [u32; 32],
    /// Lanes that have waited for the launch before.
    pub waited: u32,
}

/// The value of a register that was never written: as a number a NaN, as an address out of bounds.
pub(super) const UNSET: u32 = 0x7fff_dead;

/// Raises one entry of a vector clock.
pub(super) fn learn(clock: &mut Vec<u32>, author: u16, until: u32) {
    let author = usize::from(author);
    if clock.len() <= author {
        clock.resize(author + 1, 0);
    }
    clock[author] = clock[author].max(until);
}

/// Raises a vector clock to the maximum of both.
pub(super) fn join(clock: &mut Vec<u32>, other: &[u32]) {
    if clock.len() < other.len() {
        clock.resize(other.len(), 0);
    }
    for (c, o) in clock.iter_mut().zip(other) {
        *c = (*c).max(*o);
    }
}

impl Warp {
    pub fn new(number: u16, env: &Env) -> Self {
        let (id, rank) = (number % env.warps() as u16, usize::from(number) / env.warps());
        let kernel = env.kernel;
        let local = kernel.local_bytes * 32;
        let mut warp = Self {
            id,
            rank,
            number,
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
            polled: 0,
            all_polled: false,
            idle: (0, 0),
            fenced: Vec::new(),
            cluster_generation: None,
            accumulators: Vec::new(),
            product_groups: 0,
            product_fence: false,
            bulk_committed: [0; 32],
            waited: 0,
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
        self.clock.clear();
        self.clock.resize(env.cluster_warps(), 0);
        self.clock[usize::from(self.number)] = 1;
        self.fenced.clear();
        (self.polled, self.all_polled, self.idle, self.cluster_generation) = (0, false, (0, 0), None);
        self.accumulators.clear();
        (self.product_groups, self.product_fence) = (0, false);
        self.bulk_committed = [0; 32];
        self.waited = 0;
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
