//! Operations across the lanes of a warp, and the arrival at barriers.

use super::env::{Env, RawFault};
use super::warp::{BarrierWait, Stop, Warp};
use crate::error::FaultKind;
use crate::instruction::{BarReduce, Barrier, Collective, CollectiveOp, NONE, Reg, ShflMode};
use crate::lanes::{Lanes32, Lanes64, lanes};

impl Warp {
    /// Runs an operation over the lanes of a member mask; returns `false` if some of them have yet to arrive.
    pub fn collective(&mut self, env: &mut Env, w: &Collective, mask: u32) -> Result<bool, RawFault> {
        let members = *self.get32(env, w.members);
        let need = lanes(mask).fold(0, |m, l| m | members[l]) & self.live;
        if !self.converge(need, env)? {
            return Ok(false);
        }
        let mask = self.active & self.guard(env);
        for lane in lanes(mask) {
            let own = members[lane];
            let what = if own >> lane & 1 == 0 {
                format!("the member mask {own:#010x} does not hold lane {lane}, which runs this")
            } else if own & self.live & !mask != 0 {
                format!("lanes {:#010x} of the member mask {own:#010x} do not run this", own & self.live & !mask)
            } else {
                continue;
            };
            return Err(self.fault(Some(lane as u32), FaultKind::Divergent { what }));
        }
        self.sync = self.serial;
        let a = self.get(env, w.a);
        let vote = w.vote.lanes(&self.pred);
        let mut out: Lanes64 = [0; 32];
        let mut bits = 0u32;
        match w.op {
            CollectiveOp::Barrier => {}
            CollectiveOp::Shfl(mode) => {
                let (b, c) = (self.get(env, w.b), self.get(env, w.c));
                for lane in lanes(mask) {
                    let (from, valid) = shuffle(mode, lane as u32, b[lane] as u32, c[lane] as u32);
                    if mask >> from & 1 == 0 {
                        let what = format!("lane {lane} reads from lane {from}, which does not run this");
                        return Err(self.fault(Some(lane as u32), FaultKind::Divergent { what }));
                    }
                    out[lane] = a[from as usize];
                    bits |= u32::from(valid) << lane;
                }
            }
            _ => {
                for lane in lanes(mask) {
                    let own = members[lane] & mask;
                    let (value, bit) = combine(w.op, lane, own, vote, &a);
                    out[lane] = value;
                    bits |= u32::from(bit) << lane;
                }
            }
        }
        self.put(w.dst, &out, mask);
        self.put_pred(w.pred, bits, mask);
        Ok(true)
    }

    /// Arrives at a barrier of the block.
    pub fn barrier(&mut self, env: &mut Env, barrier: &Barrier, mask: u32) -> Result<Option<Stop>, RawFault> {
        if !self.converge(self.live, env)? {
            return Ok(None);
        }
        let mask = if barrier.aligned { mask } else { self.active & self.guard(env) };
        if mask != self.live && self.guard(env) & self.live != self.live {
            let what = format!("lanes {mask:#010x} of {:#010x} reach a barrier of the block", self.live);
            return Err(self.fault(None, FaultKind::Divergent { what }));
        }
        let first = self.live.trailing_zeros() as usize;
        let uniform = |values: &Lanes32| lanes(self.live).all(|l| values[l] == values[first]).then_some(values[first]);
        let id = uniform(self.get32(env, barrier.id));
        let count = if barrier.count == NONE { Some(None) } else { uniform(self.get32(env, barrier.count)).map(Some) };
        let (Some(id @ 0..16), Some(count)) = (id, count) else {
            let what = "the number of a barrier, which must be below 16, or its count differ between lanes".to_owned();
            return Err(self.fault(None, FaultKind::Divergent { what }));
        };
        if count.is_some_and(|c| c == 0 || c % 32 != 0) {
            let what = format!("a barrier for {} threads, which is no multiple of 32", count.unwrap_or(0));
            return Err(self.fault(None, FaultKind::Divergent { what }));
        }
        let vote = barrier.reduce.map_or(0, |(_, p)| p.lanes(&self.pred) & self.live);
        let own = usize::from(self.number);
        self.clock[own] += 1;
        self.sync = self.serial;
        self.waiting = Some(BarrierWait { id, count, pc: self.pc, vote });
        env.counts.barriers += 1;
        self.pc += 1;
        Ok(Some(Stop::Barrier))
    }

    /// Writes the result of a barrier's reduction to all lanes.
    pub fn put_reduction(&mut self, barrier: &Barrier, holds: u32, threads: u32) {
        let Some((which, _)) = barrier.reduce else { return };
        match which {
            BarReduce::Popc => self.put(Reg::B32(barrier.dst), &[holds.into(); 32], self.live),
            BarReduce::And => self.put_pred(barrier.dst, if holds == threads { u32::MAX } else { 0 }, self.live),
            BarReduce::Or => self.put_pred(barrier.dst, if holds > 0 { u32::MAX } else { 0 }, self.live),
        }
    }
}

/// The source lane of a shuffle, and whether it is in range; the own lane if not.
fn shuffle(mode: ShflMode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (segment, clamp) = (c >> 8 & 31, c & 31);
    let b = b & 31;
    let max = (lane & segment) | (clamp & !segment);
    let min = lane & segment;
    let (from, valid) = match mode {
        ShflMode::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= max as i32),
        ShflMode::Down => (lane + b, lane + b <= max),
        ShflMode::Bfly => (lane ^ b, lane ^ b <= max),
        ShflMode::Idx => {
            let from = min | (b & !segment);
            (from, from <= max)
        }
    };
    if valid { (from & 31, true) } else { (lane, false) }
}

/// Computes votes, matches and reductions for one lane over its members: a value and a predicate.
fn combine(op: CollectiveOp, lane: usize, members: u32, vote: u32, a: &Lanes64) -> (u64, bool) {
    let values = || lanes(members).map(|l| a[l] as u32);
    let reduce = |f: fn(u32, u32) -> u32| (u64::from(values().reduce(f).unwrap_or(0)), false);
    match op {
        CollectiveOp::VoteAll => (0, vote & members == members),
        CollectiveOp::VoteAny => (0, vote & members != 0),
        CollectiveOp::VoteUni => (0, vote & members == members || vote & members == 0),
        CollectiveOp::Ballot => ((vote & members).into(), false),
        CollectiveOp::MatchAny => (lanes(members).filter(|l| a[*l] == a[lane]).fold(0u64, |m, l| m | 1 << l), false),
        CollectiveOp::MatchAll => {
            let same = lanes(members).all(|l| a[l] == a[lane]);
            (if same { members.into() } else { 0 }, same)
        }
        CollectiveOp::Elect => {
            let leader = members.trailing_zeros();
            (leader.into(), leader == lane as u32)
        }
        CollectiveOp::ReduxAdd => reduce(u32::wrapping_add),
        CollectiveOp::ReduxMin => reduce(u32::min),
        CollectiveOp::ReduxMax => reduce(u32::max),
        CollectiveOp::ReduxSMin => reduce(|x, y| (x as i32).min(y as i32) as u32),
        CollectiveOp::ReduxSMax => reduce(|x, y| (x as i32).max(y as i32) as u32),
        CollectiveOp::ReduxAnd => reduce(|x, y| x & y),
        CollectiveOp::ReduxOr => reduce(|x, y| x | y),
        CollectiveOp::ReduxXor => reduce(|x, y| x ^ y),
        CollectiveOp::Barrier | CollectiveOp::Shfl(_) => (0, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles() {
        // Full width: clamp 31 (0 for up), no segments.
        assert_eq!(shuffle(ShflMode::Up, 5, 2, 0), (3, true));
        assert_eq!(shuffle(ShflMode::Up, 1, 2, 0), (1, false));
        assert_eq!(shuffle(ShflMode::Down, 30, 2, 31), (30, false));
        assert_eq!(shuffle(ShflMode::Down, 29, 2, 31), (31, true));
        assert_eq!(shuffle(ShflMode::Bfly, 5, 1, 31), (4, true));
        assert_eq!(shuffle(ShflMode::Idx, 5, 17, 31), (17, true));
        // Segments of eight: mask 24 in bits 8 to 12.
        let c = 24 << 8 | 7;
        assert_eq!(shuffle(ShflMode::Idx, 13, 2, c), (10, true));
        assert_eq!(shuffle(ShflMode::Down, 13, 2, c), (15, true));
        assert_eq!(shuffle(ShflMode::Down, 14, 2, c), (14, false));
        assert_eq!(shuffle(ShflMode::Up, 9, 2, 24 << 8), (9, false));
        assert_eq!(shuffle(ShflMode::Bfly, 13, 4, c), (9, true));
    }

    #[test]
    fn votes_and_reductions() {
        let a: Lanes64 = std::array::from_fn(|i| (i as u64 % 4) | if i == 7 { 0xffff_fff0 } else { 0 });
        assert_eq!(combine(CollectiveOp::Ballot, 0, 0xff, 0x155, &a), (0x55, false));
        assert_eq!(combine(CollectiveOp::VoteUni, 0, 0xf, 0xf0, &a), (0, true));
        assert_eq!(combine(CollectiveOp::VoteAll, 0, 0xff, 0xf0, &a), (0, false));
        assert_eq!(combine(CollectiveOp::MatchAny, 1, 0xff, 0, &a), (0b0010_0010, false));
        assert_eq!(combine(CollectiveOp::MatchAll, 1, 0x22, 0, &a), (0x22, true));
        assert_eq!(combine(CollectiveOp::ReduxAdd, 0, 0x7f, 0, &a).0, 9);
        assert_eq!(combine(CollectiveOp::ReduxSMin, 0, 0xff, 0, &a).0, 0xffff_fff3);
        assert_eq!(combine(CollectiveOp::ReduxMax, 0, 0xff, 0, &a).0, 0xffff_fff3);
    }
}
