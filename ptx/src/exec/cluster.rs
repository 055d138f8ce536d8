//! Clusters, registers of warpgroups, and the election of a lane.

use super::env::{Env, RawFault};
use super::warp::{Stop, Warp, join};
use crate::error::FaultKind;
use crate::instruction::Reg;
use crate::lanes::lanes;
use crate::space::{SHARED_RANK_SHIFT, SHARED_WINDOW};

/// Registers of a multiprocessor.
const REGISTERS: u32 = 65_536;

impl Warp {
    /// `mapa`: the address of the same place in the shared memory of another block of the cluster.
    pub fn map_address(
        &mut self,
        env: &Env,
        d: Reg,
        a: Reg,
        rank: u32,
        generic: bool,
        mask: u32,
    ) -> Result<(), RawFault> {
        let (address, rank) = (self.get(env, a), *self.get32(env, rank));
        let mut out = [0; 32];
        for lane in lanes(mask) {
            if rank[lane] as usize >= env.blocks.len() {
                let what = format!("mapa to block {} of a cluster of {}", rank[lane], env.blocks.len());
                return Err(self.fault(Some(lane as u32), FaultKind::Asynchronous(what)));
            }
            let window = if generic { SHARED_WINDOW } else { 0 };
            let at = (address[lane] - window.min(address[lane])) & ((1 << SHARED_RANK_SHIFT) - 1);
            out[lane] = window + (u64::from(rank[lane] + 1) << SHARED_RANK_SHIFT) + at;
        }
        self.put(d, &out, mask);
        Ok(())
    }

    /// The rank of the block that an address of shared memory belongs to.
    pub fn rank_of_address(&mut self, env: &Env, d: Reg, a: Reg, mask: u32) {
        let own = env.rank as u64;
        let rank = self.get(env, a).map(|a| match a >> SHARED_RANK_SHIFT & 0xff {
            0 => own,
            n => n - 1,
        });
        self.put(d, &rank, mask);
    }

    /// Arrives at the barrier of the cluster; the lanes of a warp together.
    pub fn cluster_arrive(&mut self, env: &mut Env) -> Result<(), RawFault> {
        if self.cluster_generation.is_some() {
            let what = "a second barrier.cluster.arrive before barrier.cluster.wait".to_owned();
            return Err(self.fault(None, FaultKind::Divergent { what }));
        }
        self.cluster_generation = Some(env.cluster_barrier.generation);
        self.clock[usize::from(self.number)] += 1;
        let barrier = &mut env.cluster_barrier;
        barrier.arrived += 1;
        join(&mut barrier.clock, &self.clock);
        join(&mut barrier.fenced, &self.fenced);
        self.sync = self.serial;
        env.progress += 1;
        Ok(())
    }

    /// Waits at the barrier of the cluster.
    pub fn cluster_wait(&mut self, env: &mut Env) -> Result<Option<Stop>, RawFault> {
        let Some(generation) = self.cluster_generation else {
            let what = "barrier.cluster.wait without an arrive before it".to_owned();
            return Err(self.fault(None, FaultKind::Divergent { what }));
        };
        let all = env.cluster_warps() as u32 - env.exited;
        let barrier = &mut env.cluster_barrier;
        if generation == barrier.generation {
            if barrier.arrived < all {
                return Ok(Some(Stop::Poll));
            }
            barrier.generation += 1;
            barrier.arrived = 0;
            barrier.done_clock = std::mem::take(&mut barrier.clock);
            barrier.done_fenced = std::mem::take(&mut barrier.fenced);
        }
        join(&mut self.clock, &barrier.done_clock);
        join(&mut self.fenced, &barrier.done_fenced);
        self.cluster_generation = None;
        self.sync = self.serial;
        Ok(None)
    }

    /// `setmaxnreg`: what all warps of the block hold must fit into the multiprocessor.
    pub fn set_registers(&mut self, env: &mut Env, count: u32, increase: bool) -> Result<Option<Stop>, RawFault> {
        let fail = |what: String| Err(self.fault(None, FaultKind::Asynchronous(what)));
        if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
            return fail(format!("setmaxnreg to {count}; multiples of 8 from 24 to 256 are possible"));
        }
        let warps = env.warps();
        // What ptxas gives at the entry is not known where the kernel does not say it: an equal share of all.
        let share = env.kernel.registers.unwrap_or((REGISTERS / (32 * warps as u32)).min(256) / 8 * 8);
        let id = usize::from(self.id);
        let registers = &mut env.blocks[env.rank].registers;
        registers.resize(warps, share);
        let before = registers[id];
        if increase == (count < before) && count != before {
            let (kind, to) = if increase { ("inc", "above") } else { ("dec", "below") };
            return fail(format!("setmaxnreg.{kind} to {count} from {before}, which is not {to} it"));
        }
        let total = |r: &[u32]| r.iter().sum::<u32>() * 32;
        registers[id] = count;
        if increase && total(registers) > REGISTERS {
            registers[id] = before;
            return Ok(Some(Stop::Poll));
        }
        env.progress += 1;
        Ok(None)
    }
}
