//! Results of earlier requests that later ones need again: a prompt's hidden states, an image's embedding, a conditioning.

use std::any::Any;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};
use xxhash_rust::xxh3::Xxh3;

/// A hash of everything that a result follows from, for the models of one pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ContentKey(u128);

/// Collects what a result follows from.
pub(super) struct ContentHasher(Xxh3);

impl ContentHasher {
    /// For results of one kind.
    pub(super) fn new(kind: &str) -> Self {
        Self(Xxh3::new()).bytes(kind.as_bytes())
    }

    /// Adds bytes, with their number.
    #[must_use]
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(&bytes.len().to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds a value by its [`Hash`].
    #[must_use]
    pub(super) fn value(mut self, value: &impl Hash) -> Self {
        value.hash(&mut self.0);
        self
    }

    pub(super) fn key(self) -> ContentKey {
        ContentKey(self.0.digest128())
    }
}

/// A value of any type.
type Value = dyn Any + Send + Sync;

/// Values that stay for as long as anyone has this.
pub(crate) type Held = Vec<Arc<Value>>;

struct Entry {
    /// The value, for as long as anyone has it.
    value: Weak<Value>,
    /// The cache's own, where it is kept.
    kept: Option<Arc<Value>>,
    bytes: u64,
    /// Whether the bytes are a device's own memory.
    on_device: bool,
    used: u64,
}

/// Values by what they follow from, up to a number of bytes, none by default: those that were used longest ago are no longer kept then,
/// but found for as long as anyone has them.
#[derive(Default)]
pub(super) struct ContentCache {
    entries: HashMap<ContentKey, Entry>,
    limit: u64,
    bytes: u64,
    clock: u64,
    /// The values that were found or put since [`Self::record`].
    recorded: Option<Held>,
}

impl ContentCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Notes all values from here on, which are found for as long as anyone has [`Self::recorded`].
    pub(super) fn record(&mut self) {
        self.recorded = Some(Vec::new());
    }

    /// The values that were noted; ends [`Self::record`].
    pub(super) fn recorded(&mut self) -> Held {
        self.recorded.take().unwrap_or_default()
    }

    /// Whether values are noted.
    pub(super) fn records(&self) -> bool {
        self.recorded.is_some()
    }

    /// Whether a value of so many bytes would be kept, or is to be noted.
    pub(super) fn holds(&self, bytes: usize) -> bool {
        self.records() || bytes as u64 <= self.limit
    }

    /// The value of a key, where there is one.
    pub(super) fn get<T: Send + Sync + 'static>(&mut self, key: ContentKey) -> Option<Arc<T>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&key)?;
        let value = entry.value.upgrade()?;
        entry.used = self.clock;
        self.recorded.iter_mut().for_each(|recorded| recorded.push(value.clone()));
        value.downcast().ok()
    }

    /// The keys without a value, each once, of what a request needs and, as far as they fill its last run of `most`, of what others need;
    /// values that are there are held.
    pub(super) fn missing<T: Send + Sync + 'static, I>(
        &mut self,
        (own, others): (impl Iterator<Item = (ContentKey, I)>, impl Iterator<Item = (ContentKey, I)>),
        most: usize,
        held: &mut Held,
    ) -> Vec<(ContentKey, I)> {
        let (mut missing, mut room): (Vec<(ContentKey, I)>, usize) = (Vec::new(), 0);
        for ((key, item), is_own) in own.map(|item| (item, true)).chain(others.map(|item| (item, false))) {
            if let Some(known) = self.get::<T>(key) {
                held.push(known);
            } else if (is_own || missing.len() < room) && !missing.iter().any(|(known, _)| *known == key) {
                missing.push((key, item));
                room = missing.len().next_multiple_of(most);
            }
        }
        missing
    }

    /// Takes up a value of so many bytes of the host's memory; it is kept unless it alone is too large.
    pub(super) fn put<T: Send + Sync + 'static>(&mut self, key: ContentKey, value: Arc<T>, bytes: usize) {
        self.insert(key, value, (bytes as u64, false));
    }

    /// The same for bytes of a device's own memory.
    pub(super) fn put_on_device<T: Send + Sync + 'static>(&mut self, key: ContentKey, value: Arc<T>, bytes: usize) {
        self.insert(key, value, (bytes as u64, true));
    }

    fn insert(&mut self, key: ContentKey, value: Arc<Value>, (bytes, on_device): (u64, bool)) {
        self.clock += 1;
        self.recorded.iter_mut().for_each(|recorded| recorded.push(value.clone()));
        let kept = (bytes <= self.limit).then(|| value.clone());
        self.bytes += if kept.is_some() { bytes } else { 0 };
        let entry = Entry { value: Arc::downgrade(&value), kept, bytes, on_device, used: self.clock };
        if let Some(old) = self.entries.insert(key, entry).filter(|old| old.kept.is_some()) {
            self.bytes -= old.bytes;
        }
        while self.bytes > self.limit
            && let Some(oldest) = self.entries.values_mut().filter(|e| e.kept.is_some()).min_by_key(|e| e.used)
        {
            oldest.kept = None;
            self.bytes -= oldest.bytes;
        }
        drop(value);
        self.forget();
    }

    /// The bytes of a device's own memory that are kept.
    pub(super) fn device_bytes(&self) -> u64 {
        let kept = self.entries.values().filter(|entry| entry.on_device && entry.kept.is_some());
        kept.map(|entry| entry.bytes).sum()
    }

    /// Keeps nothing any more that takes a device's own memory; whether there was something.
    pub(super) fn release_device(&mut self) -> bool {
        let bytes = self.device_bytes();
        self.entries.values_mut().filter(|entry| entry.on_device).for_each(|entry| entry.kept = None);
        self.bytes -= bytes;
        self.forget();
        bytes > 0
    }

    /// Keeps nothing any more.
    pub(super) fn clear(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.kept = None);
        self.bytes = 0;
        self.forget();
    }

    /// Drops the entries whose values nobody has.
    fn forget(&mut self) {
        self.entries.retain(|_, entry| entry.value.strong_count() > 0);
    }

    /// The bytes of all values that are kept.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.bytes as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> ContentKey {
        ContentHasher::new("test").bytes(&[n]).key()
    }

    #[test]
    fn oldest_leave() {
        let mut cache = ContentCache::new(10);
        for (n, bytes) in [(1u8, 4), (2, 4), (3, 11)] {
            cache.put(key(n), Arc::new(n), bytes);
        }
        assert_eq!((cache.get::<u8>(key(3)), cache.bytes()), (None, 8));
        assert_eq!(cache.get::<u8>(key(1)).as_deref(), Some(&1));
        cache.put(key(4), Arc::new(4u8), 4);
        assert_eq!([1, 2, 4].map(|n| cache.get::<u8>(key(n)).map(|v| *v)), [Some(1), None, Some(4)]);
        cache.put(key(4), Arc::new(5u8), 10);
        assert_eq!([1, 4].map(|n| cache.get::<u8>(key(n)).map(|v| *v)), [None, Some(5)]);
        assert_eq!((cache.bytes(), cache.get::<u16>(key(4))), (10, None));
        cache.clear();
        assert_eq!((cache.bytes(), cache.get::<u8>(key(4))), (0, None));
        let mut none = ContentCache::new(0);
        none.put(key(1), Arc::new(1u8), 1);
        assert_eq!(none.get::<u8>(key(1)), None);
    }

    /// Values that are held elsewhere are found, kept or not, and for no longer than that.
    #[test]
    fn held_values() {
        let mut cache = ContentCache::new(4);
        cache.record();
        for n in [1u8, 2, 3] {
            cache.put(key(n), Arc::new(n), 3);
        }
        let found = |cache: &mut ContentCache, n| cache.get::<u8>(key(n)).map(|value| *value);
        assert_eq!([1, 2, 3].map(|n| found(&mut cache, n)), [Some(1), Some(2), Some(3)]);
        assert_eq!((cache.bytes(), cache.records()), (3, true));
        let held = cache.recorded();
        assert_eq!((held.len(), cache.records()), (6, false));
        cache.clear();
        assert_eq!([1, 2, 3].map(|n| found(&mut cache, n)), [Some(1), Some(2), Some(3)]);
        drop(held);
        assert_eq!([1, 2, 3].map(|n| found(&mut cache, n)), [None; 3]);
        cache.put(key(1), Arc::new(7u8), 2);
        assert_eq!((cache.entries.len(), cache.bytes()), (1, 2));
    }

    /// A request's last run is filled with what others need, which have none of their own.
    #[test]
    fn missing_values() {
        let missing = |cache: &mut ContentCache, own: &[u8], others: &[u8]| {
            let mut held = Held::new();
            let items = |all: &[u8]| all.iter().map(|n| (key(*n), *n)).collect::<Vec<_>>().into_iter();
            let missing = cache.missing::<u8, u8>((items(own), items(others)), 4, &mut held);
            (missing.into_iter().map(|(_, n)| n).collect::<Vec<_>>(), held.len())
        };
        let mut cache = ContentCache::new(10);
        assert_eq!(missing(&mut cache, &[1, 1, 2], &[2, 3, 4, 5]), (vec![1, 2, 3, 4], 0));
        assert_eq!(missing(&mut cache, &[1, 2, 3, 4, 5], &[6, 7, 8, 9]), (vec![1, 2, 3, 4, 5, 6, 7, 8], 0));
        assert_eq!(missing(&mut cache, &[1, 2, 3, 4], &[5]), (vec![1, 2, 3, 4], 0));
        let kept = [1u8, 2].map(Arc::new);
        kept.iter().for_each(|n| cache.put(key(**n), n.clone(), 1));
        assert_eq!(missing(&mut cache, &[1, 3], &[2, 4, 5, 6, 7]), (vec![3, 4, 5, 6], 2));
        assert_eq!(missing(&mut cache, &[1], &[2, 3]), (vec![], 2));
    }

    /// A device's memory is given back, the host's is kept.
    #[test]
    fn device_memory() {
        let mut cache = ContentCache::new(10);
        cache.put(key(1), Arc::new(1u8), 4);
        cache.put_on_device(key(2), Arc::new(2u8), 5);
        assert_eq!((cache.device_bytes(), cache.bytes(), cache.holds(10), cache.holds(11)), (5, 9, true, false));
        assert!(cache.release_device() && !cache.release_device());
        assert_eq!((cache.device_bytes(), cache.bytes(), cache.get::<u8>(key(2))), (0, 4, None));
        assert!(cache.get::<u8>(key(1)).is_some());
    }

    /// Neither kinds nor the cut of the bytes are mixed up.
    #[test]
    fn keys() {
        let all = [
            ContentHasher::new("a").bytes(b"bc").key(),
            ContentHasher::new("ab").bytes(b"c").key(),
            ContentHasher::new("a").bytes(b"b").bytes(b"c").key(),
            ContentHasher::new("a").bytes(b"bc").bytes(b"").key(),
        ];
        assert!((0..4).all(|i| (0..i).all(|j| all[i] != all[j])));
        assert_eq!(all[0], ContentHasher::new("a").bytes(b"bc").key());
    }
}
