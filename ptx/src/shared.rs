//! Shared memory of a block: bytes, which of them were written, and a shadow that finds races in any schedule.
//!
//! The shadow keeps, for each 4-byte word (or each byte, once a word is touched in parts), the last writer and the readers
//! since. Two accesses of different warps are ordered when a barrier lies between them: each warp has a clock that counts
//! its barriers and knows, for each other warp, up to which of its clocks all accesses came before. Within a warp,
//! accesses of different lanes by different instructions are ordered by a warp-wide synchronisation.
//!
//! A `cp.async` is a write of its thread from issue to wait: nobody may touch the bytes meanwhile, and it counts as made
//! at the wait, so that others need a barrier after it.

use crate::error::{FaultKind, Hazard, MemorySpace};
use crate::memory::outside;

/// Who makes an access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accessor<'a> {
    pub warp: u16,
    pub lane: u8,
    /// The warp's count of instructions.
    pub serial: u32,
    /// The count at the warp's last synchronisation.
    pub sync: u32,
    pub pc: u32,
    /// For each warp, its clock up to which everything came before this access; for the own warp, the present clock.
    pub clock: &'a [u32],
}

impl Accessor<'_> {
    fn now(&self) -> u32 {
        self.clock[usize::from(self.warp)]
    }

    fn comes_after(&self, warp: u16, clock: u32) -> bool {
        self.clock[usize::from(warp)] > clock
    }
}

/// What kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Read,
    /// A read by an instruction that the whole warp runs together: later writes of any of its lanes come after it.
    WarpRead,
    Write,
    Atomic,
    /// The issue of a `cp.async`.
    AsyncWrite,
}

/// Two accesses that nothing orders.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub hazard: Hazard,
    pub address: u64,
    pub pc: u32,
    pub warp: u16,
    pub lane: Option<u8>,
}

const NOBODY: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
struct Cell {
    w_warp: u16,
    w_lane: u8,
    w_atomic: bool,
    pending: bool,
    /// This word is kept byte by byte.
    split: bool,
    r_warp: u16,
    w_clock: u32,
    w_serial: u32,
    w_pc: u32,
    r_clock: u32,
    r_serial: u32,
    r_lanes: u32,
    r_pc: u32,
    /// A reader of another warp than `r`, not ordered before it.
    s_warp: u16,
    s_clock: u32,
    s_pc: u32,
}

const EMPTY: Cell = Cell {
    w_warp: NOBODY,
    w_lane: 0,
    w_atomic: false,
    pending: false,
    split: false,
    r_warp: NOBODY,
    w_clock: 0,
    w_serial: 0,
    w_pc: 0,
    r_clock: 0,
    r_serial: 0,
    r_lanes: 0,
    r_pc: 0,
    s_warp: NOBODY,
    s_clock: 0,
    s_pc: 0,
};

type Clash = (Hazard, u32, u16, Option<u8>);

impl Cell {
    /// The last write, where it is not ordered before this access.
    fn clash_with_write(&self, by: &Accessor, hazard: Hazard, atomic: bool) -> Option<Clash> {
        if self.w_warp == NOBODY || (atomic && self.w_atomic) {
            return None;
        }
        let ordered = if self.w_warp == by.warp {
            self.w_lane == by.lane || self.w_serial == by.serial || self.w_serial < by.sync
        } else {
            by.comes_after(self.w_warp, self.w_clock)
        };
        (!ordered).then_some((hazard, self.w_pc, self.w_warp, Some(self.w_lane)))
    }

    fn clash_with_reads(&self, by: &Accessor) -> Option<Clash> {
        let hazard = Hazard::WriteAfterRead;
        if self.r_warp == by.warp {
            let others = self.r_lanes & !(1 << by.lane);
            if others != 0 && self.r_serial >= by.sync && self.r_serial != by.serial {
                return Some((hazard, self.r_pc, self.r_warp, Some(others.trailing_zeros() as u8)));
            }
        } else if self.r_warp != NOBODY && !by.comes_after(self.r_warp, self.r_clock) {
            return Some((hazard, self.r_pc, self.r_warp, None));
        }
        if self.s_warp != NOBODY && self.s_warp != by.warp && !by.comes_after(self.s_warp, self.s_clock) {
            return Some((hazard, self.s_pc, self.s_warp, None));
        }
        None
    }

    fn read(&mut self, by: &Accessor, together: bool) -> Option<Clash> {
        let lane = if together { 0 } else { 1 << by.lane };
        if self.pending {
            return Some((Hazard::ReadBeforeWait, self.w_pc, self.w_warp, Some(self.w_lane)));
        }
        if let Some(clash) = self.clash_with_write(by, Hazard::ReadAfterWrite, false) {
            return Some(clash);
        }
        if self.r_warp == by.warp {
            if self.r_serial < by.sync {
                self.r_lanes = 0;
            }
            self.r_lanes |= lane;
        } else if self.r_warp == NOBODY || by.comes_after(self.r_warp, self.r_clock) {
            self.r_warp = by.warp;
            self.r_lanes = lane;
        } else {
            (self.s_warp, self.s_clock, self.s_pc) = (by.warp, by.now(), by.pc);
            return None;
        }
        (self.r_clock, self.r_serial, self.r_pc) = (by.now(), by.serial, by.pc);
        None
    }

    fn write(&mut self, by: &Accessor, kind: AccessKind) -> Option<Clash> {
        if self.pending {
            return Some((Hazard::WriteBeforeWait, self.w_pc, self.w_warp, Some(self.w_lane)));
        }
        let atomic = kind == AccessKind::Atomic;
        let clash = self.clash_with_write(by, Hazard::WriteAfterWrite, atomic).or_else(|| self.clash_with_reads(by));
        if clash.is_some() {
            return clash;
        }
        // Whoever read before is ordered before this write: what conflicts with such a read conflicts with the write.
        *self = EMPTY;
        self.complete(by);
        self.w_atomic = atomic;
        self.pending = kind == AccessKind::AsyncWrite;
        None
    }

    fn complete(&mut self, by: &Accessor) {
        self.pending = false;
        (self.w_warp, self.w_lane, self.w_pc) = (by.warp, by.lane, by.pc);
        (self.w_clock, self.w_serial) = (by.now(), by.serial);
    }

    fn record(&mut self, by: &Accessor, kind: AccessKind) -> Option<Clash> {
        match kind {
            AccessKind::Read | AccessKind::WarpRead => self.read(by, kind == AccessKind::WarpRead),
            _ => self.write(by, kind),
        }
    }
}

/// Shared memory of one block.
pub(crate) struct SharedMemory {
    bytes: Vec<u8>,
    written: Vec<bool>,
    words: Vec<Cell>,
    /// Per-byte cells of the words that are split.
    parts: Vec<Cell>,
}

impl SharedMemory {
    pub fn new(bytes: usize, races: bool) -> Self {
        let words = if races { bytes.div_ceil(4) } else { 0 };
        Self { bytes: vec![0; bytes], written: vec![false; bytes], words: vec![EMPTY; words], parts: Vec::new() }
    }

    /// For the next block.
    pub fn reset(&mut self) {
        self.written.fill(false);
        self.words.fill(EMPTY);
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Checks bounds and alignment.
    #[inline]
    pub fn check(&self, address: u64, bytes: u32, align: u32) -> Result<usize, FaultKind> {
        if !address.is_multiple_of(align.into()) {
            return Err(FaultKind::Misaligned { space: MemorySpace::Shared, address, align });
        }
        if address.saturating_add(u64::from(bytes)) > self.bytes.len() as u64 {
            let whole = 0..self.bytes.len() as u64;
            return Err(outside(MemorySpace::Shared, address, bytes, Some(whole)));
        }
        Ok(address as usize)
    }

    /// Bytes that were checked; a fault where one was never written.
    #[inline]
    pub fn load(&self, at: usize, bytes: usize) -> Result<&[u8], FaultKind> {
        if self.written[at..at + bytes].iter().all(|&w| w) {
            return Ok(&self.bytes[at..at + bytes]);
        }
        Err(FaultKind::Uninitialised { space: MemorySpace::Shared, address: at as u64, bytes: bytes as u32 })
    }

    #[inline]
    pub fn store(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
        self.written[at..at + data.len()].fill(true);
    }

    /// Notes an access and compares it with those before.
    #[inline]
    pub fn record(&mut self, at: usize, bytes: usize, by: &Accessor, kind: AccessKind) -> Result<(), Conflict> {
        if self.words.is_empty() {
            return Ok(());
        }
        let mut byte = at;
        while byte < at + bytes {
            let word = byte / 4;
            let whole = byte.is_multiple_of(4) && at + bytes - byte >= 4;
            let cell = &mut self.words[word];
            if whole && !cell.split {
                if let Some(clash) = cell.record(by, kind) {
                    return Err(conflict(clash, byte));
                }
                byte += 4;
                continue;
            }
            if self.parts.is_empty() {
                self.parts = vec![EMPTY; self.words.len() * 4];
            }
            let cell = &mut self.words[word];
            let parts = &mut self.parts[word * 4..word * 4 + 4];
            if !cell.split {
                parts.fill(*cell);
                cell.split = true;
            }
            let end = (word * 4 + 4).min(at + bytes);
            for (i, part) in parts.iter_mut().enumerate().take(end - word * 4).skip(byte % 4) {
                if let Some(clash) = part.record(by, kind) {
                    return Err(conflict(clash, word * 4 + i));
                }
            }
            if whole && !matches!(kind, AccessKind::Read | AccessKind::WarpRead) {
                // All four bytes are in one state again.
                *cell = parts[0];
                cell.split = false;
            }
            byte = end;
        }
        Ok(())
    }

    /// The thread waited for its `cp.async`: it is a write made now.
    pub fn complete(&mut self, at: usize, bytes: usize, by: &Accessor) {
        if self.words.is_empty() {
            return;
        }
        for byte in at..at + bytes {
            let word = &mut self.words[byte / 4];
            if !word.split {
                word.complete(by);
            } else {
                self.parts[byte].complete(by);
            }
        }
    }
}

fn conflict((hazard, pc, warp, lane): Clash, byte: usize) -> Conflict {
    Conflict { hazard, address: byte as u64, pc, warp, lane }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(warp: u16, lane: u8, serial: u32, clock: &[u32]) -> Accessor<'_> {
        Accessor { warp, lane, serial, sync: 0, pc: serial, clock }
    }

    #[test]
    fn a_barrier_orders_warps() {
        let mut shared = SharedMemory::new(64, true);
        let (a, b) = ([1, 0], [0, 1]);
        shared.record(0, 16, &by(0, 3, 5, &a), AccessKind::Write).unwrap();
        let clash = shared.record(4, 2, &by(1, 0, 9, &b), AccessKind::Read).unwrap_err();
        assert_eq!(clash, Conflict { hazard: Hazard::ReadAfterWrite, address: 4, pc: 5, warp: 0, lane: Some(3) });
        let b = [2, 2];
        shared.record(4, 2, &by(1, 0, 9, &b), AccessKind::Read).unwrap();
        // Warp 0 does not know of that read yet.
        let a = [2, 1];
        let clash = shared.record(0, 16, &by(0, 3, 20, &a), AccessKind::Write).unwrap_err();
        assert_eq!((clash.hazard, clash.address, clash.pc), (Hazard::WriteAfterRead, 4, 9));
        let a = [3, 3];
        shared.record(0, 16, &by(0, 3, 20, &a), AccessKind::Write).unwrap();
    }

    #[test]
    fn lanes_of_a_warp_need_a_synchronisation() {
        let mut shared = SharedMemory::new(64, true);
        let a = [1];
        shared.record(8, 4, &by(0, 0, 1, &a), AccessKind::Write).unwrap();
        shared.record(8, 4, &by(0, 0, 2, &a), AccessKind::Read).unwrap();
        assert!(shared.record(8, 4, &by(0, 1, 3, &a), AccessKind::Read).is_err());
        let mut later = by(0, 1, 4, &a);
        later.sync = 3;
        shared.record(8, 4, &later, AccessKind::Read).unwrap();
        let clash = shared.record(8, 4, &Accessor { lane: 2, serial: 5, ..later }, AccessKind::Write).unwrap_err();
        assert_eq!((clash.hazard, clash.lane), (Hazard::WriteAfterRead, Some(1)));
    }

    #[test]
    fn a_read_by_the_whole_warp_is_over_when_it_goes_on() {
        let mut shared = SharedMemory::new(64, true);
        let (a, b) = ([1, 0], [0, 1]);
        shared.store(0, &[0; 16]);
        shared.record(0, 16, &by(0, 5, 2, &a), AccessKind::WarpRead).unwrap();
        assert!(shared.record(0, 4, &by(1, 0, 2, &b), AccessKind::Write).is_err());
        shared.record(0, 4, &by(0, 6, 3, &a), AccessKind::Write).unwrap();
        // What another lane wrote needs a synchronisation before it.
        assert!(shared.record(0, 16, &by(0, 5, 4, &a), AccessKind::WarpRead).is_err());
    }

    #[test]
    fn an_asynchronous_copy_is_a_write_until_its_wait() {
        let mut shared = SharedMemory::new(64, true);
        let (a, b) = ([1, 0], [0, 1]);
        shared.record(0, 16, &by(0, 0, 1, &a), AccessKind::AsyncWrite).unwrap();
        let clash = shared.record(0, 16, &by(0, 0, 2, &a), AccessKind::Read).unwrap_err();
        assert_eq!(clash.hazard, Hazard::ReadBeforeWait);
        shared.complete(0, 16, &by(0, 0, 3, &a));
        shared.record(0, 16, &by(0, 0, 4, &a), AccessKind::Read).unwrap();
        assert!(shared.record(0, 16, &by(1, 0, 4, &b), AccessKind::Read).is_err());
        shared.record(0, 16, &by(1, 0, 4, &[2, 2]), AccessKind::Read).unwrap();
        let clash = shared.record(0, 16, &by(0, 0, 9, &[2, 2]), AccessKind::AsyncWrite).unwrap_err();
        assert_eq!(clash.hazard, Hazard::WriteAfterRead);
    }
}
