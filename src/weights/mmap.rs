//! The bytes behind the tensors: a mapping of a file, or memory.

use crate::error::{Error, Result};
use std::fs::File;
use std::path::Path;

/// Read-only bytes that many tensors share.
///
/// A mapping follows its file: a file that is cut short while it is mapped ends the process with SIGBUS when the
/// missing part is read. Where files may change while the process runs, read them with [`MappedBytes::read`].
pub struct MappedBytes(Bytes);

enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl MappedBytes {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be opened or mapped; [`Error::Malformed`] where it is empty or not a regular file.
    pub fn map(path: &Path) -> Result<Self> {
        let (file, _) = open(path)?;
        // SAFETY: the mapping is private to this process and read-only; that other processes may change the file is
        // documented on the type, and no reader relies on two reads of one byte giving the same value.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Ok(Self(Bytes::Mapped(map)))
    }

    /// Reads a file into memory.
    ///
    /// # Errors
    /// Those of [`MappedBytes::map`].
    pub fn read(path: &Path) -> Result<Self> {
        use std::io::Read;
        let (mut file, len) = open(path)?;
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
        file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        Ok(Self(Bytes::Owned(bytes)))
    }

    /// Wraps bytes in memory.
    pub fn owned(bytes: Vec<u8>) -> Self {
        Self(Bytes::Owned(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped(map) => map,
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
        let kind = if matches!(self.0, Bytes::Mapped(_)) { "mapped" } else { "owned" };
        write!(f, "MappedBytes({kind}, {} bytes)", self.len())
    }
}

fn open(path: &Path) -> Result<(File, u64)> {
    // Before opening, because a pipe would make that wait for a writer.
    let meta = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    if meta.len() == 0 {
        return Err(Error::malformed(path, "the file is empty; fetch it again"));
    }
    Ok((file, meta.len()))
}
