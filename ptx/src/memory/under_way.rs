//! The state of shared memory that is under way: mbarriers with their phases, and bulk copies.

use crate::asynchronous::BulkReduce;

/// A byte of the shared memory of a block of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SharedPlace {
    pub rank: usize,
    pub at: usize,
}

/// An mbarrier.
#[derive(Debug, Default)]
pub(crate) struct Mbarrier {
    /// Arrivals of a phase.
    pub expected: i64,
    /// Arrivals and bytes that the current phase lacks.
    pub pending: i64,
    pub bytes: i64,
    /// Phases that are over.
    pub phase: u32,
    /// The author of what is written by copies that complete here.
    pub author: u16,
    /// The knowledge of those who arrived in this phase.
    pub clock: Vec<u32>,
    pub fenced: Vec<u32>,
    /// The knowledge that waiting for a phase that is over gives.
    pub done_clock: Vec<u32>,
    pub done_fenced: Vec<u32>,
    /// Its initialiser: warp and clock.
    pub init: (u16, u32),
}

/// Bytes of a chunk at most.
pub(crate) const CHUNK: usize = 16;

/// Up to 16 bytes that stay together: in shared memory at `at`, elsewhere at `other`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub at: usize,
    pub other: u64,
    /// The bytes that exist elsewhere; the rest is filled.
    pub from: u8,
    pub to: u8,
}

/// A bulk copy under way.
#[derive(Debug, Default)]
pub(crate) struct BulkCopy {
    pub chunks: Vec<Chunk>,
    /// The block in whose shared memory the chunks lie.
    pub rank: usize,
    /// Of a copy between shared memories, the block of the source.
    pub source_rank: Option<usize>,
    /// Of a copy to shared memory: its mbarrier and the phase.
    pub mbarrier: Option<(SharedPlace, u32)>,
    pub bytes: u64,
    pub pc: u32,
    pub landed: bool,
    pub nan: bool,
    /// Of a copy from shared memory: the warp and lane, the group, and what was read.
    pub owner: (u16, usize),
    pub group: u32,
    pub data: Option<Vec<u8>>,
    pub waited: bool,
    pub reduce: Option<BulkReduce>,
    pub element_type: u8,
    pub element_bytes: u8,
}
