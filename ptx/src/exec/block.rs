//! The scheduling of the warps of a block, and the barriers between them.

use super::env::{Env, RawFault};
use super::warp::{Stop, Warp};
use crate::error::FaultKind;
use crate::instruction::Op;
use crate::launch::Schedule;

/// Instructions of a warp before another one runs, where the schedule is not random. The limit lets a warp that polls
/// memory for another one make progress.
const LONG_SLICE: u64 = 1 << 16;

/// The arrivals at a barrier of warps that do not wait at it (`bar.arrive`).
#[derive(Clone, Debug, Default)]
struct Arrived {
    threads: u32,
    clock: Vec<u32>,
}

/// Runs the current block of `env` to its end. `warps` are reused from block to block.
pub(crate) fn run_block(env: &mut Env, warps: &mut Vec<Warp>) -> Result<(), RawFault> {
    let count = env.threads().div_ceil(32) as usize;
    for warp in warps.iter_mut() {
        warp.reset(env);
    }
    while warps.len() < count {
        let warp = Warp::new(warps.len() as u16, env);
        warps.push(warp);
    }
    let mut arrived = vec![Arrived::default(); 16];
    let mut current = match env.schedule {
        Schedule::InOrder => 0,
        _ => count - 1,
    };
    let random = matches!(env.schedule, Schedule::Random(_));
    loop {
        if !warps[current].ready() || random {
            match pick(env, warps) {
                Some(i) => current = i,
                None if warps.iter().all(Warp::done) => return Ok(()),
                None => return Err(deadlock(env, warps)),
            }
        }
        let slice = if random { 1 << env.random(8) } else { LONG_SLICE };
        if random {
            warps[current].advance_copies(env)?;
        }
        match warps[current].run(env, slice)? {
            Stop::TimeSlice => {
                // The next warp in order, so that none starves.
                let after = (1..=count).map(|i| (current + i) % count).find(|i| warps[*i].ready());
                current = after.unwrap_or(current);
            }
            Stop::Barrier => {
                arrive(env, warps, current, &mut arrived)?;
                if env.schedule == Schedule::InOrder {
                    current = warps.iter().position(Warp::ready).unwrap_or(current);
                }
            }
            Stop::Done => {
                for id in 0..16 {
                    release(env, warps, id, &mut arrived);
                }
            }
        }
    }
}

/// Picks the warp to run next; `None` if no warp is ready.
fn pick(env: &mut Env, warps: &[Warp]) -> Option<usize> {
    match env.schedule {
        Schedule::InOrder => warps.iter().position(Warp::ready),
        Schedule::Greedy => warps.iter().rposition(Warp::ready),
        Schedule::Random(_) => {
            let n = warps.iter().filter(|w| w.ready()).count();
            let pick = env.random(n as u64) as usize;
            warps.iter().enumerate().filter(|(_, w)| w.ready()).nth(pick).map(|(i, _)| i)
        }
    }
}

/// Handles the arrival of a warp at a barrier.
fn arrive(env: &Env, warps: &mut [Warp], current: usize, arrived: &mut [Arrived]) -> Result<(), RawFault> {
    let Some(waiting) = warps[current].waiting else { return Ok(()) };
    let here = |pc: u32| match &env.kernel.code[pc as usize].op {
        Op::Barrier(b) => Some(b),
        _ => None,
    };
    for (i, other) in warps.iter().enumerate() {
        let Some(w) = other.waiting.filter(|w| i != current && w.id == waiting.id) else { continue };
        let whole_block = w.count.is_none() && waiting.count.is_none();
        if w.count != waiting.count || (whole_block && w.pc != waiting.pc) {
            let what = format!(
                "warps of one block meet barrier {} at different instructions or for different counts; warp {i} at {}",
                w.id,
                env.site(w.pc)
            );
            return Err(RawFault {
                pc: waiting.pc,
                warp: current as u16,
                lane: None,
                kind: FaultKind::Divergent { what },
            });
        }
    }
    if here(waiting.pc).is_some_and(|b| b.arrive) {
        let state = &mut arrived[waiting.id as usize];
        state.threads += 32;
        join(&mut state.clock, &warps[current].clock);
        warps[current].waiting = None;
    }
    release(env, warps, waiting.id, arrived);
    Ok(())
}

/// Raises a vector clock to the maximum of both.
fn join(clock: &mut Vec<u32>, other: &[u32]) {
    clock.resize(other.len(), 0);
    for (c, o) in clock.iter_mut().zip(other) {
        *c = (*c).max(*o);
    }
}

/// Releases the warps at a barrier if all have arrived.
fn release(env: &Env, warps: &mut [Warp], id: u32, arrived: &mut [Arrived]) {
    let state = &mut arrived[id as usize];
    let mut count = None;
    let mut threads = state.threads;
    let (mut holds, mut voters) = (0, 0);
    for warp in warps.iter() {
        if let Some(w) = warp.waiting.filter(|w| w.id == id) {
            threads += 32;
            count = w.count;
            holds += w.vote.count_ones();
            voters += warp.live.count_ones();
        }
    }
    let expected = count.unwrap_or_else(|| 32 * warps.iter().filter(|w| !w.done()).count() as u32);
    if threads == state.threads || threads < expected {
        return;
    }
    let mut clock = std::mem::take(&mut state.clock);
    state.threads = 0;
    let here = |w: &Warp| w.waiting.filter(|w| w.id == id);
    for warp in warps.iter().filter(|w| here(w).is_some()) {
        join(&mut clock, &warp.clock);
    }
    for warp in warps.iter_mut() {
        if let Some(w) = here(warp) {
            warp.clock.copy_from_slice(&clock);
            warp.waiting = None;
            if let Op::Barrier(barrier) = &env.kernel.code[w.pc as usize].op {
                warp.put_reduction(barrier, holds, voters);
            }
        }
    }
}

fn deadlock(env: &Env, warps: &[Warp]) -> RawFault {
    let mut what = String::from("every warp that has not exited waits");
    let (mut pc, mut id) = (0, 0);
    for (i, warp) in warps.iter().enumerate() {
        if let Some(w) = warp.waiting {
            if what.len() < 600 {
                what += &format!("; warp {i} at barrier {}, {}", w.id, env.site(w.pc));
            }
            (pc, id) = (w.pc, i as u16);
        }
    }
    RawFault { pc, warp: id, lane: None, kind: FaultKind::Deadlock { what } }
}
