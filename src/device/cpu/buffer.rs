//! Large memory of operations, in huge pages where the system has them.

use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes from which on huge pages, of 2 MB on most systems, are asked for.
const HUGE: usize = 4 << 20;

/// Floats that begin as zeros. In small pages twelve rows of an operand lie in twelve pages, and a panel in as many as it has kilobytes
/// by four, in any sets of the second-level cache: 8 % of a denoising step.
pub(crate) struct Buffer {
    first: NonNull<f32>,
    len: usize,
    /// None where there are no floats.
    _map: Option<MmapMut>,
}

// SAFETY: the buffer owns what it points at.
unsafe impl Send for Buffer {}
// SAFETY: as above; a shared reference alone writes nothing.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates `len` zeros; none where there is no memory for them.
    pub(crate) fn zeroed(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self { first: NonNull::dangling(), len, _map: None });
        }
        let mut map = MmapMut::map_anon(len.checked_mul(4)?).ok()?;
        #[cfg(target_os = "linux")]
        if map.len() >= HUGE {
            // A system without them says so, and gives small pages.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Some(Self { first: NonNull::new(map.as_mut_ptr().cast())?, len, _map: Some(map) })
    }

    /// The first float, to be written through by whoever sees to it that nobody else uses the place.
    pub(crate) fn first(&self) -> *mut f32 {
        self.first.as_ptr()
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a page begins there, and so many floats follow, of any bits.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_of_any_number() {
        for len in [0, 1, 1025, HUGE / 4 + 3] {
            let mut buffer = Buffer::zeroed(len).unwrap();
            assert!(buffer.len() == len && buffer.iter().all(|x| *x == 0.0));
            buffer.fill(1.0);
            assert_eq!(buffer.iter().filter(|x| **x == 1.0).count(), len);
        }
        assert!(Buffer::zeroed(usize::MAX).is_none() && Buffer::zeroed(usize::MAX / 8).is_none());
    }
}
