//! A folder of results that cost time: what is in it can be lost, damaged or unwritable, and costs that time again.
//!
//! An entry is one file: a mark, the lengths of key and value, their CRC-32, the key, the value; numbers little-endian. The key is
//! kept whole, so that two keys whose hashes are equal are still told apart. Files are written whole or not at all.

use crate::atomic_file::write_atomic;
use crate::device::user_cache;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::PathBuf;

const MARK: &[u8; 8] = b"braid 1\n";
const HEAD: usize = 8 + 8 + 8 + 4;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The user's, in [`user_cache::folder`].
    pub(crate) fn user() -> Self {
        Self { folder: user_cache::folder() }
    }

    #[cfg(test)]
    pub(crate) fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    fn file(&self, name: &str, key: &[u8]) -> Option<PathBuf> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        self.folder.as_ref().map(|folder| folder.join(format!("{name}.{:016x}", hasher.finish())))
    }

    /// The value stored under that key; `None` where nothing was or where the file is damaged.
    pub(crate) fn load(&self, name: &str, key: &[u8]) -> Option<Vec<u8>> {
        let file = self.file(name, key)?;
        let bytes = fs::read(&file).ok()?;
        let value = value(&bytes, key);
        if value.is_none() {
            tracing::warn!(file = %file.display(), "a damaged file of the cache is made again");
        }
        value
    }

    /// Whether there is a folder to write to, which may still refuse.
    pub(crate) fn is_there(&self) -> bool {
        self.folder.is_some()
    }

    /// Stores a value and says whether it was; where not, it is computed again next time.
    pub(crate) fn store(&self, name: &str, key: &[u8], value: &[u8]) -> bool {
        let Some(file) = self.file(name, key) else { return false };
        if let Some(folder) = file.parent()
            && let Err(error) = fs::create_dir_all(folder)
        {
            tracing::debug!(folder = %folder.display(), %error, "no cache");
            return false;
        }
        let mut sum = crc32fast::Hasher::new();
        sum.update(key);
        sum.update(value);
        let written = write_atomic(&file, |to| {
            to.write_all(MARK)?;
            to.write_all(&(key.len() as u64).to_le_bytes())?;
            to.write_all(&(value.len() as u64).to_le_bytes())?;
            to.write_all(&sum.finalize().to_le_bytes())?;
            to.write_all(key)?;
            to.write_all(value)
        });
        if let Err(error) = &written {
            tracing::debug!(%error, "not cached");
        }
        written.is_ok()
    }
}

/// The value of a file's bytes, where they are whole and of that key.
fn value(bytes: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let sum = u32::from_le_bytes(bytes.get(HEAD - 4..HEAD)?.try_into().ok()?);
    let (lengths, body) = ((number(8)?, number(16)?), bytes.get(HEAD..)?);
    let (stored, value) = (body.get(..key.len())?, body.get(key.len()..)?);
    let whole = bytes.starts_with(MARK)
        && lengths == (key.len() as u64, value.len() as u64)
        && stored == key
        && crc32fast::hash(body) == sum;
    whole.then(|| value.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("new/deep"));
        assert_eq!(cache.load("a", b"key"), None);
        assert!(cache.store("a", b"key", b"value"));
        assert_eq!(cache.load("a", b"key").as_deref(), Some(&b"value"[..]));
        assert_eq!(cache.load("a", b"other"), None);
        assert_eq!(cache.load("b", b"key"), None);
        let file = cache.file("a", b"key").unwrap();
        let whole = fs::read(&file).unwrap();
        // Every single byte, every length short of the whole, one byte too many.
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            assert_eq!(value(&bad, b"key"), None, "byte {at}");
            assert_eq!(value(&whole[..at], b"key"), None, "cut to {at}");
        }
        assert_eq!(value(&[&whole[..], b"x"].concat(), b"key"), None);
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(cache.load("a", b"key"), None);
        cache.store("a", b"key", b"value");
        assert_eq!(cache.load("a", b"key").as_deref(), Some(&b"value"[..]));
        // A file whose name is the hash of another key holds that key.
        assert_eq!(value(&whole, b"kez"), None);
    }

    #[test]
    fn unwritable_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), b"").unwrap();
        for cache in [Cache::at(folder.path().join("file/inner")), Cache { folder: None }] {
            assert!(!cache.store("a", b"key", b"value"));
            assert_eq!(cache.load("a", b"key"), None);
        }
    }
}
