//! The bytes behind the tensors: a mapping of a file, or memory.

use crate::cancel;
use crate::error::{Error, Field, Message, Result, one_line};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The bytes that are read between two looks for a cancellation.
const PIECE: u64 = 16 << 20;

/// The longest step of the clocks by which file systems note changes: the kernel's, and one of whole seconds.
const TICK: Duration = Duration::from_millis(10);
const LONG_TICK: Duration = Duration::from_secs(2);

/// Read-only bytes that many tensors share.
///
/// A mapping follows its file. One that is written to in place gives other bytes from then on, which
/// [`MappedBytes::check_unchanged`] tells; one that is cut short ends the process with SIGBUS when the missing part is
/// read. A file whose name another one has taken, by a rename, stays as it was. Where files may change while the process
/// runs, read them with [`MappedBytes::read`].
pub struct MappedBytes(Bytes);

enum Bytes {
    Mapped {
        // Given up first: once its addresses are free another mapping may have them.
        _place: Place,
        map: memmap2::Mmap,
        source: Option<Box<Source>>,
    },
    Owned(Vec<u8>),
}

/// A mapped file as it was when it was opened. It stays open, so that another one in its place is not taken for it.
struct Source {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

/// The mapped files by the address at which each begins: the one at which it ends, and the file's name on one line.
static MAPPED: Mutex<BTreeMap<usize, (usize, String)>> = Mutex::new(BTreeMap::new());

/// The place of a mapping in [`MAPPED`].
struct Place(usize);

impl Place {
    fn of(map: &memmap2::Mmap, path: &Path) -> Self {
        let start = map.as_ptr() as usize;
        let named = (start + map.len(), one_line(&path.to_string_lossy()));
        MAPPED.lock().unwrap_or_else(PoisonError::into_inner).insert(start, named);
        Self(start)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        MAPPED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Calls `tell` with the name of the mapped file that has its bytes at an address; `None` where none is known. A handler of SIGBUS may
/// call it: nothing is allocated, and whoever has the lock reads no mapping meanwhile, so that it is soon given up.
#[cfg(all(unix, feature = "cli"))]
pub(crate) fn with_mapped_file(address: usize, tell: impl FnOnce(Option<&str>)) {
    let lock = || {
        let locked = MAPPED.try_lock().ok();
        if locked.is_none() {
            std::thread::yield_now();
        }
        locked
    };
    // Not for ever: a signal that another process sends may come to the thread that has it.
    let files = (0..10_000).find_map(|_| lock());
    let file = files.as_ref().and_then(|files| files.range(..=address).next_back());
    tell(file.and_then(|(_, (end, name))| (address < *end).then_some(name.as_str())));
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

    /// The time after which a change has another time than the last one had, however coarse the file system's clock is.
    fn unsettled(&self, now: SystemTime) -> Duration {
        let Some(modified) = self.modified else { return Duration::ZERO };
        let whole_seconds = modified.duration_since(UNIX_EPOCH).is_ok_and(|time| time.subsec_nanos() == 0);
        let tick = if whole_seconds { LONG_TICK } else { TICK };
        // A time that is still to come was set, and no change gets it by itself.
        now.duration_since(modified).map_or(Duration::ZERO, |age| tick.saturating_sub(age))
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
        let (file, stamp) = open_settled(path)?;
        let map = map(&file, path)?;
        let source = Some(Box::new(Source { path: path.to_owned(), file, stamp }));
        Ok(Self(Bytes::Mapped { _place: Place::of(&map, path), map, source }))
    }

    /// Maps a file of the cache, which is written whole and never in place. There may be more of them than files may be open.
    ///
    /// # Errors
    /// Those of [`MappedBytes::map`].
    pub(crate) fn map_cached(path: &Path) -> Result<Self> {
        let (file, _) = open(path)?;
        let map = map(&file, path)?;
        Ok(Self(Bytes::Mapped { _place: Place::of(&map, path), map, source: None }))
    }

    /// Checks that a mapped file is as it was when it was opened, by its size and the time of its last change. Bytes in memory
    /// never change.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_unchanged(&self) -> Result<()> {
        let Bytes::Mapped { source: Some(source), .. } = &self.0 else { return Ok(()) };
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
            Bytes::Mapped { map, .. } => map,
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
        let kind = if matches!(self.0, Bytes::Mapped { .. }) { "mapped" } else { "owned" };
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

/// Opens a regular file that is not empty, so that any change from now on is told by its [`Stamp`]: where the last one is not older than
/// a tick of the file system's clock, it waits for the next one.
fn open_settled(path: &Path) -> Result<(File, Stamp)> {
    let (file, mut stamp) = open(path)?;
    // No longer than that where it is written to all the time.
    for _ in 0..LONG_TICK.as_millis() / TICK.as_millis() {
        let left = stamp.unsettled(SystemTime::now());
        if left.is_zero() {
            break;
        }
        cancel::check()?;
        std::thread::sleep(left.min(TICK));
        stamp = Stamp::of(&file.metadata().map_err(Error::io("open", path))?);
    }
    Ok((file, stamp))
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

        // Written, opened and written again at once: a clock that goes in steps may give both the same time.
        for _ in 0..5 {
            std::fs::write(&path, b"before").unwrap();
            let bytes = MappedBytes::map(&path).unwrap();
            std::fs::write(&path, b"after!").unwrap();
            text(&bytes);
        }

        let (path, _) = file(folder.path(), b"before");
        let bytes = MappedBytes::read(&path).unwrap();
        std::fs::write(&path, b"after!").unwrap();
        bytes.check_unchanged().unwrap();
        assert_eq!(bytes.bytes(), b"before");
    }

    /// A file is left alone until a change of it would have another time.
    #[test]
    fn f09_ticks_of_clocks() {
        let at = |millis: u64| UNIX_EPOCH + Duration::from_millis(1_000_000_000_000 + millis);
        let left = |modified, now| Stamp { len: 1, modified }.unsettled(now).as_millis();
        assert_eq!(left(Some(at(1)), at(1)), 10);
        assert_eq!(left(Some(at(1)), at(4)), 7);
        assert_eq!(left(Some(at(1)), at(11)), 0);
        assert_eq!(left(Some(at(2)), at(1)), 0);
        // Of FAT and others, whose times are whole seconds.
        assert_eq!(left(Some(at(0)), at(500)), 1500);
        assert_eq!(left(Some(at(0)), at(2000)), 0);
        assert_eq!(left(None, at(0)), 0);
    }

    /// Addresses lead to the names of mapped files as long as they are mapped.
    #[cfg(all(unix, feature = "cli"))]
    #[test]
    fn f08_names_of_mapped_files() {
        let folder = tempfile::tempdir().unwrap();
        let name = |address: usize| {
            let mut told = None;
            with_mapped_file(address, |name| told = name.map(str::to_owned));
            told
        };
        let paths = ["a\x1b\nb", "c"].map(|name| folder.path().join(name));
        let files = paths.each_ref().map(|path| {
            std::fs::write(path, [1; 5000]).unwrap();
            MappedBytes::map(path).unwrap()
        });
        let starts = files.each_ref().map(|bytes| bytes.bytes().as_ptr() as usize);
        let names = paths.map(|path| one_line(path.to_str().unwrap()));
        assert!(names[0].ends_with("a\\u{1b}\\u{a}b"));
        for (start, want) in starts.iter().zip(&names) {
            assert!([0, 4999].iter().all(|at| name(start + at).as_ref() == Some(want)));
            assert_ne!(name(start + 5000), Some(want.clone()));
        }
        assert_eq!(name(0), None);
        drop(files);
        assert!(starts.iter().zip(&names).all(|(start, old)| name(*start).as_ref() != Some(old)));
    }
}
