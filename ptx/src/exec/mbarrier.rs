//! mbarriers: phases that end when all arrivals and all bytes have come.

use super::env::{Env, RawFault};
use super::warp::{Stop, Warp, join, learn};
use crate::asynchronous::{MbarrierAction, MbarrierOp};
use crate::error::{FaultKind, Hazard, MemorySpace};
use crate::lanes::lanes;
use crate::memory::{Mbarrier, SharedPlace};
use crate::space::{StateSpace, resolve};

/// The most arrivals or bytes that one may count.
const MOST: i64 = (1 << 20) - 1;

impl Env<'_> {
    /// The mbarrier at an address.
    pub fn mbarrier(&mut self, place: SharedPlace) -> Result<&mut Mbarrier, FaultKind> {
        self.blocks[place.rank].mbarriers.get_mut(&place.at).ok_or_else(|| {
            FaultKind::Asynchronous(format!("no mbarrier was initialised at shared address {:#x}", place.at))
        })
    }

    /// Counts bytes that have landed.
    pub fn complete_bytes(&mut self, place: SharedPlace, bytes: i64) -> Result<(), FaultKind> {
        self.progress += 1;
        let mbarrier = self.mbarrier(place)?;
        mbarrier.bytes -= bytes;
        self.settle(place)
    }

    /// Ends the phase if nothing is missing.
    fn settle(&mut self, place: SharedPlace) -> Result<(), FaultKind> {
        let mbarrier = self.mbarrier(place)?;
        if mbarrier.pending < 0 {
            let expected = mbarrier.expected;
            let what = format!("more arrivals than the {expected} of a phase at the mbarrier at {:#x}", place.at);
            return Err(FaultKind::Asynchronous(what));
        }
        if mbarrier.pending > 0 || mbarrier.bytes != 0 {
            return Ok(());
        }
        mbarrier.phase += 1;
        mbarrier.pending = mbarrier.expected;
        let (clock, fenced) = (std::mem::take(&mut mbarrier.clock), std::mem::take(&mut mbarrier.fenced));
        join(&mut mbarrier.done_clock, &clock);
        join(&mut mbarrier.done_fenced, &fenced);
        let phase = mbarrier.phase;
        learn(&mut mbarrier.done_clock, mbarrier.author, phase);
        let late = self.bulk.iter().find(|c| c.mbarrier == Some((place, phase - 1)) && !c.landed);
        if let Some(copy) = late {
            return Err(FaultKind::Asynchronous(format!(
                "a phase of the mbarrier at {:#x} ends while the copy of {} bytes at {} is under way: fewer bytes are expected than \
                 are copied",
                place.at,
                copy.bytes,
                self.site(copy.pc)
            )));
        }
        self.bulk.retain(|c| c.mbarrier != Some((place, phase - 1)));
        Ok(())
    }

    /// Describes what the mbarriers lack, for a deadlock.
    pub fn mbarriers_lack(&self) -> String {
        let mut text = String::new();
        for (rank, block) in self.blocks.iter().enumerate() {
            for (at, m) in &block.mbarriers {
                if text.len() < 800 {
                    let of = if rank > 0 { format!(" of block {rank} of the cluster") } else { String::new() };
                    text += &format!(
                        "; the mbarrier at {at:#x}{of} in phase {} lacks {} arrivals and {} bytes",
                        m.phase, m.pending, m.bytes
                    );
                }
            }
        }
        text
    }
}

impl Warp {
    /// The place of an mbarrier.
    pub(super) fn mbarrier_place(
        &self,
        env: &Env,
        space: StateSpace,
        address: u64,
        lane: usize,
    ) -> Result<SharedPlace, RawFault> {
        let fail = |kind| self.fault(Some(lane as u32), kind);
        let (space, at) = resolve(space, address);
        if space != StateSpace::Shared {
            return Err(fail(FaultKind::Asynchronous(format!(
                "an mbarrier at {address:#x}, outside of shared memory"
            ))));
        }
        env.check_shared(at, 8, 8).map_err(fail)
    }

    /// Runs an operation on an mbarrier for each lane.
    pub fn mbarrier(&mut self, env: &mut Env, m: &MbarrierOp, mask: u32) -> Result<Option<Stop>, RawFault> {
        let address = self.addresses(env, m.addr);
        let operand = self.get(env, m.a);
        if m.action == MbarrierAction::PendingCount {
            self.put(m.dst, &operand.map(|v| v >> 32), mask);
            return Ok(None);
        }
        let mut out = [0; 32];
        let mut holds = 0u32;
        if !matches!(m.action, MbarrierAction::TestWait { .. }) {
            // What comes after an arrival is not known to those who wait for it.
            self.clock[usize::from(self.number)] += 1;
        }
        for lane in lanes(mask) {
            let place = self.mbarrier_place(env, m.space, address[lane], lane)?;
            let fail = |kind| self.fault(Some(lane as u32), kind);
            if m.action == MbarrierAction::Init {
                self.init_mbarrier(env, place, operand[lane] as i64).map_err(fail)?;
                continue;
            }
            self.ordered_after_init(env, place).map_err(fail)?;
            let value = operand[lane];
            match m.action {
                MbarrierAction::Inval => {
                    env.blocks[place.rank].mbarriers.remove(&place.at);
                }
                MbarrierAction::TestWait { parity, .. } => {
                    let phase = env.mbarrier(place).map_err(fail)?.phase;
                    let over = if parity {
                        u64::from(phase & 1) != value & 1
                    } else {
                        u64::from(phase) != value & 0xffff_ffff
                    };
                    holds |= u32::from(over) << lane;
                }
                _ => out[lane] = self.arrive_at(env, place, m.action, value as i64).map_err(fail)?,
            }
        }
        if let MbarrierAction::TestWait { .. } = m.action {
            for lane in lanes(mask & holds) {
                let place = self.mbarrier_place(env, m.space, address[lane], lane)?;
                let mbarrier = env.mbarrier(place).map_err(|kind| self.fault(Some(lane as u32), kind))?;
                join(&mut self.clock, &mbarrier.done_clock);
                join(&mut self.fenced, &mbarrier.done_fenced);
            }
            self.put_pred(m.pred, holds, mask);
            if holds & mask != mask {
                self.pc += 1;
                return Ok(Some(Stop::Poll));
            }
            return Ok(None);
        }
        self.put(m.dst, &out, mask);
        Ok(None)
    }

    fn init_mbarrier(&self, env: &mut Env, place: SharedPlace, count: i64) -> Result<(), FaultKind> {
        if !(1..=MOST).contains(&count) {
            return Err(FaultKind::Asynchronous(format!("an mbarrier for {count} arrivals; 1 to {MOST} are possible")));
        }
        // The bytes may be another's later: Triton initialises mbarriers that it does not use, beneath its tiles.
        let author = env.authors;
        env.authors += 1;
        let init = (self.number, self.clock[usize::from(self.number)]);
        let mbarrier = Mbarrier { expected: count, pending: count, author, init, ..Mbarrier::default() };
        env.blocks[place.rank].mbarriers.insert(place.at, mbarrier);
        Ok(())
    }

    /// Checks that a barrier, or the own warp's order, lies between the initialisation of an mbarrier and its use.
    fn ordered_after_init(&self, env: &mut Env, place: SharedPlace) -> Result<(), FaultKind> {
        let (warp, clock) = env.mbarrier(place)?.init;
        let known = self.clock.get(usize::from(warp)).copied().unwrap_or(0);
        if !env.check_races || warp == self.number || known > clock {
            return Ok(());
        }
        Err(FaultKind::Race {
            hazard: Hazard::ReadAfterWrite,
            space: MemorySpace::Shared,
            address: place.at as u64,
            other: Box::new(env.site(self.pc)),
            other_thread: format!("the mbarrier.init of {}", env.author(warp, None)),
        })
    }

    /// Arrives, or expects or completes bytes; returns the state before, a phase with the arrivals that it lacked above.
    fn arrive_at(
        &self,
        env: &mut Env,
        place: SharedPlace,
        action: MbarrierAction,
        value: i64,
    ) -> Result<u64, FaultKind> {
        env.progress += 1;
        let mbarrier = env.mbarrier(place)?;
        let state = u64::from(mbarrier.phase) | (mbarrier.pending as u64) << 32;
        if !(0..=MOST).contains(&value) {
            return Err(FaultKind::Asynchronous(format!(
                "{value} arrivals or bytes at an mbarrier; up to {MOST} are possible"
            )));
        }
        let arrivals = match action {
            MbarrierAction::ExpectBytes => {
                mbarrier.bytes += value;
                return Ok(state);
            }
            MbarrierAction::CompleteBytes => {
                mbarrier.bytes -= value;
                0
            }
            MbarrierAction::ArriveExpectBytes => {
                mbarrier.bytes += value;
                1
            }
            MbarrierAction::ArriveDrop => {
                mbarrier.expected -= value;
                value
            }
            _ => value,
        };
        join(&mut mbarrier.clock, &self.clock);
        join(&mut mbarrier.fenced, &self.fenced);
        mbarrier.pending -= arrivals;
        if action == MbarrierAction::ArriveNoComplete && mbarrier.pending <= 0 {
            return Err(FaultKind::Asynchronous("mbarrier.arrive.noComplete completes the phase".to_owned()));
        }
        env.settle(place)?;
        Ok(state)
    }

    /// Arrives once the lane's `cp.async` are over, which is now.
    pub fn arrive_after_copies(&mut self, env: &mut Env, m: &MbarrierOp, mask: u32) -> Result<(), RawFault> {
        self.wait(env, u32::MAX, mask)?;
        self.clock[usize::from(self.number)] += 1;
        let address = self.addresses(env, m.addr);
        for lane in lanes(mask) {
            let place = self.mbarrier_place(env, m.space, address[lane], lane)?;
            let fail = |kind| self.fault(Some(lane as u32), kind);
            if m.action != MbarrierAction::ArriveNoComplete {
                // Without .noinc the phase expects one more arrival, which this one is.
                env.mbarrier(place).map_err(fail)?.pending += 1;
            }
            self.ordered_after_init(env, place).map_err(fail)?;
            self.arrive_at(env, place, MbarrierAction::Arrive, 1).map_err(fail)?;
        }
        Ok(())
    }

    /// `fence.proxy.async`: what is known to be written is in sight of the asynchronous proxy.
    /// A fence of some lanes counts for all of the warp.
    pub fn fence_proxy(&mut self) {
        self.clock[usize::from(self.number)] += 1;
        self.fenced = self.clock.clone();
    }
}
