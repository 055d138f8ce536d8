//! Results of earlier requests that later ones need again: a prompt's hidden states, an image's embedding, a conditioning.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
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

    pub(super) fn key(self) -> ContentKey {
        ContentKey(self.0.digest128())
    }
}

struct Entry {
    value: Arc<dyn Any + Send + Sync>,
    bytes: u64,
    used: u64,
}

/// Values by what they follow from, none by default, up to a number of bytes; those that were used longest ago leave first.
#[derive(Default)]
pub(super) struct ContentCache {
    entries: HashMap<ContentKey, Entry>,
    limit: u64,
    bytes: u64,
    clock: u64,
}

impl ContentCache {
    pub(super) fn new(limit: u64) -> Self {
        Self { entries: HashMap::new(), limit, bytes: 0, clock: 0 }
    }

    /// The value of a key, where it is kept.
    pub(super) fn get<T: Send + Sync + 'static>(&mut self, key: ContentKey) -> Option<Arc<T>> {
        self.clock += 1;
        let entry = self.entries.get_mut(&key)?;
        entry.used = self.clock;
        entry.value.clone().downcast().ok()
    }

    /// Keeps a value of so many bytes, unless it alone is too large.
    pub(super) fn put<T: Send + Sync + 'static>(&mut self, key: ContentKey, value: Arc<T>, bytes: usize) {
        let bytes = bytes as u64;
        if bytes > self.limit {
            return;
        }
        self.clock += 1;
        if let Some(old) = self.entries.insert(key, Entry { value, bytes, used: self.clock }) {
            self.bytes -= old.bytes;
        }
        self.bytes += bytes;
        while self.bytes > self.limit
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key)
            && let Some(entry) = self.entries.remove(&oldest)
        {
            self.bytes -= entry.bytes;
        }
    }

    /// The bytes of all values.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
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
