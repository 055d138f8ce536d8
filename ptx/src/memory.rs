//! Global memory: sparse, checked byte for byte, shared by the threads that run blocks.
//!
//! A page is made of atomic words, so that blocks on different threads may touch it without a lock. Words are read and
//! written with relaxed order: what the interpreter shows of weak memory is nothing, by design.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use crate::error::{FaultKind, MemorySpace};
use crate::module::Module;
use crate::races::ShadowPage;

/// Addresses of global memory begin here; what lies below belongs to the windows of the other spaces.
const FIRST: u64 = 0x7000_0000_0000;
/// Alignment of an allocation, and the least gap between two.
const GRAIN: u64 = 256;
pub(crate) const PAGE: usize = 1 << 16;

/// A part of an allocation that is there because somebody wrote to it.
pub(crate) struct Page {
    words: Box<[AtomicU32]>,
    /// One bit a byte: written.
    written: Box<[AtomicU64]>,
    pub shadow: OnceLock<ShadowPage>,
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

/// One allocation.
pub(crate) struct Allocation {
    pub base: u64,
    pub bytes: u64,
    pub pages: Box<[OnceLock<Box<Page>>]>,
}

impl Allocation {
    #[inline]
    pub fn page(&self, offset: u64) -> &Page {
        self.pages[offset as usize / PAGE].get_or_init(|| Box::new(Page::new()))
    }

    fn existing(&self, offset: u64) -> Option<&Page> {
        self.pages[offset as usize / PAGE].get().map(|page| &**page)
    }

    /// 1 to 16 bytes at an aligned offset within the allocation, zero-extended; `None` where one was never written.
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

    /// Changes an aligned 32-bit word atomically; gives the old value, `None` where it was never written.
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

/// Device memory.
///
/// Allocations are 256-byte aligned and apart, so that an access past the end of one lies in none. Their pages come into
/// being when first written: a tensor of 64 GiB can be declared and touched in places. All methods take `&self`; blocks of
/// one launch, and several launches, may run at the same time.
pub struct GlobalMemory {
    allocations: RwLock<BTreeMap<u64, Arc<Allocation>>>,
    next: Mutex<u64>,
    symbols: Mutex<HashMap<u64, Arc<Vec<u64>>>>,
    /// 64-bit read-modify-writes, which the 32-bit words cannot do alone.
    wide: Mutex<()>,
    launches: AtomicU64,
}

impl Default for GlobalMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl GlobalMemory {
    /// Empty memory.
    pub fn new() -> Self {
        Self {
            allocations: RwLock::new(BTreeMap::new()),
            next: Mutex::new(FIRST),
            symbols: Mutex::new(HashMap::new()),
            wide: Mutex::new(()),
            launches: AtomicU64::new(0),
        }
    }

    /// Reserves that many bytes and gives their device address, a multiple of 256. Nothing in it is initialised.
    pub fn alloc(&self, bytes: u64) -> u64 {
        let mut next = lock(&self.next);
        let base = *next;
        // At least one grain of nothing follows; larger allocations are farther apart, so that a stray row misses too.
        let gap = GRAIN + (bytes / 8).min(1 << 20) / GRAIN * GRAIN;
        *next = (base + bytes).next_multiple_of(GRAIN) + gap;
        let pages = (bytes as usize).div_ceil(PAGE);
        let allocation = Allocation { base, bytes, pages: (0..pages).map(|_| OnceLock::new()).collect() };
        self.allocations.write().unwrap_or_else(|e| e.into_inner()).insert(base, Arc::new(allocation));
        base
    }

    /// Gives an allocation back. `false` where none begins at this address.
    pub fn free(&self, address: u64) -> bool {
        self.allocations.write().unwrap_or_else(|e| e.into_inner()).remove(&address).is_some()
    }

    /// Writes bytes from the host.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), FaultKind> {
        let allocation = self.find(address, data.len() as u64)?;
        let mut at = address - allocation.base;
        let mut rest = data;
        while !rest.is_empty() {
            let size = chunk(at, rest.len());
            let (now, later) = rest.split_at(size);
            let mut value = [0; 16];
            value[..size].copy_from_slice(now);
            allocation.store(at, size, u128::from_le_bytes(value));
            (at, rest) = (at + size as u64, later);
        }
        Ok(())
    }

    /// Reads bytes to the host.
    ///
    /// # Errors
    /// Out of bounds, or bytes that nobody wrote.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), FaultKind> {
        let allocation = self.find(address, out.len() as u64)?;
        let mut at = address - allocation.base;
        let mut rest = out;
        while !rest.is_empty() {
            let size = chunk(at, rest.len());
            let Some(value) = allocation.load(at, size) else {
                return Err(FaultKind::Uninitialised {
                    space: MemorySpace::Global,
                    address: allocation.base + at,
                    bytes: size as u32,
                });
            };
            let (now, later) = rest.split_at_mut(size);
            now.copy_from_slice(&value.to_le_bytes()[..size]);
            (at, rest) = (at + size as u64, later);
        }
        Ok(())
    }

    /// Sets bytes, as `cuMemsetD8` does.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn fill(&self, address: u64, bytes: u64, value: u8) -> Result<(), FaultKind> {
        let allocation = self.find(address, bytes)?;
        let (mut at, end) = (address - allocation.base, address - allocation.base + bytes);
        let pattern = u128::from_le_bytes([value; 16]);
        while at < end {
            let size = chunk(at, (end - at).min(16) as usize);
            allocation.store(at, size, pattern);
            at += size as u64;
        }
        Ok(())
    }

    /// Forgets what was written there: reading it before it is written again is a fault.
    ///
    /// For memory that a program uses again, such as an arena between two runs.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn forget(&self, address: u64, bytes: u64) -> Result<(), FaultKind> {
        let allocation = self.find(address, bytes)?;
        let (mut at, end) = (address - allocation.base, address - allocation.base + bytes);
        while at < end {
            let stop = end.min((at / 64 + 1) * 64);
            if let Some(page) = allocation.existing(at) {
                let count = (stop - at) as u32;
                let bits = (u64::MAX >> (64 - count)) << (at % 64);
                page.written[at as usize % PAGE / 64].fetch_and(!bits, Relaxed);
            }
            at = stop;
        }
        Ok(())
    }

    /// Bytes of pages that exist, for a look at how sparse it is.
    pub fn resident(&self) -> u64 {
        let allocations = self.allocations.read().unwrap_or_else(|e| e.into_inner());
        allocations.values().flat_map(|b| b.pages.iter()).filter(|p| p.get().is_some()).count() as u64 * PAGE as u64
    }

    /// The device address of a module's `.global` or `.const` variable; loads the module's variables at first use.
    pub fn symbol(&self, module: &Module, name: &str) -> Option<u64> {
        let index = module.variables.iter().position(|v| v.name == name)?;
        self.symbols(module).get(index).copied()
    }

    /// The addresses of a module's variables, which are allocated and initialised at the first call.
    pub(crate) fn symbols(&self, module: &Module) -> Arc<Vec<u64>> {
        let mut all = lock(&self.symbols);
        let load = || {
            let place = |v: &crate::module::Global| {
                let address = self.alloc(v.bytes);
                // Memory of a variable is zero where nothing else is said. The range is the allocation itself.
                let zeros = vec![0; if v.init.is_none() { v.bytes as usize } else { 0 }];
                let _ = self.write(address, v.init.as_deref().unwrap_or(&zeros));
                address
            };
            Arc::new(module.variables.iter().map(place).collect())
        };
        all.entry(module.id).or_insert_with(load).clone()
    }

    /// The allocations now, in order of address, for the duration of a launch.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Allocation>> {
        self.allocations.read().unwrap_or_else(|e| e.into_inner()).values().cloned().collect()
    }

    /// A number for this launch, from 1.
    pub(crate) fn launch(&self) -> u64 {
        self.launches.fetch_add(1, Relaxed) + 1
    }

    /// Holds off other 64-bit read-modify-writes.
    pub(crate) fn wide(&self) -> std::sync::MutexGuard<'_, ()> {
        lock(&self.wide)
    }

    fn find(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, FaultKind> {
        let allocations = self.allocations.read().unwrap_or_else(|e| e.into_inner());
        let below = allocations.range(..=address).next_back().map(|(_, allocation)| allocation);
        match below {
            Some(allocation) if bytes <= allocation.bytes && address - allocation.base <= allocation.bytes - bytes => {
                Ok(allocation.clone())
            }
            _ => Err(outside(MemorySpace::Global, address, bytes as u32, below.map(|b| b.base..b.base + b.bytes))),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// The largest power of two, up to 16, that the offset is a multiple of and the rest still holds.
fn chunk(at: u64, rest: usize) -> usize {
    let aligned = 1usize << (at | 16).trailing_zeros();
    if rest >= aligned { aligned } else { 1 << rest.ilog2() }
}

/// An out-of-bounds fault that names the allocation below the address.
pub(crate) fn outside(space: MemorySpace, address: u64, bytes: u32, below: Option<Range<u64>>) -> FaultKind {
    let near = match below {
        Some(range) => {
            let past = address.wrapping_sub(range.start);
            format!("byte {past} of the allocation of {} bytes at {:#x}", range.end - range.start, range.start)
        }
        None => "no allocation at or below it".to_owned(),
    };
    FaultKind::OutOfBounds { space, address, bytes, near }
}

/// The allocations of a launch, with the one that was hit last.
pub(crate) struct Allocations<'a> {
    allocations: &'a [Arc<Allocation>],
    last: usize,
}

impl<'a> Allocations<'a> {
    pub fn new(allocations: &'a [Arc<Allocation>]) -> Self {
        Self { allocations, last: 0 }
    }

    /// The allocation that holds these bytes, and the offset in it.
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
            return Err(outside(MemorySpace::Global, address, bytes, None));
        };
        let offset = address - allocation.base;
        if offset >= allocation.bytes || u64::from(bytes) > allocation.bytes - offset {
            return Err(outside(
                MemorySpace::Global,
                address,
                bytes,
                Some(allocation.base..allocation.base + allocation.bytes),
            ));
        }
        self.last = above - 1;
        Ok((allocation, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_gaps_are_outside() {
        let memory = GlobalMemory::new();
        let (a, b) = (memory.alloc(70_001), memory.alloc(64 << 30));
        assert!(a % 256 == 0 && b % 256 == 0 && b >= a + 70_001 + 256);
        let data: Vec<u8> = (0..70_001u32).map(|i| (i * 7) as u8).collect();
        memory.write(a, &data).unwrap();
        let mut back = vec![0; 69_990];
        memory.read(a + 11, &mut back).unwrap();
        assert_eq!(back, data[11..]);
        assert!(matches!(memory.write(a + 70_000, &[0; 2]), Err(FaultKind::OutOfBounds { .. })));
        assert!(matches!(memory.read(b + (63 << 30), &mut [0]), Err(FaultKind::Uninitialised { .. })));
        memory.write(b + (63 << 30), &[1, 2, 3]).unwrap();
        assert_eq!(memory.resident(), 3 * PAGE as u64);
        memory.forget(a + 3, 1).unwrap();
        assert!(memory.read(a + 4, &mut [0; 8]).is_ok());
        assert!(memory.read(a, &mut [0; 8]).is_err());
        assert!(memory.free(a) && !memory.free(a));
        assert!(memory.read(a + 4, &mut [0; 8]).is_err());
    }
}
