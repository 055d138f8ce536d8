//! Allocations of global memory: sparse pages, checked byte for byte, shared by the threads that run blocks.
//!
//! A page is made of atomic words, so that blocks on different threads may access it without a lock. All accesses are
//! relaxed: the interpreter does not model a weak memory order.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::block_races::{BlockConflict, ShadowPage, Tag};
use crate::error::{FaultKind, MemorySpace};

/// Bytes of a page.
pub(super) const PAGE: usize = 1 << 16;

/// A page of an allocation, created by the first write to it.
pub(super) struct Page {
    words: Box<[AtomicU32]>,
    /// One bit per byte, set once the byte has been written.
    written: Box<[AtomicU64]>,
    shadow: OnceLock<ShadowPage>,
}

impl Page {
    fn new() -> Self {
        Self {
            words: (0..PAGE / 4).map(|_| AtomicU32::new(0)).collect(),
            written: (0..PAGE / 64).map(|_| AtomicU64::new(0)).collect(),
            shadow: OnceLock::new(),
        }
    }

    /// Marks 1 to 16 aligned bytes as written.
    #[inline]
    fn mark(&self, at: usize, bytes: usize) {
        let bits = ((1u64 << bytes) - 1) << (at % 64);
        let word = &self.written[at / 64];
        if word.load(Relaxed) & bits != bits {
            word.fetch_or(bits, Relaxed);
        }
    }

    #[inline]
    fn is_written(&self, at: usize, bytes: usize) -> bool {
        let bits = ((1u64 << bytes) - 1) << (at % 64);
        self.written[at / 64].load(Relaxed) & bits == bits
    }

    /// Replaces the bytes of `mask` in a word.
    #[inline]
    fn merge(&self, word: usize, value: u32, mask: u32) {
        let cell = &self.words[word];
        let mut old = cell.load(Relaxed);
        while let Err(seen) = cell.compare_exchange_weak(old, (old & !mask) | (value & mask), Relaxed, Relaxed) {
            old = seen;
        }
    }
}

/// An allocation of global memory.
pub(crate) struct Allocation {
    pub base: u64,
    pub bytes: u64,
    pages: Box<[OnceLock<Box<Page>>]>,
}

impl Allocation {
    #[inline]
    fn page(&self, offset: u64) -> &Page {
        self.pages[offset as usize / PAGE].get_or_init(|| Box::new(Page::new()))
    }

    /// An allocation without pages.
    pub(super) fn new(base: u64, bytes: u64) -> Self {
        let pages = (bytes as usize).div_ceil(PAGE);
        Self { base, bytes, pages: (0..pages).map(|_| OnceLock::new()).collect() }
    }

    /// The addresses of the allocation.
    pub(super) fn range(&self) -> Range<u64> {
        self.base..self.base + self.bytes
    }

    /// Records an access of a block in the shadow and returns the conflict with another block, if any.
    #[inline]
    pub fn record(&self, offset: u64, bytes: usize, write: bool, tag: Tag) -> Option<BlockConflict> {
        let shadow = self.page(offset).shadow.get_or_init(|| ShadowPage::new(PAGE));
        shadow.record(offset as usize % PAGE, bytes, write, tag)
    }

    /// Bytes of the pages that exist.
    pub(super) fn resident(&self) -> u64 {
        self.pages.iter().filter(|p| p.get().is_some()).count() as u64 * PAGE as u64
    }

    /// Marks bytes as never written.
    pub(super) fn forget(&self, from: u64, bytes: u64) {
        let (mut at, end) = (from, from + bytes);
        while at < end {
            let stop = end.min((at / 64 + 1) * 64);
            if let Some(page) = self.existing(at) {
                let count = (stop - at) as u32;
                let bits = (u64::MAX >> (64 - count)) << (at % 64);
                page.written[at as usize % PAGE / 64].fetch_and(!bits, Relaxed);
            }
            at = stop;
        }
    }

    fn existing(&self, offset: u64) -> Option<&Page> {
        self.pages[offset as usize / PAGE].get().map(|page| &**page)
    }

    /// Loads 1 to 16 bytes at an aligned offset, zero-extended; `None` if any of them was never written.
    #[inline]
    pub fn load(&self, offset: u64, bytes: usize) -> Option<u128> {
        let page = self.existing(offset)?;
        let at = offset as usize % PAGE;
        if !page.is_written(at, bytes) {
            return None;
        }
        let word = at / 4;
        let get = |i: usize| page.words[word + i].load(Relaxed);
        Some(match bytes {
            4 => u128::from(get(0)),
            8 => u128::from(get(0)) | u128::from(get(1)) << 32,
            16 => {
                let low = u64::from(get(0)) | u64::from(get(1)) << 32;
                let high = u64::from(get(2)) | u64::from(get(3)) << 32;
                u128::from(low) | u128::from(high) << 64
            }
            _ => u128::from((get(0) >> (8 * (at % 4))) & (u32::MAX >> (32 - 8 * bytes))),
        })
    }

    /// Stores the lowest 1, 2, 4, 8 or 16 bytes of a value at an aligned offset.
    #[inline]
    pub fn store(&self, offset: u64, bytes: usize, value: u128) {
        let page = self.page(offset);
        let at = offset as usize % PAGE;
        let word = at / 4;
        match bytes {
            1 | 2 => {
                let shift = 8 * (at % 4);
                page.merge(word, (value as u32) << shift, (u32::MAX >> (32 - 8 * bytes)) << shift);
            }
            _ => {
                for i in 0..bytes / 4 {
                    page.words[word + i].store((value >> (32 * i)) as u32, Relaxed);
                }
            }
        }
        page.mark(at, bytes);
    }

    /// Updates an aligned 32-bit word atomically and returns the old value; `None` if it was never written.
    pub fn update32(&self, offset: u64, f: impl Fn(u32) -> u32) -> Option<u32> {
        let page = self.existing(offset)?;
        let at = offset as usize % PAGE;
        if !page.is_written(at, 4) {
            return None;
        }
        let cell = &page.words[at / 4];
        let mut old = cell.load(Relaxed);
        while let Err(seen) = cell.compare_exchange_weak(old, f(old), Relaxed, Relaxed) {
            old = seen;
        }
        Some(old)
    }
}

/// The allocations a launch can access, in order of address, with a cache of the last one found.
pub(crate) struct Allocations<'a> {
    allocations: &'a [Arc<Allocation>],
    last: usize,
}

impl<'a> Allocations<'a> {
    pub fn new(allocations: &'a [Arc<Allocation>]) -> Self {
        Self { allocations, last: 0 }
    }

    /// Finds the allocation that holds these bytes; returns it with the offset in it.
    #[inline]
    pub fn find(&mut self, address: u64, bytes: u32) -> Result<(&'a Allocation, u64), FaultKind> {
        if let Some(allocation) = self.allocations.get(self.last) {
            let offset = address.wrapping_sub(allocation.base);
            if offset < allocation.bytes && u64::from(bytes) <= allocation.bytes - offset {
                return Ok((allocation, offset));
            }
        }
        let above = self.allocations.partition_point(|b| b.base <= address);
        let Some(allocation) = above.checked_sub(1).map(|i| &self.allocations[i]) else {
            return Err(FaultKind::out_of_bounds(MemorySpace::Global, address, bytes, None));
        };
        let offset = address - allocation.base;
        if offset >= allocation.bytes || u64::from(bytes) > allocation.bytes - offset {
            return Err(FaultKind::out_of_bounds(MemorySpace::Global, address, bytes, Some(allocation.range())));
        }
        self.last = above - 1;
        Ok((allocation, offset))
    }
}
