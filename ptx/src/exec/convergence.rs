//! Divergence and reconvergence of the lanes of a warp.
//!
//! All lanes at the lowest program counter run together. While every live lane is there, which is most of the time, the
//! program counters of single lanes are not looked at. A lane that reaches an operation which needs other lanes stalls until
//! they arrive at the same instruction.

use super::env::{Env, RawFault};
use super::warp::Warp;
use crate::error::FaultKind;
use crate::lanes::{Lanes32, lanes};

impl Warp {
    /// Stores the program counter of the active lanes and activates the lanes at the lowest one.
    pub(super) fn reconverge(&mut self) {
        self.store_pcs();
        self.activate_lowest();
    }

    fn store_pcs(&mut self) {
        for lane in lanes(self.active) {
            self.pcs[lane] = self.pc;
        }
    }

    /// Activates the lanes at the lowest program counter of those that are not stalled.
    fn activate_lowest(&mut self) {
        let ready = self.live & !self.stalled & !self.polled;
        if let Some(pc) = lanes(ready).map(|l| self.pcs[l]).min() {
            self.activate(pc);
        }
    }

    /// Activates the live lanes at `pc`, stalled ones too.
    fn activate(&mut self, pc: u32) {
        self.active = lanes(self.live).filter(|l| self.pcs[*l] == pc).fold(0, |m, l| m | 1 << l);
        self.stalled &= !self.active;
        self.polled &= !self.active;
        self.pc = pc;
        let others = self.live & !self.active & !self.stalled & !self.polled;
        self.next = lanes(others).map(|l| self.pcs[l]).min().unwrap_or(u32::MAX);
    }

    /// Waits for the lanes of `need` to arrive at the current instruction.
    ///
    /// Returns `false` if some have yet to arrive: the active lanes stall, and others run meanwhile.
    pub(super) fn converge(&mut self, need: u32, env: &Env) -> Result<bool, RawFault> {
        if need & !self.active == 0 {
            return Ok(true);
        }
        self.store_pcs();
        self.activate(self.pc);
        if need & !self.active == 0 {
            return Ok(true);
        }
        self.stalled |= self.active;
        self.resume_others(env)?;
        Ok(false)
    }

    /// Waits for all lanes of a full warp, as an `.aligned` instruction requires; returns `false` if some have yet to arrive.
    pub(super) fn converge_full(&mut self, env: &Env, mask: u32) -> Result<bool, RawFault> {
        if !self.converge(self.live, env)? {
            return Ok(false);
        }
        // `mask` holds the guard of the lanes that were active before.
        let mask = if mask == u32::MAX { mask } else { self.active & self.guard(env) };
        if mask != u32::MAX {
            let what = format!("an instruction of the whole warp runs on lanes {mask:#010x} only");
            return Err(self.fault(None, FaultKind::Divergent { what }));
        }
        Ok(true)
    }

    /// Resumes other lanes after the active ones stalled or exited.
    fn resume_others(&mut self, env: &Env) -> Result<(), RawFault> {
        if self.live == 0 {
            return Ok(());
        }
        if self.live & !self.stalled & !self.polled == 0 && self.polled != 0 {
            // The next slice begins with the lanes that ask again.
            self.all_polled = true;
            return Ok(());
        }
        if self.live & !self.stalled == 0 {
            if self.retried == self.live {
                let pc = lanes(self.live).map(|l| self.pcs[l]).min().unwrap_or(self.pc);
                let kind = FaultKind::Divergent { what: self.whereabouts(env) };
                return Err(RawFault { pc, ..self.fault(None, kind) });
            }
            // Lanes have exited since the last retry, so the stalled ones may no longer have to wait for them.
            self.retried = self.live;
            self.stalled = 0;
        }
        self.activate_lowest();
        Ok(())
    }

    /// Runs the lanes that did not ask in vain in this slice; returns `false` if there are none.
    pub(super) fn yield_lanes(&mut self) -> bool {
        let others = self.live & !self.active & !self.stalled & !self.polled;
        if others == 0 {
            return false;
        }
        self.store_pcs();
        self.polled |= self.active;
        self.activate_lowest();
        true
    }

    /// Wakes the lanes that asked in vain.
    pub(super) fn resume_polled(&mut self) {
        if self.polled != 0 {
            if !self.all_polled {
                self.store_pcs();
            }
            (self.polled, self.all_polled) = (0, false);
            self.activate_lowest();
        }
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

    /// Ends the lanes of `mask`.
    pub(super) fn exit(&mut self, mask: u32, env: &Env) -> Result<(), RawFault> {
        self.live &= !mask;
        self.active &= !mask;
        if self.active != 0 {
            self.pc += 1;
            return Ok(());
        }
        self.resume_others(env)
    }

    /// Branches the lanes of `mask` to `target`; the other active lanes go on.
    pub(super) fn branch(&mut self, mask: u32, target: u32) {
        if mask == self.active {
            self.pc = target;
        } else if mask == 0 {
            self.pc += 1;
        } else {
            for lane in lanes(self.active) {
                self.pcs[lane] = if mask >> lane & 1 != 0 { target } else { self.pc + 1 };
            }
            self.activate_lowest();
        }
    }

    /// Branches each lane of `mask` to the target of its index; the other active lanes go on.
    pub(super) fn branch_table(&mut self, index: &Lanes32, targets: &[u32], mask: u32) -> Result<(), RawFault> {
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
        self.activate_lowest();
        Ok(())
    }
}
