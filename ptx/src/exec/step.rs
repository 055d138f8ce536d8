//! The loop that runs the instructions of a warp, and the dispatch on their operations.

use super::env::{Env, RawFault};
use super::warp::{Stop, Warp};
use crate::error::FaultKind;
use crate::instruction::{Instruction, Op};

/// The next step of a warp after an instruction.
enum Follow {
    Next,
    /// The instruction once more, when other lanes have come.
    Again,
    Stop(Stop),
}

impl Warp {
    /// Runs up to `slice` instructions.
    pub fn run(&mut self, env: &mut Env, slice: u64) -> Result<Stop, RawFault> {
        self.resume_polled();
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
            let pc = self.pc;
            if env.early {
                env.too_early = mask & !self.waited != 0;
            }
            match self.step(env, inst, mask) {
                Ok(None) if self.all_polled => break Ok(Stop::Poll),
                Ok(None) => {}
                Ok(Some(stop)) => {
                    // What is tried again counts once.
                    env.executed[pc as usize] -= u64::from(stop == Stop::Poll && self.pc == pc);
                    // Other lanes of the warp may be those that it waits for.
                    if stop != Stop::Poll || !self.yield_lanes() {
                        break Ok(stop);
                    }
                }
                Err(fault) => break Err(fault),
            }
            if self.pc >= self.next {
                self.reconverge();
            }
        };
        // What is under way was checked at its issue.
        env.too_early = false;
        env.steps += slice - left;
        if env.steps > env.step_limit {
            return Err(self.fault(None, FaultKind::StepLimit { limit: env.step_limit }));
        }
        result
    }

    /// Executes one instruction for the lanes of `mask` and advances the program counter.
    ///
    /// An instruction that has to wait for other lanes of the warp leaves the program counter where it is.
    #[inline(always)]
    fn step(&mut self, env: &mut Env, inst: &Instruction, mask: u32) -> Result<Option<Stop>, RawFault> {
        match &inst.op {
            Op::Branch { target } => {
                self.branch(mask, *target);
                return Ok(None);
            }
            _ if mask == 0 => {}
            Op::Unary32 { f, d, a } => self.unary32(env, *f, *d, *a, mask),
            Op::Approx32 { f, d, a, units } => self.approx32(env, *f, *d, *a, *units, mask),
            Op::Binary32 { f, d, a, b } => self.binary32(env, *f, *d, [*a, *b], mask),
            Op::Ternary32 { f, d, a, b, c } => self.ternary32(env, *f, *d, [*a, *b, *c], mask),
            Op::Binary64 { f, d, a, b } => self.binary64(env, *f, *d, [*a, *b], mask),
            Op::Wide(wide) => self.wide(env, wide, mask),
            Op::Lop3 { d, a, b, c, lut } => self.lop3(env, *d, [*a, *b, *c], *lut, mask),
            Op::SetP32(set) => self.setp32(env, set, mask),
            Op::SetP64(set) => self.setp64(env, set, mask),
            Op::SetPacked(set) => self.setp_packed(env, set, mask),
            Op::Sel32 { d, a, b, p } => self.select32(env, *d, [*a, *b], *p, mask),
            Op::Sel64 { d, a, b, p } => self.select64(env, *d, [*a, *b], *p, mask),
            Op::Logic { d, a, b, join } => self.logic(*d, [*a, *b], *join, mask),
            Op::Special { d, which } => self.put(*d, &self.special(env, *which), mask),
            Op::Mov32 { d, a } => self.mov32(env, *d, *a, mask),
            Op::Mov64 { d, a } => self.mov64(env, *d, *a, mask),
            Op::Pack { d, parts } => self.pack(env, *d, parts, mask),
            Op::Unpack { parts, a } => self.unpack(env, parts, *a, mask),
            Op::Load(access) => self.load(env, access, mask)?,
            Op::Store(access) => self.store(env, access, mask)?,
            Op::Atom(atom) => self.atom(env, atom, mask)?,
            Op::CopyAsync(copy) => self.copy_async(env, copy, mask)?,
            Op::Commit => self.commit(mask),
            Op::Wait { left } => self.wait(env, *left, mask)?,
            Op::Matrix(access) => {
                if !self.matrix(env, access, mask)? {
                    return Ok(None);
                }
            }
            Op::Mma(mma) => {
                if !self.mma(env, mma, mask)? {
                    return Ok(None);
                }
            }
            Op::Collective(collective) => {
                if !self.collective(env, collective, mask)? {
                    return Ok(None);
                }
            }
            Op::ActiveMask { d } => self.put32(*d, &[self.active; 32], mask),
            Op::Barrier(barrier) => return self.barrier(env, barrier, mask),
            Op::BranchTable { index, targets } => {
                let index = *self.get32(env, *index);
                self.branch_table(&index, targets, mask)?;
                return Ok(None);
            }
            Op::Exit => {
                self.exit(mask, env)?;
                return Ok(self.done().then_some(Stop::Done));
            }
            Op::Trap => return Err(self.fault(Some(mask.trailing_zeros()), FaultKind::Trap)),
            Op::Nop => {}
            op => match self.asynchronous(env, op, mask)? {
                Follow::Next => {}
                Follow::Again => return Ok(None),
                Follow::Stop(stop) => return Ok(Some(stop)),
            },
        }
        self.pc += 1;
        Ok(None)
    }

    /// Executes an instruction of sm_90.
    fn asynchronous(&mut self, env: &mut Env, op: &Op, mask: u32) -> Result<Follow, RawFault> {
        let stopped = match op {
            Op::Mbarrier(m) => self.mbarrier(env, m, mask)?,
            Op::WgmmaWait { left } => self.wait_products(env, *left),
            Op::SetRegisters { count, increase } => self.set_registers(env, *count, *increase)?,
            Op::Wgmma(w) if !self.wgmma(env, w, mask)? => return Ok(Follow::Again),
            Op::ClusterArrive | Op::ClusterWait if !self.converge(self.live, env)? => return Ok(Follow::Again),
            Op::ClusterWait => self.cluster_wait(env)?,
            _ => None,
        };
        match op {
            Op::ArriveAfterCopies(m) => self.arrive_after_copies(env, m, mask)?,
            Op::Bulk(bulk) => self.bulk_copy(env, bulk, mask)?,
            Op::BulkCommit => self.bulk_commit(mask),
            Op::BulkWait { left, read } => self.bulk_wait(env, *left, *read, mask)?,
            Op::TensorMap(op) => self.tensor_map_op(env, op, mask)?,
            Op::FenceProxy => self.fence_proxy(),
            Op::GridWait => {
                self.waited |= mask;
                env.own().waited = true;
            }
            Op::WgmmaFence => self.product_fence = true,
            Op::WgmmaCommit => self.commit_products(env),
            Op::MapAddress { d, a, rank, generic } => self.map_address(env, *d, *a, *rank, *generic, mask)?,
            Op::RankOfAddress { d, a } => self.rank_of_address(env, *d, *a, mask),
            Op::ClusterArrive => self.cluster_arrive(env)?,
            _ => {}
        }
        Ok(stopped.map_or(Follow::Next, Follow::Stop))
    }
}
