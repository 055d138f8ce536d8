//! Weights on a device, each there once for all programs that read it in the same form.
//!
//! A tensor is known by the memory of the file that it lies in, so programs of one loaded model share: those of other sizes
//! and numbers of steps, of an encoder with fewer layers. What a program does not find goes into one slab of its own, which
//! stays until the last program that reads anything in it has gone.

use super::layout::{Block, StorageFormat, WeightCopy, WeightLayout, staging, upload};
use crate::device::cuda::driver::allocation::DeviceAllocation;
use crate::device::cuda::driver::interface::Driver;
use crate::error::Result;
use crate::tensor::DType;
use crate::weights::MappedBytes;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A tensor in a form: as long as its memory is there, no other has the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TensorKey {
    storage: usize,
    offset: usize,
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<usize>,
    form: StorageFormat,
    /// Bytes from the block's start.
    at: usize,
}

/// What a block holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    dtype: DType,
    bytes: usize,
    parts: Vec<TensorKey>,
}

impl BlockKey {
    fn new(dtype: DType, block: &Block, jobs: &[WeightCopy]) -> Self {
        let part = |job: &WeightCopy| {
            let (storage, offset) = job.weight.location();
            TensorKey {
                storage: Arc::as_ptr(storage) as usize,
                offset,
                dtype: job.weight.dtype(),
                shape: job.weight.shape().to_vec(),
                strides: job.weight.strides().to_vec(),
                form: job.format,
                at: job.offset - block.offset,
            }
        };
        Self { dtype, bytes: block.bytes, parts: jobs.iter().map(part).collect() }
    }
}

/// The blocks of some programs, each counted once.
#[derive(Debug, Default)]
pub(crate) struct DistinctBlocks(HashSet<BlockKey>);

impl DistinctBlocks {
    /// Bytes of those blocks that were not there yet.
    pub(crate) fn add(&mut self, dtype: DType, jobs: &WeightLayout) -> usize {
        let keys = jobs.blocks().map(|(block, jobs)| BlockKey::new(dtype, block, jobs));
        keys.map(|key| (key.bytes, self.0.insert(key))).filter(|(_, new)| *new).map(|(bytes, _)| bytes).sum()
    }
}

struct CachedBlock {
    allocation: Weak<DeviceAllocation>,
    address: u64,
    /// While these are there, no other memory has the address of the key.
    _storage: Vec<Weak<MappedBytes>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct WeightCache(Mutex<HashMap<BlockKey, CachedBlock>>);

/// Where a program's blocks are: addresses by offset, and the slabs for as long as the program lives.
#[derive(Default)]
pub(crate) struct WeightAddresses {
    addresses: Vec<(usize, u64)>,
    allocations: Vec<Arc<DeviceAllocation>>,
}

impl WeightAddresses {
    /// The address of the block of that offset.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.addresses.binary_search_by_key(&offset, |(at, _)| *at).map_or(0, |i| self.addresses[i].1)
    }

    /// Address and bytes of each slab.
    pub(crate) fn allocations(&self) -> impl Iterator<Item = (u64, usize)> {
        self.allocations.iter().map(|slab| (slab.address(), slab.bytes()))
    }

    fn keep(&mut self, slab: Arc<DeviceAllocation>) {
        if !self.allocations.iter().any(|held| Arc::ptr_eq(held, &slab)) {
            self.allocations.push(slab);
        }
    }
}

/// What of a program's weights is there, and what is not.
pub(crate) struct CacheLookup<'a> {
    store: &'a WeightCache,
    dtype: DType,
    places: WeightAddresses,
    /// With the offset in a new slab.
    missing: Vec<(BlockKey, usize, &'a [WeightCopy])>,
    /// Offsets of blocks in [`WeightLayout`] and in the new slab.
    new: Vec<(usize, usize)>,
    /// Bytes of a new slab.
    pub(crate) bytes: usize,
    /// Bytes that staging takes for a moment.
    pub(crate) staging: usize,
}

impl WeightCache {
    /// Looks for the weights of a program that stores tensors as `dtype`.
    pub(crate) fn find<'a>(&'a self, dtype: DType, jobs: &'a WeightLayout) -> CacheLookup<'a> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, held| held.allocation.strong_count() > 0);
        let mut found = CacheLookup {
            store: self,
            dtype,
            places: WeightAddresses::default(),
            missing: Vec::new(),
            new: Vec::new(),
            bytes: 0,
            staging: 0,
        };
        let mut seen: HashMap<BlockKey, usize> = HashMap::new();
        for (block, jobs) in jobs.blocks() {
            let key = BlockKey::new(dtype, block, jobs);
            if let Some((slab, address)) = held.get(&key).and_then(|h| Some((h.allocation.upgrade()?, h.address))) {
                found.places.keep(slab);
                found.places.addresses.push((block.offset, address));
                continue;
            }
            let at = *seen.entry(key.clone()).or_insert_with(|| {
                let at = found.bytes;
                found.missing.push((key, at, jobs));
                found.bytes += block.bytes;
                at
            });
            found.new.push((block.offset, at));
        }
        found.staging = staging(found.missing.iter().flat_map(|(_, _, jobs)| jobs.iter()));
        found
    }
}

impl CacheLookup<'_> {
    /// Takes up what is missing.
    ///
    /// # Errors
    /// Those of the driver; nothing is kept then.
    pub(crate) fn complete(self, driver: &Arc<dyn Driver>) -> Result<WeightAddresses> {
        let CacheLookup { store, dtype, mut places, missing, new, bytes, .. } = self;
        if bytes == 0 {
            return Ok(places);
        }
        let slab = Arc::new(DeviceAllocation::new(driver.clone(), bytes)?);
        let base = slab.address();
        let at = |at: &usize, part: usize| base + (at + part) as u64;
        let mut jobs: Vec<(u64, &WeightCopy)> = Vec::new();
        for (key, offset, parts) in &missing {
            jobs.extend(parts.iter().zip(&key.parts).map(|(job, part)| (at(offset, part.at), job)));
        }
        let begun = std::time::Instant::now();
        upload(driver, dtype, &jobs)?;
        let seconds = begun.elapsed().as_secs_f64();
        tracing::debug!(target: crate::device::UPLOADS, seconds, bytes = bytes as u64, "took weights up");
        let mut held = store.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, offset, jobs) in missing {
            let storage = jobs.iter().map(|job| Arc::downgrade(job.weight.location().0)).collect();
            held.insert(
                key,
                CachedBlock { allocation: Arc::downgrade(&slab), address: at(&offset, 0), _storage: storage },
            );
        }
        places.addresses.extend(new.iter().map(|(offset, place)| (*offset, at(place, 0))));
        places.addresses.sort_unstable();
        places.keep(slab);
        Ok(places)
    }
}
