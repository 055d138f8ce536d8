//! Files that are there whole or not at all.

use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file whole or not at all.
///
/// `write` fills a new file in the same folder, which is then forced to disk and renamed to `path`, replacing what was
/// there. Where anything fails, or `write` panics, the new file is removed and an old one stays as it was. A link is
/// followed; the file has the permissions of any new file; a device or pipe is written to directly.
///
/// # Errors
/// [`Error::Io`] with the `path` asked for: the error of `write` or of the operating system; that `path` is a folder,
/// or a file marked read-only.
pub fn write_atomic(path: impl AsRef<Path>, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    let written = AtomicFile::create(path).and_then(|mut new| {
        write(&mut new.file)?;
        new.persist_durably()
    });
    written.map_err(Error::io("write", path))
}

/// Checks that [`write_atomic`] can write a file, before the work is done whose result it is to hold: its folder is there and takes new
/// files, and what is in its place can be replaced. Nothing is left of it.
///
/// # Errors
/// [`Error::Io`] with the `path` asked for and the cause.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    check_folder(folder(path)).and_then(|()| check_place(path)).map_err(Error::io("write", path))
}

fn check_folder(folder: &Path) -> io::Result<()> {
    match fs::metadata(folder) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let what = format!("there is no folder {}; make it first", folder.display());
            Err(io::Error::new(io::ErrorKind::NotFound, what))
        }
        Err(e) => Err(e),
    }
}

fn check_place(path: &Path) -> io::Result<()> {
    // To open a pipe would wait for its reader.
    #[cfg(unix)]
    if fs::metadata(path).is_ok_and(|old| std::os::unix::fs::FileTypeExt::is_fifo(&old.file_type())) {
        return Ok(());
    }
    let probe = AtomicFile::create(path)?;
    match (&probe.target, fs::metadata(path)) {
        (Some(target), Ok(old)) => check_replaceable(target, &old, &probe.file.metadata()?),
        _ => Ok(()),
    }
}

/// A new file that takes the place of `path` once it is complete.
///
/// It lies in the same folder under another name until [`AtomicFile::persist`] renames it to `path`, replacing what was
/// there; dropped before that, by a failure or a panic, it is removed and an old file stays as it was. A link is
/// followed; the file has the permissions of any new file; a device or pipe is written to directly.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    file: File,
    /// The final place; `None` of a device, which is written to directly.
    target: Option<PathBuf>,
    /// Removed when this is dropped; `None` of a device and once it is renamed.
    temporary: Option<PathBuf>,
}

impl AtomicFile {
    /// Creates the file.
    ///
    /// # Errors
    /// Fails where `path` is a folder, a read-only file or no name of a file, where its folder is marked append-only or immutable, and
    /// where the operating system refuses.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let target = match fs::metadata(path) {
            Ok(old) if old.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(old) if !old.is_file() => {
                let file = OpenOptions::new().write(true).open(path)?;
                return Ok(Self { file, target: None, temporary: None });
            }
            // A rename would not heed the mark.
            Ok(old) if old.permissions().readonly() => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file is there and marked read-only"));
            }
            Ok(_) => fs::canonicalize(path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
            Err(e) => return Err(e),
        };
        if target.file_name().is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
        }
        let folder = folder(&target);
        check_marks(folder)?;
        let (temporary, file) = create_new(folder)?;
        Ok(Self { file, target: Some(target), temporary: Some(temporary) })
    }

    /// Renames the file to its place.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn persist(mut self) -> io::Result<()> {
        if let (Some(temporary), Some(target)) = (&self.temporary, &self.target) {
            fs::rename(temporary, target)?;
        }
        self.temporary = None;
        Ok(())
    }

    /// Renames the file to its place, its bytes forced to disk before.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn persist_durably(self) -> io::Result<()> {
        let Some(target) = self.target.clone() else { return Ok(()) };
        self.file.sync_all()?;
        self.persist()?;
        // The name is safe once the folder is; not every file system can do it, and the file is whole either way.
        #[cfg(unix)]
        let _ = File::open(folder(&target)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Finds the folder of a file.
fn folder(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Checks that a folder's files may be renamed and removed: a new one would stay under its temporary name in one that is marked
/// append-only. Unknown counts as yes.
#[cfg(target_os = "linux")]
fn check_marks(folder: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: all-zero bytes are a valid statx; the path is a C string, and the result is written to no further than its size.
    let marks = unsafe {
        let mut facts: libc::statx = std::mem::zeroed();
        let failed = libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, libc::STATX_MODE, &mut facts) != 0;
        if failed { 0 } else { facts.stx_attributes }
    };
    let known = [(libc::STATX_ATTR_IMMUTABLE, "immutable"), (libc::STATX_ATTR_APPEND, "append-only")];
    match known.into_iter().find(|(mark, _)| marks & *mark as u64 != 0) {
        Some((_, mark)) => {
            let what =
                format!("the folder is marked {mark} (lsattr -d); name another one, or take the mark away (chattr)");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
        }
        None => Ok(()),
    }
}

/// Elsewhere only the attempt tells.
#[cfg(not(target_os = "linux"))]
fn check_marks(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Checks that a rename could put a file of the owner of `new` in the place of another one.
#[cfg(unix)]
fn check_replaceable(target: &Path, old: &fs::Metadata, new: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    const STICKY: u32 = 0o1000;
    // Of a file marked immutable or append-only; other permissions give EACCES, which a rename does not heed.
    const EPERM: i32 = 1;
    let refuse = |kind: io::ErrorKind, what: &str| Err(io::Error::new(kind, what));
    let folder = fs::metadata(folder(target))?;
    // In a folder like /tmp only the owners of the file and of the folder replace a file, and root.
    if folder.mode() & STICKY != 0 && new.uid() != 0 && ![old.uid(), folder.uid()].contains(&new.uid()) {
        let what = "the file is there and belongs to another user, and its folder lets nobody else replace it (sticky)";
        return refuse(io::ErrorKind::PermissionDenied, what);
    }
    if is_mount_point(target) {
        let what = "a file is mounted there, which cannot be replaced; mount its folder, or name another file";
        return refuse(io::ErrorKind::ResourceBusy, what);
    }
    match OpenOptions::new().write(true).open(target) {
        Err(e) if e.raw_os_error() == Some(EPERM) => {
            refuse(io::ErrorKind::PermissionDenied, "the file is there and marked immutable or append-only (lsattr)")
        }
        _ => Ok(()),
    }
}

/// Elsewhere only the attempt tells.
#[cfg(not(unix))]
fn check_replaceable(_: &Path, _: &fs::Metadata, _: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

/// Whether a file is mounted on this one, as containers do it; `file` is canonical. Unknown counts as no.
#[cfg(unix)]
fn is_mount_point(file: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let mut escaped = Vec::new();
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
            byte => escaped.push(*byte),
        }
    }
    // proc(5): the fifth field is the mount point.
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|byte| *byte == b'\n').any(|line| line.split(|byte| *byte == b' ').nth(4) == Some(&escaped[..]))
}

/// Creates a file under a name that no other has.
fn create_new(folder: &Path) -> io::Result<(PathBuf, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!(".braid-{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(name);
        match OpenOptions::new().write(true).read(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            // Left by a process that was killed and had this number.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn failed_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        write_atomic(&path, |f| f.write_all(b"old")).unwrap();
        let error = write_atomic(&path, |f| {
            f.write_all(b"half of the ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(matches!(error, Err(Error::Io { action: "write", .. })));
        let panicked = std::panic::catch_unwind(|| write_atomic(&path, |_| std::panic::resume_unwind(Box::new(()))));
        assert!(panicked.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["f"]);
        write_atomic(&path, |f| f.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn impossible_places() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &Path| write_atomic(path, |f| f.write_all(b"x"));
        assert!(write(folder.path()).is_err());
        assert!(write(&folder.path().join("none/f")).is_err());
        assert!(write(Path::new("")).is_err());
        let name = folder.path().join("x".repeat(255));
        write(&name).unwrap();
        let mut locked = fs::metadata(&name).unwrap().permissions();
        locked.set_readonly(true);
        fs::set_permissions(&name, locked).unwrap();
        assert!(write(&name).unwrap_err().to_string().contains("read-only"));
        assert_eq!(names(folder.path()), ["x".repeat(255)]);
    }

    /// A check ahead leaves nothing and changes nothing.
    #[cfg(unix)]
    #[test]
    fn f10_places_checked_ahead() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        check_writable(&path).unwrap();
        assert!(names(folder.path()).is_empty());
        fs::write(&path, "old").unwrap();
        check_writable(&path).unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"old".to_vec(), vec!["f".to_owned()]));
        assert!(check_writable(folder.path()).is_err());
        assert!(check_writable(folder.path().join("x".repeat(300))).is_err());
        check_writable("/dev/null").unwrap();
        assert!(!is_mount_point(&path));
        if cfg!(target_os = "linux") {
            assert!(is_mount_point(Path::new("/proc")) && !is_mount_point(Path::new("/proc/self/mountinfo")));
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_devices_and_permissions() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("f"), folder.path().join("link"));
        let usual = folder.path().join("usual");
        File::create(&usual).unwrap();
        fs::write(&path, "old").unwrap();
        symlink("f", &link).unwrap();
        write_atomic(&link, |f| f.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&usual));
        write_atomic("/dev/null", |f| f.write_all(b"x")).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
}
