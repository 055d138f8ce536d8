//! The scheduling of the warps of a block, and the barriers between them.

use super::env::{Env, RawFault};
use super::warp::{BarrierWait, Stop, Warp, join};
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
    fenced: Vec<u32>,
}

/// Runs the current blocks of `env`, those of a cluster together, to their end. `warps` are reused from one to the next.
pub(crate) fn run_blocks(env: &mut Env, warps: &mut Vec<Warp>) -> Result<(), RawFault> {
    let count = env.cluster_warps();
    for warp in warps.iter_mut() {
        warp.reset(env);
    }
    while warps.len() < count {
        let warp = Warp::new(warps.len() as u16, env);
        warps.push(warp);
    }
    let mut arrived = vec![Arrived::default(); 16 * env.blocks.len()];
    let mut current = match env.schedule {
        Schedule::InOrder => 0,
        _ => count - 1,
    };
    let random = matches!(env.schedule, Schedule::Random(_));
    loop {
        if !warps[current].ready() || random {
            match pick(env, warps) {
                Some(i) => current = i,
                None if warps.iter().all(Warp::done) => return finish(env),
                None => return Err(deadlock(env, warps)),
            }
        }
        env.rank = warps[current].rank;
        let slice = if random { 1 << env.random(8) } else { LONG_SLICE };
        if random {
            warps[current].advance_copies(env)?;
            env.land_some().map_err(|kind| warps[current].fault(None, kind))?;
        }
        let stop = warps[current].run(env, slice)?;
        let (times, since) = warps[current].idle;
        let times = if since == env.progress { times + 1 } else { 1 };
        match stop {
            Stop::Poll => warps[current].idle = (times, env.progress),
            // A slice may end within the loop that asks.
            Stop::TimeSlice => {}
            _ => warps[current].idle = (0, 0),
        }
        let own = warps[current].rank * env.warps()..(warps[current].rank + 1) * env.warps();
        let barriers = 16 * warps[current].rank..16 * (warps[current].rank + 1);
        match stop {
            Stop::TimeSlice | Stop::Poll => {
                if stop == Stop::Poll && idle(env, warps, 2) {
                    // All wait: what is under way may end it. A test that fails a few times may be no wait.
                    let landed = env.land_one().map_err(|kind| warps[current].fault(None, kind))?;
                    if !landed && idle(env, warps, 1000) {
                        return Err(deadlock(env, warps));
                    }
                }
                // The next warp in order, so that none starves.
                let after = (1..=count).map(|i| (current + i) % count).find(|i| warps[*i].ready());
                current = after.unwrap_or(current);
            }
            Stop::Barrier => {
                let first = own.start;
                arrive(env, &mut warps[own], current - first, &mut arrived[barriers])?;
                if env.schedule == Schedule::InOrder {
                    current = warps.iter().position(Warp::ready).unwrap_or(current);
                }
            }
            Stop::Done => {
                env.exited += 1;
                env.progress += 1;
                if warps[own.clone()].iter().all(Warp::done) {
                    env.end_block().map_err(|kind| warps[current].fault(None, kind))?;
                }
                for id in 0..16 {
                    release(env, &mut warps[own.clone()], id, &mut arrived[barriers.clone()]);
                }
            }
        }
    }
}

/// Whether no warp gets on: each waits at a barrier, or has asked in vain so many times since anything happened.
fn idle(env: &Env, warps: &[Warp], times: u32) -> bool {
    warps.iter().all(|w| !w.ready() || w.idle.1 == env.progress && w.idle.0 >= times)
}

/// Ends the copies that nobody had to wait for.
fn finish(env: &mut Env) -> Result<(), RawFault> {
    env.finish_copies().map_err(|(pc, kind)| RawFault { pc, warp: 0, lane: None, kind })
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
        // A barrier.sync may be reached from anywhere; of bar.sync the compiler makes one for each place of the source.
        let aligned = |w: &BarrierWait| here(w.pc).is_some_and(|b| b.aligned);
        let whole_block = w.count.is_none() && waiting.count.is_none() && aligned(&w) && aligned(&waiting);
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
        join(&mut state.fenced, &warps[current].fenced);
        warps[current].waiting = None;
    }
    release(env, warps, waiting.id, arrived);
    Ok(())
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
    let (mut clock, mut fenced) = (std::mem::take(&mut state.clock), std::mem::take(&mut state.fenced));
    state.threads = 0;
    let here = |w: &Warp| w.waiting.filter(|w| w.id == id);
    for warp in warps.iter().filter(|w| here(w).is_some()) {
        join(&mut clock, &warp.clock);
        join(&mut fenced, &warp.fenced);
    }
    for warp in warps.iter_mut() {
        if let Some(w) = here(warp) {
            join(&mut warp.clock, &clock);
            join(&mut warp.fenced, &fenced);
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
    for (i, warp) in warps.iter().enumerate().filter(|(_, w)| !w.done()) {
        if warp.idle.0 > 0 {
            if what.len() < 600 {
                what += &format!("; warp {i} asks in vain near {}", env.site(warp.pc.saturating_sub(1)));
            }
            (pc, id) = (warp.pc.saturating_sub(1), warp.id);
        }
        if let Some(w) = warp.waiting {
            if what.len() < 600 {
                what += &format!("; warp {i} at barrier {}, {}", w.id, env.site(w.pc));
            }
            (pc, id) = (w.pc, i as u16);
        }
    }
    what += &env.mbarriers_lack();
    RawFault { pc, warp: id, lane: None, kind: FaultKind::Deadlock { what } }
}
