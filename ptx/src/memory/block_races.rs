//! The shadow of global memory: for each half-word, the last block that wrote it and the blocks that read it.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::error::Hazard;

/// The author of an access: launch (16 bits), block (24), instruction (20), bytes of the half-word (2).
#[derive(Clone, Copy)]
pub(crate) struct Tag(u64);

/// Stands in for the block when several have read the half-word.
const MANY: u64 = 0xff_ffff;

impl Tag {
    pub fn new(launch: u64, block: u64, pc: u32) -> Self {
        Self((launch % 0xffff + 1) << 48 | block.min(MANY - 1) << 24 | u64::from(pc).min(0xf_ffff) << 4)
    }

    fn with_bytes(self, mask: u64) -> u64 {
        self.0 | mask
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

/// The shadow of a page.
pub(crate) struct ShadowPage {
    writes: Box<[AtomicU64]>,
    reads: Box<[AtomicU64]>,
}

impl ShadowPage {
    /// The shadow of a page of `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        let cells = || (0..bytes / 2).map(|_| AtomicU64::new(0)).collect();
        Self { writes: cells(), reads: cells() }
    }

    /// Records an access of 1 to 16 aligned bytes and compares it with those of other blocks.
    ///
    /// The tag is stored before the other map is loaded, both sequentially consistent, so that of two blocks on two threads
    /// at least one sees the other.
    #[inline]
    pub fn record(&self, at: usize, bytes: usize, write: bool, tag: Tag) -> Option<BlockConflict> {
        let (first, count) = (at / 2, bytes.div_ceil(2));
        let mask = if bytes == 1 { 1 << (at % 2) } else { 3 };
        for i in 0..count {
            let cell = first + i;
            let own = if write { &self.writes[cell] } else { &self.reads[cell] };
            let before = exchange(own, tag, mask, !write);
            let clash =
                |entry: u64| launch(entry) == launch(tag.0) && block(entry) != block(tag.0) && entry & mask != 0;
            let hit = |hazard, entry: u64| BlockConflict {
                hazard,
                byte: 2 * i as u32,
                pc: (entry >> 4 & 0xf_ffff) as u32,
                block: (block(entry) != MANY).then(|| block(entry)),
            };
            if write && clash(before) {
                return Some(hit(Hazard::WriteAfterWrite, before));
            }
            let other = if write { &self.reads[cell] } else { &self.writes[cell] }.load(SeqCst);
            if clash(other) {
                return Some(hit(if write { Hazard::WriteAfterRead } else { Hazard::ReadAfterWrite }, other));
            }
        }
        None
    }
}

/// Stores a tag in a cell and returns the previous entry. Readers accumulate (`gather`), a writer replaces.
#[inline]
fn exchange(cell: &AtomicU64, tag: Tag, mask: u64, gather: bool) -> u64 {
    let mut old = cell.load(SeqCst);
    loop {
        let same = launch(old) == launch(tag.0);
        let new = match () {
            () if same && (block(old) == block(tag.0) || gather && block(old) == MANY) => {
                if old & mask == mask {
                    return old;
                }
                old | mask
            }
            () if same && gather => (old | mask) | MANY << 24,
            () => tag.with_bytes(mask),
        };
        match cell.compare_exchange_weak(old, new, SeqCst, SeqCst) {
            Ok(_) => return old,
            Err(seen) => old = seen,
        }
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
        // Two blocks read, one of them writes.
        assert!(page.record(256, 8, false, a).is_none() && page.record(256, 8, false, b).is_none());
        assert_eq!(page.record(258, 2, true, b).unwrap().hazard, Hazard::WriteAfterRead);
        assert_eq!(page.record(128, 2, true, b).unwrap().hazard, Hazard::WriteAfterWrite);
    }
}
