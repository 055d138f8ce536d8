//! What the warps of a block share: the launch, its memory, the counts, the schedule.

use crate::counts::Counts;
use crate::error::{FaultKind, MemorySpace, Site};
use crate::launch::Schedule;
use crate::memory::{Allocation, Allocations, GlobalMemory, PAGE};
use crate::module::Module;
use crate::program::{Kernel, Lanes32, Lanes64};
use crate::races::{ShadowPage, Tag};
use crate::shared::SharedMemory;

/// A fault before it is put into words.
#[derive(Debug)]
pub(crate) struct RawFault {
    pub pc: u32,
    pub warp: u16,
    pub lane: Option<u32>,
    pub kind: FaultKind,
}

/// When a `cp.async` takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyTiming {
    AtIssue,
    Between,
    AtWait,
}

/// The surroundings of a block.
pub(crate) struct Env<'a> {
    pub module: &'a Module,
    pub kernel: &'a Kernel,
    pub const32: &'a [Lanes32],
    pub const64: &'a [Lanes64],
    pub params: &'a [u8],
    pub memory: &'a GlobalMemory,
    pub view: Allocations<'a>,
    pub shared: SharedMemory,
    pub grid_dim: [u32; 3],
    pub block_dim: [u32; 3],
    pub dynamic_shared: usize,
    pub check_races: bool,
    pub launch: u64,
    pub schedule: Schedule,
    pub step_limit: u64,
    // Of the present block.
    pub block: [u32; 3],
    pub block_index: u64,
    pub rng: u64,
    pub steps: u64,
    // Of all blocks so far.
    pub executed: Vec<u64>,
    pub counts: Counts,
}

impl<'a> Env<'a> {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block_dim.iter().product()
    }

    /// A thread's three coordinates.
    pub fn thread(&self, index: u32) -> [u32; 3] {
        let [x, y, _] = self.block_dim;
        [index % x, index / x % y, index / (x * y)]
    }

    /// A block's three coordinates.
    pub fn block_at(&self, index: u64) -> [u32; 3] {
        let [x, y, _] = self.grid_dim.map(u64::from);
        [(index % x) as u32, (index / x % y) as u32, (index / (x * y)) as u32]
    }

    pub fn site(&self, pc: u32) -> Site {
        let (line, loc) = self.kernel.code.get(pc as usize).map_or((0, 0), |i| (i.line, i.loc));
        self.module.site(line, loc)
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

    /// A number below `n` (xorshift).
    pub fn random(&mut self, n: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng >> 33) % n.max(1)
    }

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

    /// An aligned load; `pc` where it is subject to race checks.
    #[inline]
    pub fn load_global(&mut self, at: u64, bytes: usize, pc: Option<u32>) -> Result<u128, FaultKind> {
        let (block, offset) = self.global(at, bytes as u32)?;
        let Some(value) = block.load(offset, bytes) else {
            let space = MemorySpace::Global;
            return Err(FaultKind::Uninitialised { space, address: at, bytes: bytes as u32 });
        };
        if let (true, Some(pc)) = (self.check_races, pc) {
            self.shadow(block, offset, bytes, false, pc)?;
        }
        Ok(value)
    }

    /// An aligned store; `pc` where it is subject to race checks.
    #[inline]
    pub fn store_global(&mut self, at: u64, bytes: usize, value: u128, pc: Option<u32>) -> Result<(), FaultKind> {
        let (block, offset) = self.global(at, bytes as u32)?;
        if let (true, Some(pc)) = (self.check_races, pc) {
            self.shadow(block, offset, bytes, true, pc)?;
        }
        block.store(offset, bytes, value);
        Ok(())
    }

    /// An atomic; it is ordered with others of its kind and so not subject to race checks.
    pub fn update_global(&mut self, at: u64, wide: bool, f: impl Fn(u64) -> u64) -> Result<u64, FaultKind> {
        let bytes = if wide { 8 } else { 4 };
        let (block, offset) = self.global(at, bytes)?;
        let old = if wide {
            let _guard = self.memory.wide();
            let old = block.load(offset, 8);
            if let Some(old) = old {
                block.store(offset, 8, f(old as u64).into());
            }
            old.map(|v| v as u64)
        } else {
            block.update32(offset, |x| f(x.into()) as u32).map(u64::from)
        };
        old.ok_or(FaultKind::Uninitialised { space: MemorySpace::Global, address: at, bytes })
    }

    #[inline]
    fn global(&mut self, at: u64, bytes: u32) -> Result<(&'a Allocation, u64), FaultKind> {
        if !at.is_multiple_of(bytes.into()) {
            return Err(FaultKind::Misaligned { space: MemorySpace::Global, address: at, align: bytes });
        }
        self.view.find(at, bytes)
    }

    fn shadow(&self, block: &Allocation, offset: u64, bytes: usize, write: bool, pc: u32) -> Result<(), FaultKind> {
        let page = block.page(offset).shadow.get_or_init(ShadowPage::default);
        let tag = Tag::new(self.launch, self.block_index, pc);
        let Some(hit) = page.record(offset as usize % PAGE, bytes, write, tag) else { return Ok(()) };
        Err(FaultKind::Race {
            hazard: hit.hazard,
            space: MemorySpace::Global,
            address: block.base + offset + u64::from(hit.byte),
            other: Box::new(self.site(hit.pc)),
            other_thread: match hit.block {
                Some(index) => format!("block {:?}", self.block_at(index)),
                None => "several blocks".to_owned(),
            },
        })
    }

    /// The counts of all blocks that ran here.
    pub fn take_counts(&mut self) -> Counts {
        let mut counts = std::mem::take(&mut self.counts);
        for (inst, executed) in self.kernel.code.iter().zip(&mut self.executed) {
            if *executed > 0 {
                *counts.kinds.entry(inst.kind).or_default() += *executed;
                *counts.lines.entry(inst.line).or_default() += *executed;
                *executed = 0;
            }
        }
        counts
    }
}
