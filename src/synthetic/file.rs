//! Files of any size, with the folders on the way.

use crate::atomic_file::AtomicFile;
use crate::error::{Error, Result};
use std::fs;
use std::io::BufWriter;
use std::path::Path;

/// Writes `path` whole or not at all, through an [`AtomicFile`]. Folders on the way are made.
pub(super) fn write(path: &Path, body: impl FnOnce(&mut BufWriter<AtomicFile>) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let file = AtomicFile::create(path).map_err(Error::io("create", path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    body(&mut out)?;
    // Not forced to disk: gigabytes that can be made again.
    let file = out.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
    file.persist().map_err(Error::io("rename to", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn atomic_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.txt");
        write(&path, |_| Err(Error::Cancelled)).unwrap_err();
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 0);
        write(&path, |out| out.write_all(b"x").map_err(Error::io("write", "x"))).unwrap();
        write(&path, |_| Err(Error::Cancelled)).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }
}
