//! `cp.async` and its waits.
//!
//! The schedule decides whether a copy takes effect at issue, at the wait, or in between. The source is read when it takes
//! effect.

use super::env::{CopyTiming, Env, RawFault};
use super::warp::{PendingCopy, Warp};
use crate::counts::{coalesce, conflicts};
use crate::error::{FaultKind, MemorySpace};
use crate::instruction::{CopyAsync, Reg};
use crate::lanes::lanes;
use crate::memory::AccessKind;

impl Warp {
    /// Issues a copy of each lane.
    pub fn copy_async(&mut self, env: &mut Env, copy: &CopyAsync, mask: u32) -> Result<(), RawFault> {
        let (dst, src) = (self.addresses(env, copy.dst), self.addresses(env, copy.src));
        let given = self.get(env, copy.src_size);
        let ignored = copy.ignore.map_or(0, |p| p.lanes(&self.pred));
        let size = copy.size;
        let timing = env.copy_timing();
        let (mut from_global, mut n) = ([0; 32], 0);
        let (mut to_shared, mut m) = ([0; 32], 0);
        for lane in lanes(mask) {
            let mut from = if copy.src_size == Reg::None { size } else { given[lane].min(size.into()) as u8 };
            if ignored >> lane & 1 != 0 {
                from = 0;
            }
            let fail = |kind| self.fault(Some(lane as u32), kind);
            let to = env.check_shared(dst[lane], size.into(), size.into()).map_err(fail)?;
            let mut data = [0; 16];
            if from > 0 {
                if !src[lane].is_multiple_of(size.into()) {
                    let (space, address) = (MemorySpace::Global, src[lane]);
                    return Err(fail(FaultKind::Misaligned { space, address, align: size.into() }));
                }
                // Bounds and initialisation are checked at issue, whenever the bytes move.
                data = read(env, src[lane], from, Some(self.pc)).map_err(fail)?;
                from_global[n] = src[lane];
                n += 1;
            }
            self.record_shared(env, to, size.into(), lane, AccessKind::AsyncWrite).map_err(fail)?;
            to_shared[m] = dst[lane];
            m += 1;
            let group = self.committed[lane];
            let landed = timing == CopyTiming::AtIssue;
            if landed {
                env.store_shared(to, &data[..size.into()]);
            }
            let (lane, pc, src) = (lane as u8, self.pc, src[lane]);
            self.copies.push(PendingCopy { lane, size, from, landed, group, pc, dst: to, src });
        }
        coalesce(&mut env.counts.loads, &from_global[..n], size.into());
        conflicts(&mut env.counts.shared_stores, &to_shared[..m], size.into());
        Ok(())
    }

    /// Closes the current group of each lane.
    pub fn commit(&mut self, mask: u32) {
        for lane in lanes(mask) {
            self.committed[lane] += 1;
        }
    }

    /// Waits until at most `left` groups of each lane are pending.
    pub fn wait(&mut self, env: &mut Env, left: u32, mask: u32) -> Result<(), RawFault> {
        let mut copies = std::mem::take(&mut self.copies);
        for copy in &mut copies {
            let lane = usize::from(copy.lane);
            // Only wait_all waits for a group that is not committed yet.
            let due = left == u32::MAX || copy.group + left < self.committed[lane];
            if mask >> lane & 1 == 0 || !due {
                continue;
            }
            land(env, copy).map_err(|kind| self.fault(Some(lane as u32), kind))?;
            let mut by = self.accessor(lane);
            by.pc = copy.pc;
            env.blocks[copy.dst.rank].shared.complete(copy.dst.at, copy.size.into(), &by);
            copy.size = 0;
        }
        copies.retain(|c| c.size != 0);
        self.copies = copies;
        Ok(())
    }

    /// Moves the bytes of some pending copies, at random.
    pub fn advance_copies(&mut self, env: &mut Env) -> Result<(), RawFault> {
        let mut copies = std::mem::take(&mut self.copies);
        for copy in copies.iter_mut().filter(|c| !c.landed) {
            if env.random(4) == 0 {
                land(env, copy).map_err(|kind| self.fault(Some(copy.lane.into()), kind))?;
            }
        }
        self.copies = copies;
        Ok(())
    }
}

/// Reads up to 16 bytes of global memory; checked for races if `pc` is given.
fn read(env: &mut Env, at: u64, bytes: u8, pc: Option<u32>) -> Result<[u8; 16], FaultKind> {
    let mut data = [0; 16];
    if bytes.is_power_of_two() {
        let value = env.load_global(at, bytes.into(), pc)?;
        data[..usize::from(bytes)].copy_from_slice(&value.to_le_bytes()[..usize::from(bytes)]);
        return Ok(data);
    }
    for i in 0..bytes {
        data[usize::from(i)] = env.load_global(at + u64::from(i), 1, pc)? as u8;
    }
    Ok(data)
}

/// Moves the bytes of a copy if they have not moved yet.
fn land(env: &mut Env, copy: &mut PendingCopy) -> Result<(), FaultKind> {
    if copy.landed {
        return Ok(());
    }
    copy.landed = true;
    let data = if copy.from > 0 { read(env, copy.src, copy.from, None)? } else { [0; 16] };
    env.store_shared(copy.dst, &data[..copy.size.into()]);
    Ok(())
}
