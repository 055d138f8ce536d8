//! The shadow of global memory: for each 16 aligned bytes, or each half-word once they are accessed in parts, the last block that
//! wrote them and the blocks that read them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::error::Hazard;

/// The author of an access: launch (16 bits), block (24), instruction (20), and what the access was of (2): bytes of a half-word, or
/// [`WHOLE`].
#[derive(Clone, Copy)]
pub(crate) struct Tag(u64);

/// Stands in for the block when several have read the bytes.
const MANY: u64 = 0xff_ffff;

/// Both bytes of a half-word, or all of a quad.
const WHOLE: u64 = 3;
/// In this launch a quad's half-words have cells of their own.
const SPLIT: u64 = 1;
/// They are being made.
const BUSY: u64 = 2;

impl Tag {
    pub fn new(launch: u64, block: u64, pc: u32) -> Self {
        Self((launch % 0xffff + 1) << 48 | block.min(MANY - 1) << 24 | u64::from(pc).min(0xf_ffff) << 4)
    }

    /// Whether an entry is of the same launch.
    fn is_recent(self, entry: u64) -> bool {
        launch(entry) == launch(self.0)
    }

    /// Whether an entry is another block's, of the same launch and of one of these bytes.
    fn clashes(self, entry: u64, bytes: u64) -> bool {
        self.is_recent(entry) && block(entry) != block(self.0) && entry & bytes != 0
    }

    /// The entry that says that a quad is split, or about to be.
    fn state(self, state: u64) -> u64 {
        launch(self.0) << 48 | state
    }
}

fn launch(entry: u64) -> u64 {
    entry >> 48
}

fn block(entry: u64) -> u64 {
    entry >> 24 & MANY
}

/// A conflict between blocks.
pub(crate) struct BlockConflict {
    pub hazard: Hazard,
    /// First conflicting byte, counted from the start of the access.
    pub byte: u32,
    pub pc: u32,
    /// The other block; `None` for several.
    pub block: Option<u64>,
}

/// An entry that an access conflicts with, and the first byte of that.
type Clash = (u64, u32);

/// The shadow of a page.
pub(crate) struct ShadowPage {
    writes: Cells,
    reads: Cells,
}

impl ShadowPage {
    /// The shadow of a page of `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        Self { writes: Cells::new(bytes), reads: Cells::new(bytes) }
    }

    /// Records an access of 1 to 16 aligned bytes and compares it with those of other blocks.
    ///
    /// The tag is stored before the other map is loaded, both sequentially consistent, so that of two blocks on two threads
    /// at least one sees the other.
    #[inline]
    pub fn record(&self, at: usize, bytes: usize, write: bool, tag: Tag) -> Option<BlockConflict> {
        let (own, other) = if write { (&self.writes, &self.reads) } else { (&self.reads, &self.writes) };
        let before = own.store(at, bytes, tag, !write).map(|clash| (Hazard::WriteAfterWrite, clash));
        let hazard = if write { Hazard::WriteAfterRead } else { Hazard::ReadAfterWrite };
        let (hazard, (entry, byte)) = before.or_else(|| other.find(at, bytes, tag).map(|clash| (hazard, clash)))?;
        let block = (block(entry) != MANY).then(|| block(entry));
        Some(BlockConflict { hazard, byte, pc: (entry >> 4 & 0xf_ffff) as u32, block })
    }
}

/// The accesses to a page, either reads or writes. Most are of 16 aligned bytes, a quad, which share a cell until they are accessed
/// in parts: then, for the rest of the launch, each half-word has one.
struct Cells {
    quads: Box<[AtomicU64]>,
    halves: OnceLock<Box<[AtomicU64]>>,
}

impl Cells {
    fn new(bytes: usize) -> Self {
        Self { quads: empty(bytes / 16), halves: OnceLock::new() }
    }

    /// The cells of the half-words, made at their first use.
    fn halves(&self) -> &[AtomicU64] {
        self.halves.get_or_init(|| empty(self.quads.len() * 8))
    }

    /// Stores a tag. Readers accumulate (`gather`); a writer replaces, and gets the first entry that it conflicts with.
    #[inline]
    fn store(&self, at: usize, bytes: usize, tag: Tag, gather: bool) -> Option<Clash> {
        let quad = &self.quads[at / 16];
        if bytes == 16 {
            let mut old = settled(quad);
            while old != tag.state(SPLIT) {
                if replace(quad, old, combined(old, tag, WHOLE, gather)) {
                    return (!gather && tag.clashes(old, WHOLE)).then_some((old, 0));
                }
                old = settled(quad);
            }
        }
        self.split(at / 16, tag);
        let (cells, mask) = self.parts(at, bytes);
        let mut first = None;
        for (i, cell) in cells.iter().enumerate() {
            let mut old = cell.load(SeqCst);
            while !replace(cell, old, combined(old, tag, mask, gather)) {
                old = cell.load(SeqCst);
            }
            if !gather && first.is_none() && tag.clashes(old, mask) {
                first = Some((old, 2 * i as u32));
            }
        }
        first
    }

    /// The first entry that an access of the other kind conflicts with.
    #[inline]
    fn find(&self, at: usize, bytes: usize, tag: Tag) -> Option<Clash> {
        let entry = settled(&self.quads[at / 16]);
        if entry != tag.state(SPLIT) {
            return tag.clashes(entry, WHOLE).then_some((entry, 0));
        }
        let (cells, mask) = self.parts(at, bytes);
        let mut entries = cells.iter().map(|cell| cell.load(SeqCst)).zip((0..).step_by(2));
        entries.find(|(entry, _)| tag.clashes(*entry, mask))
    }

    /// The cells of the half-words of an access, and which bytes of each it is of.
    fn parts(&self, at: usize, bytes: usize) -> (&[AtomicU64], u64) {
        let mask = if bytes == 1 { 1 << (at % 2) } else { WHOLE };
        (&self.halves()[at / 2..][..bytes.div_ceil(2)], mask)
    }

    /// Gives the half-words of a quad cells of their own for the rest of the launch.
    #[inline]
    fn split(&self, quad: usize, tag: Tag) {
        let cell = &self.quads[quad];
        let mut old = settled(cell);
        while old != tag.state(SPLIT) {
            // What is in the cells of the half-words is older, too.
            if !tag.is_recent(old) {
                replace(cell, old, tag.state(SPLIT));
            } else if replace(cell, old, tag.state(BUSY)) {
                self.halves()[8 * quad..][..8].iter().for_each(|half| half.store(old, SeqCst));
                cell.store(tag.state(SPLIT), SeqCst);
            }
            old = settled(cell);
        }
    }
}

fn empty(cells: usize) -> Box<[AtomicU64]> {
    (0..cells).map(|_| AtomicU64::new(0)).collect()
}

/// The entry of a quad, once nobody is splitting it.
#[inline]
fn settled(quad: &AtomicU64) -> u64 {
    loop {
        let entry = quad.load(SeqCst);
        if entry & WHOLE != BUSY {
            return entry;
        }
        std::thread::yield_now();
    }
}

/// Stores an entry where the old one still is; where both are the same there is nothing to do.
#[inline]
fn replace(cell: &AtomicU64, old: u64, new: u64) -> bool {
    new == old || cell.compare_exchange_weak(old, new, SeqCst, SeqCst).is_ok()
}

/// The entry that follows another in a cell.
#[inline]
fn combined(old: u64, tag: Tag, mask: u64, gather: bool) -> u64 {
    match () {
        () if !tag.is_recent(old) => tag.0 | mask,
        () if block(old) == block(tag.0) || gather && block(old) == MANY => old | mask,
        () if gather => old | mask | MANY << 24,
        () => tag.0 | mask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_conflicts() {
        let page = ShadowPage::new(1 << 16);
        let (a, b) = (Tag::new(1, 0, 7), Tag::new(1, 1, 9));
        assert!(page.record(64, 16, true, a).is_none());
        assert!(page.record(64, 16, false, a).is_none());
        let hit = page.record(72, 4, false, b).unwrap();
        assert_eq!((hit.hazard, hit.pc, hit.block, hit.byte), (Hazard::ReadAfterWrite, 7, Some(0), 0));
        assert!(page.record(64, 16, true, Tag::new(2, 1, 9)).is_none());
        // Neighbouring halves of one word belong to different blocks.
        assert!(page.record(128, 2, true, a).is_none() && page.record(130, 2, true, b).is_none());
        // A half-word of a quad that another block wrote whole, and the whole of one whose parts two blocks wrote.
        assert!(page.record(512, 16, true, a).is_none() && page.record(514, 2, true, a).is_none());
        let hit = page.record(524, 4, false, b).unwrap();
        assert_eq!((hit.hazard, hit.pc, hit.block, hit.byte), (Hazard::ReadAfterWrite, 7, Some(0), 0));
        assert!(page.record(544, 4, true, a).is_none() && page.record(548, 4, true, b).is_none());
        let hit = page.record(544, 16, false, a).unwrap();
        assert_eq!((hit.hazard, hit.pc, hit.block, hit.byte), (Hazard::ReadAfterWrite, 9, Some(1), 4));
        assert_eq!(page.record(544, 16, true, b).unwrap().hazard, Hazard::WriteAfterWrite);
        // In the next launch it is one again.
        assert!(page.record(544, 16, true, Tag::new(2, 1, 9)).is_none());
        assert_eq!(page.record(544, 16, true, Tag::new(2, 0, 9)).unwrap().byte, 0);
        // Two blocks read, one of them writes.
        assert!(page.record(256, 8, false, a).is_none() && page.record(256, 8, false, b).is_none());
        assert_eq!(page.record(258, 2, true, b).unwrap().hazard, Hazard::WriteAfterRead);
        assert_eq!(page.record(128, 2, true, b).unwrap().hazard, Hazard::WriteAfterWrite);
    }
}
