//! Running a kernel: loading its constants, and handing out its blocks to the threads of the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use crate::counts::Counts;
use crate::error::{Fault, FaultKind};
use crate::exec::block::run_block;
use crate::exec::env::Env;
use crate::exec::warp::Warp;
use crate::kernel::{Const64, Kernel};
use crate::lanes::{Lanes32, Lanes64};
use crate::launch::Launch;
use crate::memory::{Allocation, Allocations, GlobalMemory, SharedMemory};
use crate::module::Module;

/// Runs a kernel to its end and returns its counts.
///
/// Blocks run in parallel on rayon's threads. If several blocks fault, the fault of the first one is returned.
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

    /// The number of blocks to run.
    fn blocks(&self) -> u64 {
        match self.launch.blocks {
            None => self.launch.grid.iter().map(|d| u64::from(*d)).product(),
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

    /// The environment of a worker.
    fn env(&self) -> Env<'_> {
        let launch = self.launch;
        let shared_bytes = match launch.dynamic_shared {
            0 => self.kernel.shared_bytes,
            n => self.kernel.dynamic_offset + n,
        };
        Env {
            module: self.module,
            kernel: self.kernel,
            const32: &self.const32,
            const64: &self.const64,
            params: launch.params,
            memory: self.memory,
            allocations: Allocations::new(&self.allocations),
            shared: SharedMemory::new(shared_bytes, launch.check_races),
            grid_dim: launch.grid,
            block_dim: launch.block,
            dynamic_shared: launch.dynamic_shared,
            check_races: launch.check_races,
            launch: self.launch_number,
            schedule: launch.schedule,
            arithmetic: launch.arithmetic,
            step_limit: launch.step_limit,
            block: [0; 3],
            block_index: 0,
            rng: 1,
            steps: 0,
            executed: vec![0; self.kernel.code.len()],
            counts: Counts::default(),
        }
    }

    /// Runs all blocks. Workers take the next block in order, so that a fault of an early block is found early.
    fn run(&self) -> Result<Counts, Fault> {
        let total = self.blocks();
        let next = AtomicU64::new(0);
        let failed = AtomicU64::new(u64::MAX);
        let workers = (rayon::current_num_threads() as u64).min(total).max(1);
        let results: Vec<(Counts, Option<(u64, Fault)>)> =
            (0..workers).into_par_iter().map(|_| self.work(total, &next, &failed)).collect();
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

    /// Runs blocks until none is left, or until a block before the next one has failed.
    fn work(&self, total: u64, next: &AtomicU64, failed: &AtomicU64) -> (Counts, Option<(u64, Fault)>) {
        let mut env = self.env();
        let mut warps: Vec<Warp> = Vec::new();
        loop {
            let i = next.fetch_add(1, Relaxed);
            if i >= total || i > failed.load(Relaxed) {
                return (env.take_counts(), None);
            }
            env.start_block(self.block_index(i));
            if let Err(fault) = run_block(&mut env, &mut warps) {
                failed.fetch_min(i, Relaxed);
                let fault = env.locate(fault);
                return (env.take_counts(), Some((i, fault)));
            }
            env.counts.blocks += 1;
        }
    }
}
