//! Memory that threads use within one operation.

use super::buffer::Buffer;
use std::cell::UnsafeCell;

/// One buffer a thread and one for all, each allocated once for the largest operation of an executable.
pub(crate) struct Scratch {
    buffers: Vec<UnsafeCell<Buffer>>,
    shared: UnsafeCell<Buffer>,
}

// SAFETY: `of` is called with a different thread number by each thread that runs at one time.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// `floats` for each of `threads` threads, `shared` for all; none where there is no memory for them.
    pub(crate) fn new(threads: usize, floats: usize, shared: usize) -> Option<Self> {
        let buffer = |floats| Buffer::zeroed(floats).map(UnsafeCell::new);
        Some(Self { buffers: (0..threads).map(|_| buffer(floats)).collect::<Option<_>>()?, shared: buffer(shared)? })
    }

    /// The buffer for all threads.
    pub(crate) fn shared(&self) -> *mut f32 {
        // SAFETY: nobody borrows the buffer itself mutably after `new`.
        unsafe { (*self.shared.get()).first() }
    }

    /// The first `floats` of a thread's buffer; their contents are whatever the last operation left.
    ///
    /// # Safety
    /// No two live results for one thread number.
    #[allow(clippy::mut_from_ref)] // each thread's cell is its own, see the safety note
    pub(crate) unsafe fn of(&self, thread: usize, floats: usize) -> &mut [f32] {
        // SAFETY: exclusive by the caller's promise.
        let buffer = unsafe { &mut *self.buffers[thread].get() };
        &mut buffer[..floats]
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        // SAFETY: lengths never change after `new`.
        self.buffers.iter().chain([&self.shared]).map(|b| unsafe { (&*b.get()).len() } * 4).sum()
    }
}

/// Cuts a buffer into parts of these sizes, one after the other.
pub(crate) fn split<const N: usize>(mut buffer: &mut [f32], sizes: [usize; N]) -> [&mut [f32]; N] {
    sizes.map(|size| {
        let (part, rest) = std::mem::take(&mut buffer).split_at_mut(size);
        buffer = rest;
        part
    })
}
