//! Weights on a device, each there once for all executables that read it in the same format.
//!
//! A tensor is known by the memory of the file that it lies in, so executables of one loaded model share: those of other sizes
//! and numbers of steps, of an encoder with fewer layers. Weights that an executable does not find go into one allocation of its
//! own, which stays until the last executable that reads anything in it is dropped.

use super::addresses::WeightAddresses;
use super::layout::{Block, StorageFormat, WeightCopy, WeightLayout};
use super::upload::upload;
use crate::device::cuda::driver::allocation::DeviceAllocation;
use crate::device::cuda::driver::interface::Driver;
use crate::error::Result;
use crate::tensor::DType;
use crate::weights::MappedBytes;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A tensor in a format: as long as its memory is there, no other has the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TensorKey {
    storage: usize,
    offset: usize,
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<usize>,
    format: StorageFormat,
    /// Bytes from the block's start.
    at: usize,
}

/// The contents of a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    dtype: DType,
    bytes: usize,
    parts: Vec<TensorKey>,
}

impl BlockKey {
    fn new(dtype: DType, block: &Block, copies: &[WeightCopy]) -> Self {
        let part = |copy: &WeightCopy| {
            let (storage, offset) = copy.weight.location();
            TensorKey {
                storage: Arc::as_ptr(storage) as usize,
                offset,
                dtype: copy.weight.dtype(),
                shape: copy.weight.shape().to_vec(),
                strides: copy.weight.strides().to_vec(),
                format: copy.format,
                at: copy.offset - block.offset,
            }
        };
        Self { dtype, bytes: block.bytes, parts: copies.iter().map(part).collect() }
    }
}

/// The blocks of some executables, each counted once.
#[derive(Debug, Default)]
pub(crate) struct DistinctBlocks(HashSet<BlockKey>);

impl DistinctBlocks {
    /// Bytes of those blocks that were not there yet.
    pub(crate) fn add(&mut self, dtype: DType, copies: &WeightLayout) -> usize {
        let keys = copies.blocks().map(|(block, copies)| BlockKey::new(dtype, block, copies));
        keys.map(|key| (key.bytes, self.0.insert(key))).filter(|(_, new)| *new).map(|(bytes, _)| bytes).sum()
    }
}

/// A block on the device.
struct CachedBlock {
    allocation: Weak<DeviceAllocation>,
    address: u64,
    /// While these are there, no other memory has the address of the key.
    _storage: Vec<Weak<MappedBytes>>,
}

/// The blocks of all executables of a device; see the module.
#[derive(Default)]
pub(crate) struct WeightCache(Mutex<HashMap<BlockKey, CachedBlock>>);

/// An executable's weights: those that are there, and those that are missing.
pub(crate) struct CacheLookup<'a> {
    cache: &'a WeightCache,
    dtype: DType,
    places: WeightAddresses,
    /// With the offset in a new allocation.
    missing: Vec<(BlockKey, usize, &'a [WeightCopy])>,
    /// Offsets of blocks in [`WeightLayout`] and in the new allocation.
    new: Vec<(usize, usize)>,
    /// Bytes of a new allocation.
    pub(crate) bytes: usize,
    /// Bytes of a staging buffer.
    pub(crate) staging: usize,
    /// Bytes that the device needs beside its own for a moment.
    pub(crate) wide: usize,
}

impl WeightCache {
    /// Looks for the weights of an executable that stores tensors as `dtype`.
    pub(crate) fn find<'a>(&'a self, dtype: DType, copies: &'a WeightLayout) -> CacheLookup<'a> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, held| held.allocation.strong_count() > 0);
        let mut found = CacheLookup {
            cache: self,
            dtype,
            places: WeightAddresses::default(),
            missing: Vec::new(),
            new: Vec::new(),
            bytes: 0,
            staging: 0,
            wide: 0,
        };
        let mut seen: HashMap<BlockKey, usize> = HashMap::new();
        for (block, copies) in copies.blocks() {
            let key = BlockKey::new(dtype, block, copies);
            if let Some((allocation, address)) = held.get(&key).and_then(|h| Some((h.allocation.upgrade()?, h.address)))
            {
                found.places.keep(allocation);
                found.places.insert(block.offset, address);
                continue;
            }
            let at = *seen.entry(key.clone()).or_insert_with(|| {
                let at = found.bytes;
                found.missing.push((key, at, copies));
                found.bytes += block.bytes;
                at
            });
            found.new.push((block.offset, at));
        }
        let missing = found.missing.iter().flat_map(|(_, _, copies)| copies.iter());
        found.staging = copies.staging_of(missing.clone());
        found.wide = missing.map(|copy| copy.wide(found.staging)).max().unwrap_or(0);
        found
    }
}

impl CacheLookup<'_> {
    /// Uploads the weights that are missing.
    ///
    /// # Errors
    /// Those of the driver; nothing is kept then.
    pub(crate) fn complete(self, driver: &Arc<dyn Driver>) -> Result<WeightAddresses> {
        let CacheLookup { cache, dtype, mut places, missing, new, bytes, staging, wide: _ } = self;
        if bytes == 0 {
            return Ok(places);
        }
        let allocation = Arc::new(DeviceAllocation::zeroed(driver.clone(), bytes)?);
        let base = allocation.address();
        let at = |at: &usize, part: usize| base + (at + part) as u64;
        let mut copies: Vec<(u64, &WeightCopy)> = Vec::new();
        for (key, offset, parts) in &missing {
            copies.extend(parts.iter().zip(&key.parts).map(|(copy, part)| (at(offset, part.at), copy)));
        }
        let begun = std::time::Instant::now();
        upload(driver, dtype, staging, &copies)?;
        let seconds = begun.elapsed().as_secs_f64();
        tracing::debug!(target: crate::device::UPLOADS, seconds, bytes = bytes as u64, "took weights up");
        let mut held = cache.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, offset, copies) in missing {
            let storage = copies.iter().map(|copy| Arc::downgrade(copy.weight.location().0)).collect();
            held.insert(
                key,
                CachedBlock { allocation: Arc::downgrade(&allocation), address: at(&offset, 0), _storage: storage },
            );
        }
        for (offset, place) in &new {
            places.insert(*offset, at(place, 0));
        }
        places.sort();
        places.keep(allocation);
        Ok(places)
    }
}
