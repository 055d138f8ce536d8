//! Global memory: its allocations, and what the host does with them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};

use super::allocation::Allocation;
use crate::error::{FaultKind, MemorySpace};
use crate::kernel::GlobalVariable;
use crate::module::Module;

/// First address of global memory, above the windows of the other state spaces.
const FIRST: u64 = 0x7000_0000_0000;
/// Alignment of an allocation, and the smallest gap between two.
const GRAIN: u64 = 256;

/// The global memory of a device.
///
/// Allocations are aligned to 256 bytes and lie apart, so that an access past the end of one is in none. A page is created
/// by the first write to it: a tensor of 64 GiB can be allocated and accessed in places. All methods take `&self`; the
/// blocks of a launch, and several launches, may run at the same time.
pub struct GlobalMemory {
    allocations: RwLock<BTreeMap<u64, Arc<Allocation>>>,
    next: Mutex<u64>,
    symbols: Mutex<HashMap<u64, Arc<Vec<u64>>>>,
    /// Held during a 64-bit read-modify-write, which spans two of the 32-bit words.
    wide: Mutex<()>,
    launches: AtomicU64,
    /// Tensor maps that kernels have made, with the launch.
    maps: Mutex<HashMap<u64, u64>>,
}

impl Default for GlobalMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl GlobalMemory {
    /// Creates a memory without allocations.
    pub fn new() -> Self {
        Self {
            allocations: RwLock::new(BTreeMap::new()),
            next: Mutex::new(FIRST),
            symbols: Mutex::new(HashMap::new()),
            wide: Mutex::new(()),
            launches: AtomicU64::new(0),
            maps: Mutex::new(HashMap::new()),
        }
    }

    /// Allocates `bytes` bytes, uninitialised, and returns their device address, a multiple of 256.
    pub fn alloc(&self, bytes: u64) -> u64 {
        let mut next = lock(&self.next);
        let base = *next;
        // At least one grain stays free; large allocations lie farther apart, so that a stray row of a tensor misses too.
        let gap = GRAIN + (bytes / 8).min(1 << 20) / GRAIN * GRAIN;
        *next = (base + bytes).next_multiple_of(GRAIN) + gap;
        let allocation = Arc::new(Allocation::new(base, bytes));
        self.allocations.write().unwrap_or_else(|e| e.into_inner()).insert(base, allocation);
        base
    }

    /// Frees an allocation. Returns `false` if none begins at this address.
    pub fn free(&self, address: u64) -> bool {
        self.allocations.write().unwrap_or_else(|e| e.into_inner()).remove(&address).is_some()
    }

    /// Copies bytes from the host to the device.
    ///
    /// # Errors
    /// [`FaultKind::OutOfBounds`].
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

    /// Copies bytes from the device to the host.
    ///
    /// # Errors
    /// [`FaultKind::OutOfBounds`], or [`FaultKind::Uninitialised`] for bytes that were never written.
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

    /// Sets every byte to `value`, as `cuMemsetD8` does.
    ///
    /// # Errors
    /// [`FaultKind::OutOfBounds`].
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

    /// Marks bytes as never written: reading them before they are written again is a fault.
    ///
    /// Use it on memory that is reused, such as an arena between two runs.
    ///
    /// # Errors
    /// [`FaultKind::OutOfBounds`].
    pub fn forget(&self, address: u64, bytes: u64) -> Result<(), FaultKind> {
        let allocation = self.find(address, bytes)?;
        allocation.forget(address - allocation.base, bytes);
        Ok(())
    }

    /// Notes that a kernel makes a tensor map.
    pub(crate) fn make_map(&self, address: u64, launch: u64) {
        lock(&self.maps).insert(address, launch);
    }

    /// The launch that made a tensor map, if one did.
    pub(crate) fn made_map(&self, address: u64) -> Option<u64> {
        lock(&self.maps).get(&address).copied()
    }

    /// Bytes of the pages that exist: the memory in use on the host, without the shadow.
    pub fn resident(&self) -> u64 {
        let allocations = self.allocations.read().unwrap_or_else(|e| e.into_inner());
        allocations.values().map(|a| a.resident()).sum()
    }

    /// The device address of a module's `.global` or `.const` variable. Loads the module's variables at first use.
    pub fn symbol(&self, module: &Module, name: &str) -> Option<u64> {
        let index = module.variables.iter().position(|v| v.name == name)?;
        self.symbols(module).get(index).copied()
    }

    /// The addresses of a module's variables, allocated and initialised at the first call.
    pub(crate) fn symbols(&self, module: &Module) -> Arc<Vec<u64>> {
        let mut all = lock(&self.symbols);
        let load = || {
            let place = |v: &GlobalVariable| {
                let address = self.alloc(v.bytes);
                // A variable without an initial value is zero. The write covers the allocation, so it cannot fail.
                let zeros = vec![0; if v.init.is_none() { v.bytes as usize } else { 0 }];
                let _ = self.write(address, v.init.as_deref().unwrap_or(&zeros));
                address
            };
            Arc::new(module.variables.iter().map(place).collect())
        };
        all.entry(module.id).or_insert_with(load).clone()
    }

    /// The current allocations in order of address; a launch keeps them alive.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Allocation>> {
        self.allocations.read().unwrap_or_else(|e| e.into_inner()).values().cloned().collect()
    }

    /// A number for the next launch, from 1.
    pub(crate) fn next_launch(&self) -> u64 {
        self.launches.fetch_add(1, Relaxed) + 1
    }

    /// Locks out other 64-bit read-modify-writes.
    pub(crate) fn lock_wide(&self) -> std::sync::MutexGuard<'_, ()> {
        lock(&self.wide)
    }

    fn find(&self, address: u64, bytes: u64) -> Result<Arc<Allocation>, FaultKind> {
        let allocations = self.allocations.read().unwrap_or_else(|e| e.into_inner());
        let below = allocations.range(..=address).next_back().map(|(_, allocation)| allocation);
        match below {
            Some(allocation) if bytes <= allocation.bytes && address - allocation.base <= allocation.bytes - bytes => {
                Ok(allocation.clone())
            }
            _ => Err(FaultKind::out_of_bounds(MemorySpace::Global, address, bytes as u32, below.map(|a| a.range()))),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// The largest access, up to 16 bytes, that is aligned at this offset and not longer than the rest.
fn chunk(at: u64, rest: usize) -> usize {
    let aligned = 1usize << (at | 16).trailing_zeros();
    if rest >= aligned { aligned } else { 1 << rest.ilog2() }
}

#[cfg(test)]
mod tests {
    use super::super::allocation::PAGE;
    use super::*;

    #[test]
    fn host_copies() {
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
