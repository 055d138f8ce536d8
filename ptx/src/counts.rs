//! Counts of a launch: a profile that needs no GPU.

use std::collections::BTreeMap;

/// Kinds of warp instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum InstructionKind {
    Integer,
    Float,
    Half,
    /// Reciprocals, roots, exponentials, divisions.
    SpecialFunction,
    Convert,
    Move,
    Predicate,
    Branch,
    GlobalLoad,
    GlobalStore,
    SharedLoad,
    SharedStore,
    /// Local memory and parameters.
    Local,
    Atomic,
    AsyncCopy,
    /// `ldmatrix`.
    Ldmatrix,
    Mma,
    /// Shuffles, votes, warp reductions.
    Warp,
    /// Barriers of blocks and warps, fences.
    Barrier,
    Other,
}

/// Requests to global memory, one per warp instruction that accesses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Warp-wide requests.
    pub requests: u64,
    /// Sectors of 32 bytes accessed.
    pub sectors: u64,
    /// Smallest number of sectors that could hold the bytes requested.
    pub ideal: u64,
}

impl Traffic {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.ideal += other.ideal;
    }
}

/// Requests to shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Banks {
    /// Warp-wide requests.
    pub requests: u64,
    /// Passes over the banks: for each phase of a request, the largest number of different words in one bank.
    pub passes: u64,
    /// Passes if no banks conflicted.
    pub ideal: u64,
}

impl Banks {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.passes += other.passes;
        self.ideal += other.ideal;
    }

    /// Mean ways of the bank conflicts: passes per ideal pass, 1 without conflicts.
    pub fn ways(&self) -> f64 {
        if self.ideal == 0 { 1.0 } else { self.passes as f64 / self.ideal as f64 }
    }
}

/// Counts of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Blocks that ran.
    pub blocks: u64,
    /// Warp instructions by kind.
    pub kinds: BTreeMap<InstructionKind, u64>,
    /// Loads from global memory, asynchronous ones too.
    pub loads: Traffic,
    /// Stores to global memory and atomics on it.
    pub stores: Traffic,
    /// Loads from shared memory, `ldmatrix` too.
    pub shared_loads: Banks,
    /// Stores to shared memory, asynchronous ones too.
    pub shared_stores: Banks,
    /// Arrivals of warps at barriers of the block.
    pub barriers: u64,
    /// Warp instructions by PTX line.
    pub lines: BTreeMap<u32, u64>,
}

impl Counts {
    /// The number of warp instructions.
    pub fn instructions(&self) -> u64 {
        self.kinds.values().sum()
    }

    /// The number of warp instructions of one kind.
    pub fn of(&self, kind: InstructionKind) -> u64 {
        self.kinds.get(&kind).copied().unwrap_or(0)
    }

    /// The share of `mma` among all warp instructions.
    pub fn mma_share(&self) -> f64 {
        self.of(InstructionKind::Mma) as f64 / (self.instructions() as f64).max(1.0)
    }

    /// Adds the counts of another launch or block.
    pub fn add(&mut self, other: &Self) {
        self.blocks += other.blocks;
        for (kind, n) in &other.kinds {
            *self.kinds.entry(*kind).or_default() += n;
        }
        for (line, n) in &other.lines {
            *self.lines.entry(*line).or_default() += n;
        }
        self.loads.add(&other.loads);
        self.stores.add(&other.stores);
        self.shared_loads.add(&other.shared_loads);
        self.shared_stores.add(&other.shared_stores);
        self.barriers += other.barriers;
    }

    /// Adds how many times instructions ran, of which each has a kind and a line.
    pub(crate) fn add_executed(&mut self, ran: impl Iterator<Item = (InstructionKind, u32, u64)>) {
        let mut lines = Vec::new();
        for (kind, line, times) in ran {
            *self.kinds.entry(kind).or_default() += times;
            lines.push((line, times));
        }
        // Those of one line together: most are in order.
        lines.sort_unstable();
        for same in lines.chunk_by(|a, b| a.0 == b.0) {
            *self.lines.entry(same[0].0).or_default() += same.iter().map(|(_, times)| times).sum::<u64>();
        }
    }
}

/// Counts one request to global memory.
#[inline]
pub(crate) fn coalesce(traffic: &mut Traffic, addresses: &[u64], bytes: u64) {
    if addresses.is_empty() {
        return;
    }
    traffic.requests += 1;
    let first = addresses[0];
    let last = first + bytes * addresses.len() as u64;
    if addresses.iter().enumerate().all(|(i, a)| *a == first + bytes * i as u64) {
        traffic.sectors += last.div_ceil(32) - first / 32;
        traffic.ideal += (last - first).div_ceil(32);
        return;
    }
    let mut sorted = [0; 32];
    let sorted = &mut sorted[..addresses.len()];
    sorted.copy_from_slice(addresses);
    // Most are: rows one after the other.
    if !sorted.is_sorted() {
        sorted.sort_unstable();
    }
    // Elements are aligned to their size, so they either coincide or lie apart.
    let (mut unique, mut sectors, mut sector) = (0, 0, u64::MAX);
    for (i, a) in sorted.iter().enumerate() {
        if i > 0 && sorted[i - 1] == *a {
            continue;
        }
        unique += 1;
        if a / 32 != sector {
            sector = a / 32;
            sectors += 1;
        }
    }
    traffic.sectors += sectors;
    traffic.ideal += (unique * bytes).div_ceil(32);
}

/// Counts one request to shared memory of `bytes` a lane; wide ones go in phases of half or a quarter of the lanes.
#[inline]
pub(crate) fn conflicts(banks: &mut Banks, addresses: &[u64], bytes: u64) {
    if addresses.is_empty() {
        return;
    }
    banks.requests += 1;
    // Accesses are aligned to their size: two are of the same words or of different ones, and lie in the same banks or in others.
    let shift = bytes.max(4).trailing_zeros();
    let lanes = 128usize >> shift;
    for phase in addresses.chunks(lanes) {
        banks.ideal += 1;
        let first = phase[0] >> shift;
        // Neighbours are in different banks.
        if phase.iter().zip(first..).all(|(address, next)| address >> shift == next) {
            banks.passes += 1;
            continue;
        }
        // For each group of banks, the number of different units and the lane of the last one, counted from 1; for each lane, that
        // of the one before it in its group.
        let (mut count, mut last, mut before) = ([0u8; 32], [0u8; 32], [0u8; 32]);
        for (lane, address) in phase.iter().enumerate() {
            let at = address >> shift;
            let group = at as usize & (lanes - 1);
            let mut other = last[group];
            while other != 0 && phase[usize::from(other) - 1] >> shift != at {
                other = before[usize::from(other) - 1];
            }
            if other == 0 {
                (before[lane], last[group]) = (last[group], lane as u8 + 1);
                count[group] += 1;
            }
        }
        banks.passes += u64::from(count.into_iter().max().unwrap_or(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors() {
        let of = |addresses: Vec<u64>, bytes| {
            let mut t = Traffic::default();
            coalesce(&mut t, &addresses, bytes);
            (t.sectors, t.ideal)
        };
        assert_eq!(of((0..32).map(|i| 256 + 4 * i).collect(), 4), (4, 4));
        assert_eq!(of((0..32).map(|i| 272 + 4 * i).collect(), 4), (5, 4));
        assert_eq!(of((0..32).map(|i| 256 + 64 * i).collect(), 4), (32, 4));
        assert_eq!(of(vec![256; 32], 4), (1, 1));
        assert_eq!(of((0..32).rev().map(|i| 256 + 16 * i).collect(), 16), (16, 16));
    }

    #[test]
    fn banks() {
        let of = |addresses: Vec<u64>, bytes| {
            let mut b = Banks::default();
            conflicts(&mut b, &addresses, bytes);
            (b.passes, b.ideal)
        };
        assert_eq!(of((0..32).map(|i| 4 * i).collect(), 4), (1, 1));
        assert_eq!(of((0..32).map(|i| 8 * i).collect(), 4), (2, 1));
        assert_eq!(of((0..32).map(|i| 128 * i).collect(), 4), (32, 1));
        assert_eq!(of(vec![12; 32], 4), (1, 1));
        // Rows of 128 bytes without a swizzle: the eight rows of a matrix fall on the same banks.
        assert_eq!(of((0..8).map(|i| 128 * i).collect(), 16), (8, 1));
        assert_eq!(of((0..8).map(|i| 144 * i).collect(), 16), (1, 1));
        assert_eq!(of((0..32).map(|i| 16 * i).collect(), 16), (4, 4));
    }
}
