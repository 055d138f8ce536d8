//! The environment shared by the warps of a block: the launch, its memory, the counts, the schedule.

use crate::counts::Counts;
use crate::error::{Fault, FaultKind, MemorySpace, Site};
use crate::kernel::Kernel;
use crate::lanes::{Lanes32, Lanes64};
use crate::launch::{Arithmetic, Schedule};
use crate::memory::{Allocation, Allocations, GlobalMemory, SharedMemory, Tag};
use crate::module::Module;

/// A fault before its kernel, block and source line are looked up.
#[derive(Debug)]
pub(crate) struct RawFault {
    pub pc: u32,
    pub warp: u16,
    pub lane: Option<u32>,
    pub kind: FaultKind,
}

/// The time at which a `cp.async` takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyTiming {
    AtIssue,
    Between,
    AtWait,
}

/// The environment of the blocks that one worker runs.
pub(crate) struct Env<'a> {
    pub module: &'a Module,
    pub kernel: &'a Kernel,
    pub const32: &'a [Lanes32],
    pub const64: &'a [Lanes64],
    pub params: &'a [u8],
    pub memory: &'a GlobalMemory,
    pub allocations: Allocations<'a>,
    pub shared: SharedMemory,
    pub grid_dim: [u32; 3],
    pub block_dim: [u32; 3],
    pub dynamic_shared: usize,
    pub check_races: bool,
    pub launch: u64,
    pub schedule: Schedule,
    pub arithmetic: Arithmetic,
    pub step_limit: u64,
    // Of the current block.
    pub block: [u32; 3],
    pub block_index: u64,
    /// State of the random numbers.
    pub rng: u64,
    /// Warp instructions so far.
    pub steps: u64,
    // Of all blocks so far.
    /// For each instruction, the number of times a warp executed it.
    pub executed: Vec<u64>,
    pub counts: Counts,
}

impl<'a> Env<'a> {
    /// Number of threads of a block.
    pub fn threads(&self) -> u32 {
        self.block_dim.iter().product()
    }

    /// The three-dimensional index of a thread.
    pub fn thread(&self, index: u32) -> [u32; 3] {
        let [x, y, _] = self.block_dim;
        [index % x, index / x % y, index / (x * y)]
    }

    /// The three-dimensional index of a block.
    pub fn block_at(&self, index: u64) -> [u32; 3] {
        let [x, y, _] = self.grid_dim.map(u64::from);
        [(index % x) as u32, (index / x % y) as u32, (index / (x * y)) as u32]
    }

    /// The place of an instruction in the PTX text and the source.
    pub fn site(&self, pc: u32) -> Site {
        let (line, loc) = self.kernel.code.get(pc as usize).map_or((0, 0), |i| (i.line, i.loc));
        self.module.site(line, loc)
    }

    /// Describes a fault of the current block.
    pub fn locate(&self, fault: RawFault) -> Fault {
        Fault {
            kernel: self.kernel.name.clone(),
            block: self.block,
            thread: fault.lane.map(|lane| self.thread(u32::from(fault.warp) * 32 + lane)),
            warp: fault.warp.into(),
            site: Some(Box::new(self.site(fault.pc))),
            kind: fault.kind,
        }
    }

    /// Starts a block.
    pub fn start_block(&mut self, index: u64) {
        self.block = self.block_at(index);
        self.block_index = index;
        self.steps = 0;
        let seed = if let Schedule::Random(seed) = self.schedule { seed } else { 0 };
        self.rng = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1;
        self.shared.reset();
    }

    /// A random number below `n` (xorshift).
    pub fn random(&mut self, n: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng >> 33) % n.max(1)
    }

    /// Decides at which time the next `cp.async` takes effect.
    pub fn copy_timing(&mut self) -> CopyTiming {
        match self.schedule {
            Schedule::InOrder => CopyTiming::AtIssue,
            Schedule::Greedy => CopyTiming::AtWait,
            Schedule::Random(_) => match self.random(3) {
                0 => CopyTiming::AtIssue,
                1 => CopyTiming::AtWait,
                _ => CopyTiming::Between,
            },
        }
    }

    /// Loads aligned bytes from global memory; checked for races if `pc` is given.
    #[inline]
    pub fn load_global(&mut self, at: u64, bytes: usize, pc: Option<u32>) -> Result<u128, FaultKind> {
        let (allocation, offset) = self.global(at, bytes as u32)?;
        let Some(value) = allocation.load(offset, bytes) else {
            let space = MemorySpace::Global;
            return Err(FaultKind::Uninitialised { space, address: at, bytes: bytes as u32 });
        };
        if let (true, Some(pc)) = (self.check_races, pc) {
            self.shadow(allocation, offset, bytes, false, pc)?;
        }
        Ok(value)
    }

    /// Stores aligned bytes to global memory; checked for races if `pc` is given.
    #[inline]
    pub fn store_global(&mut self, at: u64, bytes: usize, value: u128, pc: Option<u32>) -> Result<(), FaultKind> {
        let (allocation, offset) = self.global(at, bytes as u32)?;
        if let (true, Some(pc)) = (self.check_races, pc) {
            self.shadow(allocation, offset, bytes, true, pc)?;
        }
        allocation.store(offset, bytes, value);
        Ok(())
    }

    /// Updates a word of global memory atomically and returns the old value. Atomics are not checked for races.
    pub fn update_global(&mut self, at: u64, wide: bool, f: impl Fn(u64) -> u64) -> Result<u64, FaultKind> {
        let bytes = if wide { 8 } else { 4 };
        let (allocation, offset) = self.global(at, bytes)?;
        let old = if wide {
            let _guard = self.memory.lock_wide();
            let old = allocation.load(offset, 8);
            if let Some(old) = old {
                allocation.store(offset, 8, f(old as u64).into());
            }
            old.map(|v| v as u64)
        } else {
            allocation.update32(offset, |x| f(x.into()) as u32).map(u64::from)
        };
        old.ok_or(FaultKind::Uninitialised { space: MemorySpace::Global, address: at, bytes })
    }

    /// Finds the allocation of an aligned access.
    #[inline]
    fn global(&mut self, at: u64, bytes: u32) -> Result<(&'a Allocation, u64), FaultKind> {
        if !at.is_multiple_of(bytes.into()) {
            return Err(FaultKind::Misaligned { space: MemorySpace::Global, address: at, align: bytes });
        }
        self.allocations.find(at, bytes)
    }

    /// Records an access in the shadow of global memory.
    fn shadow(
        &self,
        allocation: &Allocation,
        offset: u64,
        bytes: usize,
        write: bool,
        pc: u32,
    ) -> Result<(), FaultKind> {
        let tag = Tag::new(self.launch, self.block_index, pc);
        let Some(hit) = allocation.record(offset, bytes, write, tag) else { return Ok(()) };
        Err(FaultKind::Race {
            hazard: hit.hazard,
            space: MemorySpace::Global,
            address: allocation.base + offset + u64::from(hit.byte),
            other: Box::new(self.site(hit.pc)),
            other_thread: match hit.block {
                Some(index) => format!("block {:?}", self.block_at(index)),
                None => "several blocks".to_owned(),
            },
        })
    }

    /// Takes the counts of all blocks that the worker ran.
    pub fn take_counts(&mut self) -> Counts {
        let mut counts = std::mem::take(&mut self.counts);
        for (inst, times) in self.kernel.code.iter().zip(&mut self.executed) {
            if *times > 0 {
                *counts.kinds.entry(inst.kind).or_default() += *times;
                *counts.lines.entry(inst.line).or_default() += *times;
                *times = 0;
            }
        }
        counts
    }
}
