//! Launching a kernel: blocks over threads, warps in turn, barriers between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use crate::counts::Counts;
use crate::env::{Env, RawFault};
use crate::error::{Fault, FaultKind};
use crate::memory::{Allocation, Allocations, GlobalMemory};
use crate::module::Module;
use crate::program::{Const64, Kernel, Lanes32, Lanes64, Op};
use crate::shared::SharedMemory;
use crate::warp::{Stop, Warp};

/// In which order the warps of a block run, and when `cp.async` takes effect.
///
/// The race checks hold for any schedule; schedules differ in the values that a faulty kernel sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// Each warp to its next barrier, the first one first; copies take effect at issue.
    #[default]
    InOrder,
    /// The warp that ran last goes on as long as it can, the last one first; copies take effect at their wait.
    Greedy,
    /// Random turns of random lengths; copies take effect at issue, at the wait or between.
    Random(u64),
}

/// A launch.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// The parameter buffer, as [`Kernel::params`] lays it out.
    pub params: &'a [u8],
    /// The order of things.
    pub schedule: Schedule,
    /// Only these blocks; `None`: all of the grid.
    pub blocks: Option<&'a [[u32; 3]]>,
    /// Whether accesses to shared and global memory are checked for races.
    pub check_races: bool,
    /// Warp instructions of one block after which it is a fault.
    pub step_limit: u64,
}

impl<'a> Launch<'a> {
    /// A launch in order, with all checks.
    pub fn new(grid: [u32; 3], block: [u32; 3], params: &'a [u8]) -> Self {
        Self {
            grid,
            block,
            dynamic_shared: 0,
            params,
            schedule: Schedule::InOrder,
            blocks: None,
            check_races: true,
            step_limit: 1 << 32,
        }
    }
}

/// Turn of a warp where the schedule does not cut it short. It ends even so, that a warp which waits for another by
/// looking at memory does not wait for ever.
const LONG_SLICE: u64 = 1 << 16;

/// Shared memory of an sm_80 block at most (163 KiB); sm_90 has 227.
const MAX_SHARED: usize = 227 << 10;

/// Runs a kernel to its end.
///
/// Blocks run in parallel on rayon's threads. Of several faults the one of the lowest block is given.
///
/// # Errors
/// The kernel's fault, or [`FaultKind::Launch`] where the launch does not fit the kernel.
pub fn run(module: &Module, kernel: &str, memory: &GlobalMemory, launch: &Launch) -> Result<Counts, Fault> {
    let bad = |what: String| Fault {
        kernel: kernel.to_owned(),
        block: [0; 3],
        thread: None,
        warp: 0,
        site: None,
        kind: FaultKind::Launch(what),
    };
    let Some(k) = module.kernel(kernel) else {
        let names: Vec<_> = module.kernels().map(Kernel::name).collect();
        return Err(bad(format!("no such kernel; there are: {}", names.join(", "))));
    };
    if let Some((line, loc, what)) = &k.unknown {
        let kind = FaultKind::Unknown { what: what.clone() };
        return Err(Fault { site: Some(Box::new(module.site(*line, *loc))), kind, ..bad(String::new()) });
    }
    check(k, launch).map_err(bad)?;

    // Module variables first: the snapshot must hold them.
    let symbols = memory.symbols(module);
    let blocks: Vec<Arc<Allocation>> = memory.snapshot();
    let const32: Vec<Lanes32> = k.const32.iter().map(|v| [*v; 32]).collect();
    let const64: Vec<Lanes64> = k.const64.iter().map(|c| [constant(c, &symbols); 32]).collect();
    let number = memory.launch();
    let [x, y, z] = launch.grid.map(u64::from);
    let total = launch.blocks.map_or(x * y * z, |list| list.len() as u64);
    let index = |i: u64| match launch.blocks {
        None => i,
        Some(list) => {
            let [a, b, c] = list[i as usize].map(u64::from);
            (c * y + b) * x + a
        }
    };

    let shared_bytes = match launch.dynamic_shared {
        0 => k.shared_bytes,
        n => k.dynamic_offset + n,
    };
    let env = || Env {
        module,
        kernel: k,
        const32: &const32,
        const64: &const64,
        params: launch.params,
        memory,
        view: Allocations::new(&blocks),
        shared: SharedMemory::new(shared_bytes, launch.check_races),
        grid_dim: launch.grid,
        block_dim: launch.block,
        dynamic_shared: launch.dynamic_shared,
        check_races: launch.check_races,
        launch: number,
        schedule: launch.schedule,
        step_limit: launch.step_limit,
        block: [0; 3],
        block_index: 0,
        rng: 1,
        steps: 0,
        executed: vec![0; k.code.len()],
        counts: Counts::default(),
    };
    // Workers take the next block in order, so that a fault of an early block is met early.
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(u64::MAX);
    let workers = (rayon::current_num_threads() as u64).min(total).max(1);
    let results: Vec<(Counts, Option<(u64, Fault)>)> = (0..workers)
        .into_par_iter()
        .map(|_| {
            let mut env = env();
            let mut warps: Vec<Warp> = Vec::new();
            loop {
                let i = next.fetch_add(1, Relaxed);
                if i >= total || i > failed.load(Relaxed) {
                    return (env.take_counts(), None);
                }
                env.start_block(index(i));
                if let Err(fault) = block(&mut env, &mut warps) {
                    failed.fetch_min(i, Relaxed);
                    let fault = located(&env, fault);
                    return (env.take_counts(), Some((i, fault)));
                }
                env.counts.blocks += 1;
            }
        })
        .collect();
    let mut counts = Counts::default();
    let mut first: Option<(u64, Fault)> = None;
    for (part, fault) in results {
        counts.add(&part);
        if let Some(fault) = fault
            && first.as_ref().is_none_or(|f| fault.0 < f.0)
        {
            first = Some(fault);
        }
    }
    match first {
        Some((_, fault)) => Err(fault),
        None => Ok(counts),
    }
}

fn constant(c: &Const64, symbols: &[u64]) -> u64 {
    match c {
        Const64::Value(v) => *v,
        Const64::Variable { index, offset } => symbols[*index as usize].wrapping_add_signed(*offset),
    }
}

fn check(kernel: &Kernel, launch: &Launch) -> Result<(), String> {
    if launch.params.len() != kernel.param_bytes {
        return Err(format!("{} parameter bytes, the kernel takes {}", launch.params.len(), kernel.param_bytes));
    }
    let threads = launch.block.iter().map(|d| u64::from(*d)).product::<u64>();
    if threads == 0 || threads > 1024 {
        return Err(format!("blocks of {:?} threads; 1 to 1024 are possible", launch.block));
    }
    if let Some(max) = kernel.max_threads {
        let most = max.iter().map(|d| u64::from(*d)).product::<u64>();
        if threads > most {
            return Err(format!("blocks of {threads} threads; .maxntid allows {most}"));
        }
    }
    if launch.grid.contains(&0) || launch.grid[1] > 65535 || launch.grid[2] > 65535 || launch.grid[0] > i32::MAX as u32
    {
        return Err(format!("a grid of {:?} blocks; 1 to (2^31-1, 65535, 65535) are possible", launch.grid));
    }
    let shared = kernel.dynamic_offset.saturating_add(launch.dynamic_shared);
    if shared > MAX_SHARED {
        return Err(format!("{shared} bytes of shared memory; at most {MAX_SHARED} exist"));
    }
    for b in launch.blocks.unwrap_or(&[]) {
        if b.iter().zip(launch.grid).any(|(b, g)| *b >= g) {
            return Err(format!("block {b:?} outside of the grid {:?}", launch.grid));
        }
    }
    Ok(())
}

fn located(env: &Env, fault: RawFault) -> Fault {
    Fault {
        kernel: env.kernel.name.clone(),
        block: env.block,
        thread: fault.lane.map(|lane| env.thread(u32::from(fault.warp) * 32 + lane)),
        warp: fault.warp.into(),
        site: Some(Box::new(env.site(fault.pc))),
        kind: fault.kind,
    }
}

/// What a barrier has seen besides the warps that wait at it.
#[derive(Clone, Debug, Default)]
struct Arrived {
    threads: u32,
    clock: Vec<u32>,
}

/// Runs one block.
fn block(env: &mut Env, warps: &mut Vec<Warp>) -> Result<(), RawFault> {
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
        let ready = |w: &Warp| !w.done() && w.waiting.is_none();
        if !ready(&warps[current]) || random {
            let choice = match env.schedule {
                Schedule::InOrder => warps.iter().position(ready),
                Schedule::Greedy => warps.iter().rposition(ready),
                Schedule::Random(_) => {
                    let n = warps.iter().filter(|w| ready(w)).count();
                    let pick = env.random(n as u64) as usize;
                    warps.iter().enumerate().filter(|(_, w)| ready(w)).nth(pick).map(|(i, _)| i)
                }
            };
            match choice {
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
                // The next one, so that nobody is starved.
                let after = (1..=count).map(|i| (current + i) % count).find(|i| ready(&warps[*i]));
                current = after.unwrap_or(current);
            }
            Stop::Barrier => {
                arrive(env, warps, current, &mut arrived)?;
                if env.schedule == Schedule::InOrder {
                    current = warps.iter().position(ready).unwrap_or(current);
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

fn join(clock: &mut Vec<u32>, other: &[u32]) {
    clock.resize(other.len(), 0);
    for (c, o) in clock.iter_mut().zip(other) {
        *c = (*c).max(*o);
    }
}

/// Lets the warps at a barrier go on where all have come.
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
                warp.reduced(barrier, holds, voters);
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
