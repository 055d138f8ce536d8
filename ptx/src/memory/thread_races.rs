//! The shadow of shared memory, which finds races between the threads of a block under any schedule.
//!
//! The shadow keeps, for each 16 aligned bytes (or each word, once they are accessed in parts, or each byte), the last writer and the
//! readers since. Two accesses of different warps are ordered when a barrier lies between them: a vector clock per warp counts its
//! barriers and holds, for each other warp, the clock below which all accesses of that warp came before. Within a warp,
//! accesses of different lanes by different instructions are ordered by a warp-wide synchronisation.
//!
//! A `cp.async` is a write of its thread from issue to wait: nobody may access the bytes meanwhile, and it counts as made
//! at the wait, so that others need a barrier after it.
//!
//! A bulk copy and a `wgmma` are authors of their own beside the warps ([`Proxy`]): each mbarrier for the copies that complete on it,
//! each warp for the groups that it waits for. What they read or write is over at a clock that only those know who waited.

use crate::error::Hazard;

/// The author of an access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accessor<'a> {
    pub warp: u16,
    pub lane: u8,
    /// The warp's count of instructions.
    pub serial: u32,
    /// The count at the warp's last synchronisation.
    pub sync: u32,
    pub pc: u32,
    /// For each author, the clock below which all its accesses came before this one; for the own warp, the current clock.
    pub clock: &'a [u32],
    /// The asynchronous access, where it is not the thread itself that makes it.
    pub proxy: Option<Proxy<'a>>,
}

/// An access through the asynchronous proxy: by a bulk copy or a `wgmma`, later than the instruction that began it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proxy<'a> {
    /// The author of the access, one beyond the warps, and the clock after which the access is over.
    pub author: u16,
    pub until: u32,
    /// For each warp, the clock below which its writes were followed by `fence.proxy.async`.
    pub fenced: &'a [u32],
}

impl Accessor<'_> {
    fn now(&self) -> u32 {
        self.clock[usize::from(self.warp)]
    }

    fn comes_after(&self, warp: u16, clock: u32) -> bool {
        at(self.clock, warp) > clock
    }

    /// The author of the access and its clock.
    fn author(&self) -> (u16, u32) {
        self.proxy.map_or((self.warp, self.now()), |p| (p.author, p.until))
    }

    /// Whether what a thread wrote to shared memory is in sight: of an access through the asynchronous proxy, only what a fence
    /// followed. What came through that proxy needs no fence.
    fn sees(&self, warp: u16, clock: u32, through_proxy: bool) -> bool {
        self.proxy.is_none_or(|p| through_proxy || at(p.fenced, warp) > clock)
    }
}

/// An entry of a vector clock; those beyond its end are 0.
fn at(clock: &[u32], author: u16) -> u32 {
    clock.get(usize::from(author)).copied().unwrap_or(0)
}

/// Kinds of access to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Read,
    /// A read by an instruction of the whole warp: later writes of any of its lanes come after it.
    WarpRead,
    Write,
    Atomic,
    /// The issue of a `cp.async`.
    AsyncWrite,
}

/// Two unordered accesses, described by the earlier one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ThreadConflict {
    pub hazard: Hazard,
    pub address: u64,
    pub pc: u32,
    pub warp: u16,
    pub lane: Option<u8>,
}

/// No warp.
const NOBODY: u16 = u16::MAX;

/// The accesses to a word or byte that later ones are compared with.
#[derive(Clone, Copy, Debug)]
struct Cell {
    write_warp: u16,
    write_lane: u8,
    write_atomic: bool,
    /// The write is a `cp.async` that was not waited for.
    pending: bool,
    /// The write came through the asynchronous proxy.
    through_proxy: bool,
    /// The write was a `cp.async`. By the manual that is the generic proxy, which needs a fence before `wgmma`; Triton and CUTLASS have
    /// none there, and it works.
    copied: bool,
    /// Its parts have cells of their own.
    split: bool,
    read_warp: u16,
    write_clock: u32,
    write_serial: u32,
    write_pc: u32,
    read_clock: u32,
    read_serial: u32,
    read_lanes: u32,
    read_pc: u32,
    /// A reader in another warp than `read_warp`, not ordered before that one.
    second_warp: u16,
    second_clock: u32,
    second_pc: u32,
}

const EMPTY: Cell = Cell {
    write_warp: NOBODY,
    write_lane: 0,
    write_atomic: false,
    pending: false,
    through_proxy: false,
    copied: false,
    split: false,
    read_warp: NOBODY,
    write_clock: 0,
    write_serial: 0,
    write_pc: 0,
    read_clock: 0,
    read_serial: 0,
    read_lanes: 0,
    read_pc: 0,
    second_warp: NOBODY,
    second_clock: 0,
    second_pc: 0,
};

/// A conflict without its address: hazard, program counter, warp, lane.
type Clash = (Hazard, u32, u16, Option<u8>);

impl Cell {
    /// Returns the last write if it is not ordered before this access.
    fn clash_with_write(&self, by: &Accessor, hazard: Hazard, atomic: bool) -> Option<Clash> {
        if self.write_warp == NOBODY || (atomic && self.write_atomic) {
            return None;
        }
        let ordered = if self.write_warp == by.warp {
            self.write_lane == by.lane || self.write_serial == by.serial || self.write_serial < by.sync
        } else {
            by.comes_after(self.write_warp, self.write_clock)
        };
        let hazard = match ordered {
            true if self.sees_write(by) => return None,
            true => Hazard::NoProxyFence,
            false if self.through_proxy && hazard == Hazard::ReadAfterWrite => Hazard::ReadBeforeWait,
            false if self.through_proxy => Hazard::WriteBeforeWait,
            false => hazard,
        };
        Some((hazard, self.write_pc, self.write_warp, Some(self.write_lane)))
    }

    fn sees_write(&self, by: &Accessor) -> bool {
        by.sees(self.write_warp, self.write_clock, self.through_proxy || self.copied)
    }

    /// Returns a read that is not ordered before this write.
    fn clash_with_reads(&self, by: &Accessor) -> Option<Clash> {
        let hazard = Hazard::WriteAfterRead;
        if self.read_warp == by.warp {
            let others = self.read_lanes & !(1 << by.lane);
            if others != 0 && self.read_serial >= by.sync && self.read_serial != by.serial {
                return Some((hazard, self.read_pc, self.read_warp, Some(others.trailing_zeros() as u8)));
            }
        } else if self.read_warp != NOBODY && !by.comes_after(self.read_warp, self.read_clock) {
            return Some((hazard, self.read_pc, self.read_warp, None));
        }
        if self.second_warp != NOBODY
            && self.second_warp != by.warp
            && !by.comes_after(self.second_warp, self.second_clock)
        {
            return Some((hazard, self.second_pc, self.second_warp, None));
        }
        None
    }

    fn read(&mut self, by: &Accessor, together: bool) -> Option<Clash> {
        let lane = if together { 0 } else { 1 << by.lane };
        if self.pending {
            return Some((Hazard::ReadBeforeWait, self.write_pc, self.write_warp, Some(self.write_lane)));
        }
        if let Some(clash) = self.clash_with_write(by, Hazard::ReadAfterWrite, false) {
            return Some(clash);
        }
        let (author, clock) = by.author();
        if self.read_warp == author {
            if self.read_serial < by.sync {
                self.read_lanes = 0;
            }
            self.read_lanes |= lane;
        } else if self.read_warp == NOBODY || by.comes_after(self.read_warp, self.read_clock) {
            self.read_warp = author;
            self.read_lanes = lane;
        } else {
            (self.second_warp, self.second_clock, self.second_pc) = (author, clock, by.pc);
            return None;
        }
        (self.read_clock, self.read_serial, self.read_pc) = (clock, by.serial, by.pc);
        None
    }

    fn write(&mut self, by: &Accessor, kind: AccessKind) -> Option<Clash> {
        if self.pending {
            return Some((Hazard::WriteBeforeWait, self.write_pc, self.write_warp, Some(self.write_lane)));
        }
        let atomic = kind == AccessKind::Atomic;
        let clash = self.clash_with_write(by, Hazard::WriteAfterWrite, atomic).or_else(|| self.clash_with_reads(by));
        if clash.is_some() {
            return clash;
        }
        // All earlier reads are ordered before this write, so what conflicts with one of them conflicts with the write.
        *self = EMPTY;
        self.complete(by);
        self.write_atomic = atomic;
        self.pending = kind == AccessKind::AsyncWrite;
        self.through_proxy = by.proxy.is_some();
        self.copied = self.pending;
        None
    }

    fn complete(&mut self, by: &Accessor) {
        self.pending = false;
        (self.write_warp, self.write_clock) = by.author();
        (self.write_lane, self.write_pc, self.write_serial) = (by.lane, by.pc, by.serial);
    }

    fn record(&mut self, by: &Accessor, kind: AccessKind) -> Option<Clash> {
        match kind {
            AccessKind::Read | AccessKind::WarpRead => self.read(by, kind == AccessKind::WarpRead),
            _ => self.write(by, kind),
        }
    }
}

/// The shadow of the shared memory of a block; empty where races are not checked. Most accesses are of 16 aligned bytes, which share
/// a cell until one is accessed in parts.
pub(super) struct SharedShadow {
    quads: Vec<Cell>,
    /// Cells of the words of the quads that are split.
    words: Vec<Cell>,
    /// Cells of the bytes of the words that are split.
    bytes: Vec<Cell>,
}

impl SharedShadow {
    /// The shadow of `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        Self { quads: vec![EMPTY; bytes.div_ceil(16)], words: Vec::new(), bytes: Vec::new() }
    }

    /// Forgets all accesses, which were of the first `bytes` bytes, for the next block.
    pub fn reset(&mut self, bytes: usize) {
        let quads = self.quads.len().min(bytes.div_ceil(16));
        self.quads[..quads].fill(EMPTY);
    }

    /// Records an access and compares it with earlier ones.
    #[inline]
    pub fn record(&mut self, at: usize, bytes: usize, by: &Accessor, kind: AccessKind) -> Result<(), ThreadConflict> {
        if self.quads.is_empty() {
            return Ok(());
        }
        let (mut byte, end) = (at, at + bytes);
        while byte < end {
            let quad = byte / 16;
            let whole = byte.is_multiple_of(16) && end - byte >= 16;
            let cell = &mut self.quads[quad];
            if whole && !cell.split {
                if let Some(clash) = cell.record(by, kind) {
                    return Err(conflict(clash, byte));
                }
                byte += 16;
                continue;
            }
            if self.words.is_empty() {
                self.words = vec![EMPTY; self.quads.len() * 4];
            }
            let cell = &mut self.quads[quad];
            if !cell.split {
                self.words[quad * 4..][..4].fill(*cell);
                cell.split = true;
            }
            let stop = (quad * 16 + 16).min(end);
            self.record_words(byte, stop, by, kind)?;
            if whole && !matches!(kind, AccessKind::Read | AccessKind::WarpRead) {
                // All sixteen bytes are in one state again.
                self.quads[quad] = self.words[quad * 4];
            }
            byte = stop;
        }
        Ok(())
    }

    /// Records an access within a quad that is split.
    fn record_words(
        &mut self,
        mut byte: usize,
        stop: usize,
        by: &Accessor,
        kind: AccessKind,
    ) -> Result<(), ThreadConflict> {
        while byte < stop {
            let word = byte / 4;
            let whole = byte.is_multiple_of(4) && stop - byte >= 4;
            let cell = &mut self.words[word];
            if whole && !cell.split {
                if let Some(clash) = cell.record(by, kind) {
                    return Err(conflict(clash, byte));
                }
                byte += 4;
                continue;
            }
            if self.bytes.is_empty() {
                self.bytes = vec![EMPTY; self.words.len() * 4];
            }
            let cell = &mut self.words[word];
            let parts = &mut self.bytes[word * 4..word * 4 + 4];
            if !cell.split {
                parts.fill(*cell);
                cell.split = true;
            }
            let end = (word * 4 + 4).min(stop);
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

    /// Completes a `cp.async`, of 4, 8 or 16 aligned bytes: its thread waited for it, and the write counts as made now.
    pub fn complete(&mut self, at: usize, bytes: usize, by: &Accessor) {
        let Some(quad) = self.quads.get_mut(at / 16) else { return };
        if !quad.split {
            quad.complete(by);
            return;
        }
        for word in at / 4..(at + bytes).div_ceil(4) {
            let cell = &mut self.words[word];
            if cell.split {
                self.bytes[word * 4..][..4].iter_mut().for_each(|byte| byte.complete(by));
            } else {
                cell.complete(by);
            }
        }
    }
}

fn conflict((hazard, pc, warp, lane): Clash, byte: usize) -> ThreadConflict {
    ThreadConflict { hazard, address: byte as u64, pc, warp, lane }
}
