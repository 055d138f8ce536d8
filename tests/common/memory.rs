//! An allocator that counts the bytes that each thread and the process hold.

#![allow(dead_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// The system's allocator, with counts. It refuses what would take a thread beyond [`LIMIT`], so that a finding ends this process
/// and not the machine.
pub struct Counting;

const LIMIT: i64 = 3 << 30;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

static ALL: AtomicI64 = AtomicI64::new(0);

/// The bytes that the process holds.
pub fn held() -> i64 {
    ALL.load(Relaxed)
}

/// The work's result, and the most bytes that this thread held during it beyond those before.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before) as u64)
}

/// Counts more bytes, or fewer; false where there would be too many.
fn count(bytes: i64) -> bool {
    let held = HELD.get().saturating_add(bytes);
    if bytes > 0 && held > LIMIT {
        return false;
    }
    ALL.fetch_add(bytes, Relaxed);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
    true
}

// SAFETY: the system's allocator does the work; null is an answer that an allocator may give.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !count(layout.size() as i64) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !count(layout.size() as i64) {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the pointer came from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !count(size as i64 - layout.size() as i64) {
            return std::ptr::null_mut();
        }
        // SAFETY: as in `dealloc`; the caller keeps the rules of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
