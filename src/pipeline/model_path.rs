//! The path of a model, judged before anything is opened.

use crate::error::{Error, Result};
use std::path::Path;

/// Refuses what is often given in a model's place, naming it: a folder of the hub's cache, a repository's name.
///
/// # Errors
/// [`Error::Mismatch`].
pub(super) fn check(path: &Path) -> Result<()> {
    let has = |name: &str| path.join(name).exists();
    if path.is_dir() && !has("model_index.json") {
        if has("snapshots") && has("refs") {
            let what = "this is a repository's folder in the hub's cache; give the folder below its snapshots/";
            return Err(Error::mismatch(path, what));
        }
        let cached = std::fs::read_dir(path).into_iter().flatten().flatten();
        if cached.take(1000).any(|entry| entry.file_name().to_string_lossy().starts_with("models--")) {
            let what = "this is the root of the hub's cache; give a folder below models--OWNER--NAME/snapshots/";
            return Err(Error::mismatch(path, what));
        }
    }
    let text = path.to_string_lossy();
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.');
    let repository = matches!(text.split('/').collect::<Vec<_>>()[..], [owner, name] if plain(owner) && plain(name));
    let file = path.extension().is_some_and(|e| ["safetensors", "ckpt", "bin", "pt"].iter().any(|end| e == *end));
    if repository && !file && !path.exists() && !path.parent().is_some_and(Path::exists) {
        let what = "there is no such file; if this is a repository's name: fetch it first and give its folder";
        return Err(Error::mismatch(path, what));
    }
    Ok(())
}
