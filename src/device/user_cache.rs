//! The folder of results that cost time and can be made again.

use std::env;
use std::path::PathBuf;

/// The folder that `BRAID_CACHE` names, else `braid` in the user's folder for caches; none where it is empty or unknown.
pub(crate) fn folder() -> Option<PathBuf> {
    let named = |name| env::var_os(name).map(PathBuf::from);
    let absolute = |name| named(name).filter(|path| path.is_absolute());
    let usual = || {
        let base = if cfg!(windows) {
            absolute("LOCALAPPDATA")
        } else {
            absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        };
        base.map(|base| base.join("braid"))
    };
    named("BRAID_CACHE").map_or_else(usual, Some).filter(|path| !path.as_os_str().is_empty())
}
