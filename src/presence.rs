//! Whether optional files are there.

use crate::error::{Error, Result};
use std::io::ErrorKind;
use std::path::Path;

/// Whether something of that name is there, be it a link to nothing, a folder or a pipe: only what is truly not there is absent, and
/// whoever reads the rest says what is wrong with it.
///
/// # Errors
/// [`Error::Io`] where that cannot be seen, as a folder on the way cannot be read or is none.
pub(crate) fn is_there(path: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => match path.parent() {
            // Below a link to nothing everything seems to be absent.
            Some(folder) if folder != Path::new("") && is_there(folder)? => {
                std::fs::metadata(folder).map_err(Error::io("open", folder)).map(|_| false)
            }
            _ => Ok(false),
        },
        Err(e) => Err(Error::io("look at", path)(e)),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn absent_and_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        symlink("nothing", at("link")).unwrap();
        symlink("file", at("link to a file")).unwrap();
        for name in ["file", "link", "link to a file", ""] {
            assert!(is_there(&at(name)).unwrap(), "{name}");
        }
        for name in ["other", "other/file"] {
            assert!(!is_there(&at(name)).unwrap(), "{name}");
        }
        assert!(!is_there(Path::new("no such name")).unwrap());
        for (name, culprit) in [("file/config.json", "file/config.json"), ("link/config.json", "link")] {
            let error = is_there(&at(name)).unwrap_err();
            assert!(matches!(&error, Error::Io { path, .. } if *path == at(culprit)), "{name}: {error}");
        }
    }
}
