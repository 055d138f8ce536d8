//! A file that appears whole or not at all.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Writes `path` through a file beside it, which is renamed when `body` and the flush succeeded and removed otherwise.
/// Folders on the way are made.
pub(super) fn write(path: &Path, body: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = Temporary(folder.join(format!(".{name}.{}-{n}.part", std::process::id())));
    let file = File::create_new(&temporary.0).map_err(Error::io("create", &temporary.0))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    body(&mut out)?;
    let file = out.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
    drop(file);
    fs::rename(&temporary.0, path).map_err(Error::io("rename to", path))
}

/// Removes its file when dropped; after the rename there is none.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn whole_or_not_at_all() {
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
