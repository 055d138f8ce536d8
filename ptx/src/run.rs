//! Running a kernel: loading its constants, and handing out its blocks to the threads of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use crate::counts::Counts;
use crate::error::{Fault, FaultKind};
use crate::exec::block::run_blocks;
use crate::exec::env::{BlockState, ClusterBarrier, Env};
use crate::exec::warp::Warp;
use crate::kernel::{Const64, Kernel};
use crate::lanes::{Lanes32, Lanes64};
use crate::launch::Launch;
use crate::memory::{Allocation, Allocations, GlobalMemory, SharedMemory};
use crate::module::Module;

/// Runs a kernel to its end and returns its counts.
///
/// Many blocks run in parallel on rayon's threads, a few on the caller's. If several blocks fault, the fault of the first one is returned.
///
/// # Errors
/// The kernel's fault, or [`FaultKind::Launch`] if the launch does not fit the kernel.
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
    launch.check(k).map_err(bad)?;
    LoadedKernel::new(module, k, memory, launch).run()
}

/// A kernel with its constants and memory, ready for the blocks of a launch.
struct LoadedKernel<'a> {
    module: &'a Module,
    kernel: &'a Kernel,
    memory: &'a GlobalMemory,
    launch: &'a Launch<'a>,
    launch_number: u64,
    allocations: Vec<Arc<Allocation>>,
    const32: Vec<Lanes32>,
    const64: Vec<Lanes64>,
}

impl<'a> LoadedKernel<'a> {
    fn new(module: &'a Module, kernel: &'a Kernel, memory: &'a GlobalMemory, launch: &'a Launch<'a>) -> Self {
        // Module variables first: the snapshot must hold them.
        let symbols = memory.symbols(module);
        let value = |c: &Const64| match c {
            Const64::Value(v) => *v,
            Const64::Variable { index, offset } => symbols[*index as usize].wrapping_add_signed(*offset),
        };
        Self {
            module,
            kernel,
            memory,
            launch,
            launch_number: memory.next_launch(),
            allocations: memory.snapshot(),
            const32: kernel.const32.iter().map(|v| [*v; 32]).collect(),
            const64: kernel.const64.iter().map(|c| [value(c); 32]).collect(),
        }
    }

    /// The number of clusters to run; without clusters, of blocks.
    fn clusters(&self) -> u64 {
        let cluster = self.launch.cluster_of(self.kernel);
        match self.launch.blocks {
            None => self.launch.grid.iter().zip(cluster).map(|(d, c)| u64::from(d / c)).product(),
            Some(list) => list.len() as u64,
        }
    }

    /// The linear index in the grid of the `i`-th block to run.
    fn block_index(&self, i: u64) -> u64 {
        match self.launch.blocks {
            None => i,
            Some(list) => {
                let [x, y, _] = self.launch.grid.map(u64::from);
                let [a, b, c] = list[i as usize].map(u64::from);
                (c * y + b) * x + a
            }
        }
    }

    /// The linear indices of the blocks of the `i`-th cluster, in order of their ranks.
    fn block_indices(&self, i: u64) -> Vec<u64> {
        let cluster = self.launch.cluster_of(self.kernel).map(u64::from);
        if cluster == [1; 3] {
            return vec![self.block_index(i)];
        }
        let [x, y, _] = self.launch.grid.map(u64::from);
        let (across, down) = (x / cluster[0], y / cluster[1]);
        let first = [i % across * cluster[0], i / across % down * cluster[1], i / (across * down) * cluster[2]];
        let mut indices = Vec::new();
        for c in 0..cluster[2] {
            for b in 0..cluster[1] {
                for a in 0..cluster[0] {
                    indices.push(((first[2] + c) * y + first[1] + b) * x + first[0] + a);
                }
            }
        }
        indices
    }

    /// The environment of a worker.
    fn env(&self) -> Env<'_> {
        let launch = self.launch;
        let shared_bytes = match launch.dynamic_shared {
            0 => self.kernel.shared_bytes,
            n => self.kernel.dynamic_offset + n,
        };
        let cluster = launch.cluster_of(self.kernel);
        let block = || BlockState {
            block: [0; 3],
            index: 0,
            shared: SharedMemory::new(shared_bytes, launch.check_races),
            mbarriers: BTreeMap::new(),
            acquired_maps: BTreeSet::new(),
            registers: Vec::new(),
            ended: false,
            waited: false,
        };
        Env {
            module: self.module,
            kernel: self.kernel,
            const32: &self.const32,
            const64: &self.const64,
            params: launch.params,
            memory: self.memory,
            allocations: Allocations::new(&self.allocations),
            grid_dim: launch.grid,
            cluster_dim: cluster,
            block_dim: launch.block,
            dynamic_shared: launch.dynamic_shared,
            check_races: launch.check_races,
            early: launch.early,
            too_early: false,
            launch: self.launch_number,
            schedule: launch.schedule,
            arithmetic: launch.arithmetic,
            step_limit: launch.step_limit,
            blocks: (0..cluster.iter().product()).map(|_| block()).collect(),
            rank: 0,
            cluster_barrier: ClusterBarrier::default(),
            bulk: Vec::new(),
            product_groups: Vec::new(),
            exited: 0,
            progress: 0,
            authors: 0,
            rng: 1,
            steps: 0,
            executed: vec![0; self.kernel.code.len()],
            counts: Counts::default(),
        }
    }

    /// Runs all blocks. Workers take the next block in order, so that a fault of an early block is found early.
    fn run(&self) -> Result<Counts, Fault> {
        let total = self.clusters();
        let next = AtomicU64::new(0);
        let failed = AtomicU64::new(u64::MAX);
        // To hand blocks to other threads takes as long as to run a few.
        let workers = (total / 4).clamp(1, rayon::current_num_threads() as u64);
        let work = |_: u64| self.work(total, &next, &failed);
        let results: Vec<Worked> =
            if workers == 1 { vec![work(0)] } else { (0..workers).into_par_iter().map(work).collect() };
        let mut counts = Counts::default();
        let mut executed = vec![0u64; self.kernel.code.len()];
        let mut first: Option<(u64, Fault)> = None;
        for part in results {
            counts.add(&part.counts);
            executed.iter_mut().zip(part.executed).for_each(|(all, times)| *all += times);
            if let Some(fault) = part.fault
                && first.as_ref().is_none_or(|f| fault.0 < f.0)
            {
                first = Some(fault);
            }
        }
        let ran = self.kernel.code.iter().zip(executed).filter(|(_, times)| *times > 0);
        counts.add_executed(ran.map(|(instruction, times)| (instruction.kind, instruction.line, times)));
        match first {
            Some((_, fault)) => Err(fault),
            None => Ok(counts),
        }
    }

    /// Runs blocks until none is left, or until a block before the next one has failed.
    fn work(&self, total: u64, next: &AtomicU64, failed: &AtomicU64) -> Worked {
        let mut env = self.env();
        let mut warps: Vec<Warp> = Vec::new();
        let mut fault = None;
        while fault.is_none() {
            let i = next.fetch_add(1, Relaxed);
            if i >= total || i > failed.load(Relaxed) {
                break;
            }
            env.start_blocks(&self.block_indices(i));
            match run_blocks(&mut env, &mut warps) {
                Ok(()) => env.counts.blocks += env.blocks.len() as u64,
                Err(raw) => {
                    failed.fetch_min(i, Relaxed);
                    fault = Some((i, env.locate(raw)));
                }
            }
        }
        Worked { counts: env.counts, executed: env.executed, fault }
    }
}

/// The outcome of a worker.
struct Worked {
    /// Without those by kind and by line.
    counts: Counts,
    /// For each instruction, the number of times a warp executed it.
    executed: Vec<u64>,
    /// The fault that ended it, with the number of its cluster.
    fault: Option<(u64, Fault)>,
}
