//! The bytes behind the tensors: a mapping of a file, or memory.

use crate::cancel;
use crate::error::{Error, Field, Message, Result};
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The bytes that are read between two looks for a cancellation.
const PIECE: u64 = 16 << 20;

/// Read-only bytes that many tensors share.
///
/// A mapping follows its file. One that is written to in place gives other bytes from then on, which
/// [`MappedBytes::check_unchanged`] tells; one that is cut short ends the process with SIGBUS when the missing part is
/// read. A file whose name another one has taken, by a rename, stays as it was. Where files may change while the process
/// runs, read them with [`MappedBytes::read`].
pub struct MappedBytes(Bytes);

enum Bytes {
    Mapped(memmap2::Mmap, Option<Box<Source>>),
    Owned(Vec<u8>),
}

/// A mapped file as it was when it was opened. It stays open, so that another one in its place is not taken for it.
struct Source {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

/// The facts by which a change of a file is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    /// To the nanosecond, where the file system keeps so much; none where it keeps no time.
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self { len: meta.len(), modified: meta.modified().ok() }
    }

    /// The difference from a later stamp, in words.
    fn difference(&self, now: &Self) -> Option<String> {
        match (self.len, now.len) {
            _ if self == now => None,
            (then, now) if then == now => Some("its bytes were written again".into()),
            (then, now) => Some(format!("it had {then} bytes and has {now}")),
        }
    }
}

impl Source {
    /// The change of the file since it was opened, in words.
    fn change(&self) -> Option<String> {
        match self.file.metadata() {
            Ok(meta) => self.stamp.difference(&Stamp::of(&meta)),
            Err(error) => Some(format!("it cannot be looked at any more: {error}")),
        }
    }
}

impl MappedBytes {
    /// Maps a file, and keeps it open to tell whether it changes.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be opened or mapped; [`Error::Malformed`] where it is empty or not a regular file.
    pub fn map(path: &Path) -> Result<Self> {
        let (file, stamp) = open(path)?;
        let map = map(&file, path)?;
        Ok(Self(Bytes::Mapped(map, Some(Box::new(Source { path: path.to_owned(), file, stamp })))))
    }

    /// Maps a file of the cache, which is written whole and never in place. There may be more of them than files may be open.
    ///
    /// # Errors
    /// Those of [`MappedBytes::map`].
    pub(crate) fn map_cached(path: &Path) -> Result<Self> {
        let (file, _) = open(path)?;
        Ok(Self(Bytes::Mapped(map(&file, path)?, None)))
    }

    /// Checks that a mapped file is as it was when it was opened, by its size and the time of its last change. Bytes in memory
    /// never change.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_unchanged(&self) -> Result<()> {
        let Bytes::Mapped(_, Some(source)) = &self.0 else { return Ok(()) };
        source.change().map_or(Ok(()), |change| Err(changed(&source.path, &change)))
    }

    /// Reads a file into memory.
    ///
    /// # Errors
    /// Those of [`MappedBytes::map`]; [`Error::Changed`] where the file changes meanwhile; [`Error::Cancelled`].
    pub fn read(path: &Path) -> Result<Self> {
        use std::io::Read;
        let (mut file, stamp) = open(path)?;
        let len = stamp.len;
        let mut bytes = Vec::new();
        let hint = || "map the file instead of reading it, or free memory".into();
        crate::memory::require("loading", len, hint)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        bytes.try_reserve_exact(len).map_err(|_| Error::Memory {
            stage: "loading",
            need: len as u64,
            have: 0,
            hint: hint(),
        })?;
        while (&mut file).take(PIECE).read_to_end(&mut bytes).map_err(Error::io("read", path))? > 0 {
            cancel::check()?;
        }
        let now = file.metadata().map_err(Error::io("read", path))?;
        if let Some(change) = stamp.difference(&Stamp::of(&now)) {
            return Err(Error::Changed {
                path: path.to_owned(),
                what: format!("{change} while it was read; load it again").into(),
            });
        }
        Ok(Self(Bytes::Owned(bytes)))
    }

    /// Wraps bytes in memory.
    pub fn owned(bytes: Vec<u8>) -> Self {
        Self(Bytes::Owned(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map, _) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for MappedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if matches!(self.0, Bytes::Mapped(..)) { "mapped" } else { "owned" };
        write!(f, "MappedBytes({kind}, {} bytes)", self.len())
    }
}

fn map(file: &File, path: &Path) -> Result<memmap2::Mmap> {
    // SAFETY: the mapping is private to this process and read-only; that other processes may change the file is
    // documented on the type, and no reader relies on two reads of one byte giving the same value.
    unsafe { memmap2::Mmap::map(file) }.map_err(Error::io("map", path))
}

/// The error of a mapped file that has changed.
fn changed(path: &Path, change: &str) -> Error {
    let what = Message::from(format!(
        "{change} while it was mapped, so that an image may be of neither version; leave the file alone and load it again, or use "
    ));
    Error::Changed { path: path.to_owned(), what: what.setting(Field::Mmap, "false") }
}

/// Opens a regular file that is not empty.
fn open(path: &Path) -> Result<(File, Stamp)> {
    // Before opening, because a pipe would make that wait for a writer.
    let meta = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    // Another file may have come into its place since.
    let stamp = Stamp::of(&file.metadata().map_err(Error::io("open", path))?);
    if stamp.len == 0 {
        return Err(Error::malformed(path, "the file is empty; fetch it again"));
    }
    Ok((file, stamp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn file(folder: &Path, bytes: &[u8]) -> (PathBuf, SystemTime) {
        let (path, then) = (folder.join("f"), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        std::fs::write(&path, bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        (path, then)
    }

    /// A change is told by the time or by the size alone; another file in the place is none.
    #[test]
    fn f09_changes_of_mapped_files() {
        let folder = tempfile::tempdir().unwrap();
        let text = |bytes: &MappedBytes| bytes.check_unchanged().unwrap_err().to_string();
        let (path, _) = file(folder.path(), b"before");
        let bytes = MappedBytes::map(&path).unwrap();
        bytes.check_unchanged().unwrap();
        std::fs::write(&path, b"after!").unwrap();
        let said = text(&bytes);
        assert!(said.contains("its bytes were written again") && said.contains("`mmap: false`"), "{said}");

        let (path, then) = file(folder.path(), b"before");
        let bytes = MappedBytes::map(&path).unwrap();
        let longer = File::options().append(true).open(&path).unwrap();
        longer.set_len(8).unwrap();
        longer.set_modified(then).unwrap();
        assert!(text(&bytes).contains("it had 6 bytes and has 8"), "{}", text(&bytes));

        let (path, _) = file(folder.path(), b"before");
        let bytes = MappedBytes::map(&path).unwrap();
        let other = folder.path().join("g");
        std::fs::write(&other, b"after, and longer").unwrap();
        std::fs::rename(&other, &path).unwrap();
        bytes.check_unchanged().unwrap();
        assert_eq!(bytes.bytes(), b"before");

        let (path, _) = file(folder.path(), b"before");
        let bytes = MappedBytes::read(&path).unwrap();
        std::fs::write(&path, b"after!").unwrap();
        bytes.check_unchanged().unwrap();
        assert_eq!(bytes.bytes(), b"before");
    }
}
