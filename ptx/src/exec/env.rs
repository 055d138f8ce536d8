//! The environment shared by the warps of a block: the launch, its memory, the counts, the schedule.

use std::collections::{BTreeMap, BTreeSet};

use crate::counts::Counts;
use crate::error::{Fault, FaultKind, MemorySpace, Site};
use crate::kernel::Kernel;
use crate::lanes::{Lanes32, Lanes64};
use crate::launch::{Arithmetic, Schedule};
use crate::memory::{Allocation, Allocations, BulkCopy, GlobalMemory, Mbarrier, SharedMemory, SharedPlace, Tag};
use crate::module::Module;
use crate::space::SHARED_RANK_SHIFT;

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

/// The state of one block of the cluster.
pub(crate) struct BlockState {
    pub block: [u32; 3],
    pub index: u64,
    pub shared: SharedMemory,
    /// The mbarriers by their places.
    pub mbarriers: BTreeMap<usize, Mbarrier>,
    /// Tensor maps in global memory that were fenced by `fence.proxy.tensormap` since they were made.
    pub acquired_maps: BTreeSet<u64>,
    /// Registers of each warp by `setmaxnreg`; empty where none ran.
    pub registers: Vec<u32>,
    /// Whether all its threads have ended, and with them its shared memory.
    pub ended: bool,
    /// Whether one of its threads has waited for the launch before.
    pub waited: bool,
}

/// The barrier of a cluster.
#[derive(Default)]
pub(crate) struct ClusterBarrier {
    pub generation: u32,
    pub arrived: u32,
    pub clock: Vec<u32>,
    pub fenced: Vec<u32>,
    /// Those of the last generation that is complete: who waits late learns nothing of arrivals after it.
    pub done_clock: Vec<u32>,
    pub done_fenced: Vec<u32>,
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
    pub grid_dim: [u32; 3],
    pub cluster_dim: [u32; 3],
    pub block_dim: [u32; 3],
    pub dynamic_shared: usize,
    pub check_races: bool,
    /// Whether the launch may begin before the one before it has ended.
    pub early: bool,
    /// Whether a lane of the present instruction has yet to wait for that.
    pub too_early: bool,
    pub launch: u64,
    pub schedule: Schedule,
    pub arithmetic: Arithmetic,
    pub step_limit: u64,
    // Of the current cluster, which is one block where a launch has none.
    pub blocks: Vec<BlockState>,
    /// The block of the warp that runs.
    pub rank: usize,
    pub cluster_barrier: ClusterBarrier,
    /// Bulk copies under way.
    pub bulk: Vec<BulkCopy>,
    /// Groups of `wgmma` that each warp has committed.
    pub product_groups: Vec<u32>,
    /// Warps that have ended.
    pub exited: u32,
    /// Counts what may end a wait: arrivals, bytes that landed.
    pub progress: u64,
    /// The number of authors of accesses: warps, their groups, mbarriers.
    pub authors: u16,
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

    /// Number of warps of a block.
    pub fn warps(&self) -> usize {
        self.threads().div_ceil(32) as usize
    }

    /// Number of warps of a cluster, the authors before all others.
    pub fn cluster_warps(&self) -> usize {
        self.warps() * self.blocks.len()
    }

    /// The block of the warp that runs.
    pub fn own(&mut self) -> &mut BlockState {
        &mut self.blocks[self.rank]
    }

    /// Checks bounds and alignment of an address in the shared memory of the block or, by `mapa`, of another of its cluster.
    #[inline]
    pub fn check_shared(&self, address: u64, bytes: u32, align: u32) -> Result<SharedPlace, FaultKind> {
        let (rank, at) = match address >> SHARED_RANK_SHIFT {
            0 => (self.rank, address),
            n => (n as usize - 1, address & ((1 << SHARED_RANK_SHIFT) - 1)),
        };
        let Some(block) = self.blocks.get(rank) else {
            return Err(FaultKind::out_of_bounds(MemorySpace::Shared, address, bytes, None));
        };
        self.check_running(rank)?;
        Ok(SharedPlace { rank, at: block.shared.check(at, bytes, align)? })
    }

    /// Refuses a use of the shared memory of a block that has ended before the others of its cluster.
    pub fn check_running(&self, rank: usize) -> Result<(), FaultKind> {
        if self.blocks[rank].ended {
            let what = format!("shared memory of block {rank} of the cluster, all threads of which have ended");
            return Err(FaultKind::Asynchronous(what));
        }
        Ok(())
    }

    /// Notes the end of the current block; what another one copies into its shared memory must have come.
    pub fn end_block(&mut self) -> Result<(), FaultKind> {
        let rank = self.rank;
        self.blocks[rank].ended = true;
        if self.early && !self.blocks[rank].waited {
            return Err(FaultKind::NoWait);
        }
        let by = |c: &BulkCopy| usize::from(c.owner.0) / self.warps();
        match self.bulk.iter().find(|c| c.rank == rank && by(c) != rank && c.mbarrier.is_some() && !c.landed) {
            Some(copy) => Err(FaultKind::Asynchronous(format!(
                "block {rank} of the cluster ends while the copy of {} bytes into its shared memory at {} is under way",
                copy.bytes,
                self.site(copy.pc)
            ))),
            None => Ok(()),
        }
    }

    /// Loads bytes that were checked.
    #[inline]
    pub fn load_shared(&self, place: SharedPlace, bytes: usize) -> Result<&[u8], FaultKind> {
        self.blocks[place.rank].shared.load(place.at, bytes)
    }

    /// Stores bytes that were checked.
    #[inline]
    pub fn store_shared(&mut self, place: SharedPlace, data: &[u8]) {
        self.blocks[place.rank].shared.store(place.at, data);
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

    /// Describes the author of an access to shared memory.
    pub fn author(&self, author: u16, lane: Option<u8>) -> String {
        let (warps, author) = (self.warps(), usize::from(author));
        let all = self.cluster_warps();
        let warp = author % all;
        let of = match self.blocks.len() {
            1 => String::new(),
            _ => format!(" of block {:?}", self.blocks[warp / warps].block),
        };
        match (author / all, lane) {
            (0, Some(lane)) => format!("thread {:?}{of}", self.thread((warp % warps) as u32 * 32 + u32::from(lane))),
            (0, None) => format!("warp {}{of}", warp % warps),
            (1, _) => format!("a wgmma of the warps from {}{of}", warp % warps),
            (2, _) => format!("a bulk copy of warp {}{of}", warp % warps),
            _ => "a bulk copy with an mbarrier".to_owned(),
        }
    }

    /// The place of an instruction in the PTX text and the source.
    pub fn site(&self, pc: u32) -> Site {
        let (line, loc) = self.kernel.code.get(pc as usize).map_or((0, 0), |i| (i.line, i.loc));
        self.module.site(line, loc)
    }

    /// Whether a place in the text is that of an instruction.
    pub fn is_at(&self, site: &Site, pc: u32) -> bool {
        self.kernel.code.get(pc as usize).is_some_and(|i| i.line == site.line)
    }

    /// Describes a fault of the current block.
    pub fn locate(&self, fault: RawFault) -> Fault {
        Fault {
            kernel: self.kernel.name.clone(),
            block: self.blocks[self.rank].block,
            thread: fault.lane.map(|lane| self.thread(u32::from(fault.warp) * 32 + lane)),
            warp: fault.warp.into(),
            site: Some(Box::new(self.site(fault.pc))),
            kind: fault.kind,
        }
    }

    /// Starts a cluster, or a block where there are none; `indices` are its blocks'.
    pub fn start_blocks(&mut self, indices: &[u64]) {
        for (rank, index) in indices.iter().enumerate() {
            let block = self.block_at(*index);
            let state = &mut self.blocks[rank];
            (state.block, state.index) = (block, *index);
            state.shared.reset();
            state.mbarriers.clear();
            state.acquired_maps.clear();
            state.registers.clear();
            (state.ended, state.waited) = (false, false);
        }
        self.rank = 0;
        self.cluster_barrier = ClusterBarrier::default();
        self.bulk.clear();
        self.product_groups.clear();
        self.exited = 0;
        self.authors = 3 * self.cluster_warps() as u16;
        self.steps = 0;
        let seed = if let Schedule::Random(seed) = self.schedule { seed } else { 0 };
        let index = indices.first().copied().unwrap_or(0);
        self.rng = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1;
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

    /// Checks that aligned bytes of global memory can be stored, and races if `pc` is given.
    pub fn touch_global(&mut self, at: u64, bytes: usize, pc: Option<u32>) -> Result<(), FaultKind> {
        let (allocation, offset) = self.global(at, bytes as u32)?;
        match pc {
            Some(pc) if self.check_races => self.shadow(allocation, offset, bytes, true, pc),
            _ => Ok(()),
        }
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
        if self.too_early {
            return Err(FaultKind::TooEarly { address: at, bytes });
        }
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
        let tag = Tag::new(self.launch, self.blocks[self.rank].index, pc);
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
}
