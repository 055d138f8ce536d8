//! The shared memory of a block: its bytes, a record of those that were written, and the shadow that finds races.

use super::thread_races::{AccessKind, Accessor, SharedShadow, ThreadConflict};
use crate::error::{FaultKind, MemorySpace};

/// The shared memory of a block.
pub(crate) struct SharedMemory {
    bytes: Vec<u8>,
    /// One bit per byte, set once the byte has been written.
    written: Vec<u64>,
    shadow: SharedShadow,
    /// The end of what was accessed since the last reset.
    used: usize,
}

impl SharedMemory {
    /// Shared memory of `bytes` bytes, with a shadow if races are checked.
    pub fn new(bytes: usize, check_races: bool) -> Self {
        let shadow = SharedShadow::new(if check_races { bytes } else { 0 });
        Self { bytes: vec![0; bytes], written: vec![0; bytes.div_ceil(64)], shadow, used: 0 }
    }

    /// Marks all bytes as never written, for the next block.
    pub fn reset(&mut self) {
        self.written[..self.used.div_ceil(64)].fill(0);
        self.shadow.reset(self.used);
        self.used = 0;
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Checks bounds and alignment, and returns the address as an index.
    #[inline]
    pub fn check(&self, address: u64, bytes: u32, align: u32) -> Result<usize, FaultKind> {
        if !address.is_multiple_of(align.into()) {
            return Err(FaultKind::Misaligned { space: MemorySpace::Shared, address, align });
        }
        if address.saturating_add(u64::from(bytes)) > self.bytes.len() as u64 {
            let whole = 0..self.bytes.len() as u64;
            return Err(FaultKind::out_of_bounds(MemorySpace::Shared, address, bytes, Some(whole)));
        }
        Ok(address as usize)
    }

    /// Loads bytes within bounds.
    ///
    /// # Errors
    /// [`FaultKind::Uninitialised`].
    #[inline]
    pub fn load(&self, at: usize, bytes: usize) -> Result<&[u8], FaultKind> {
        if bits(at, bytes).all(|(word, bits)| self.written[word] & bits == bits) {
            return Ok(&self.bytes[at..at + bytes]);
        }
        Err(FaultKind::Uninitialised { space: MemorySpace::Shared, address: at as u64, bytes: bytes as u32 })
    }

    /// Stores bytes within bounds.
    #[inline]
    pub fn store(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
        bits(at, data.len()).for_each(|(word, bits)| self.written[word] |= bits);
        self.used = self.used.max(at + data.len());
    }

    /// Records an access in the shadow and compares it with earlier ones.
    #[inline]
    pub fn record(&mut self, at: usize, bytes: usize, by: &Accessor, kind: AccessKind) -> Result<(), ThreadConflict> {
        self.used = self.used.max(at + bytes);
        self.shadow.record(at, bytes, by, kind)
    }

    /// Completes a `cp.async` in the shadow: its thread waited for it, and the write counts as made now.
    pub fn complete(&mut self, at: usize, bytes: usize, by: &Accessor) {
        self.shadow.complete(at, bytes, by);
    }
}

/// The bits of a range of bytes: words of 64, and which of each.
#[inline(always)]
fn bits(mut at: usize, bytes: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = at + bytes;
    std::iter::from_fn(move || {
        let count = (64 - at % 64).min(end - at);
        let bits = (at / 64, u64::MAX.checked_shr(64 - count as u32)? << (at % 64));
        at += count;
        Some(bits)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Hazard;

    fn by(warp: u16, lane: u8, serial: u32, clock: &[u32]) -> Accessor<'_> {
        Accessor { warp, lane, serial, sync: 0, pc: serial, clock, proxy: None }
    }

    #[test]
    fn barrier_order() {
        let mut shared = SharedMemory::new(64, true);
        let (a, b) = ([1, 0], [0, 1]);
        shared.record(0, 16, &by(0, 3, 5, &a), AccessKind::Write).unwrap();
        let clash = shared.record(4, 2, &by(1, 0, 9, &b), AccessKind::Read).unwrap_err();
        assert_eq!(clash, ThreadConflict { hazard: Hazard::ReadAfterWrite, address: 4, pc: 5, warp: 0, lane: Some(3) });
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
    fn written_bytes() {
        for (at, len) in [(0, 1), (3, 16), (60, 4), (60, 5), (63, 2), (0, 64), (1, 200), (64, 64)] {
            let mut shared = SharedMemory::new(256, false);
            shared.store(at, &vec![1; len]);
            for byte in 0..256 {
                assert_eq!(shared.load(byte, 1).is_ok(), (at..at + len).contains(&byte), "{len} bytes at {at}: {byte}");
            }
            assert!(shared.load(at, len).is_ok() && shared.load(at, len + 1).is_err());
            shared.reset();
            assert!((0..256).all(|byte| shared.load(byte, 1).is_err()));
        }
    }

    #[test]
    fn lane_races() {
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
    fn warp_reads() {
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
    fn async_writes() {
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
