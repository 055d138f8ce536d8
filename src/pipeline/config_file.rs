//! Reading of configuration files.

use crate::error::{Error, Result, escape};
use crate::presence::is_there;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The greatest size of a configuration file in bytes; real ones are far smaller.
const MAX_CONFIG: u64 = 16 << 20;

/// Reads the text of a configuration file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Malformed`] for what is no plain file of a sensible size.
pub(super) fn text(path: &Path) -> Result<String> {
    // Before opening, because a pipe would make that wait for a writer.
    let meta = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !meta.is_file() || meta.len() > MAX_CONFIG {
        return Err(Error::malformed(path, format!("not a regular file of at most {MAX_CONFIG} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    if text.starts_with('\u{feff}') {
        let what = "begins with a byte order mark, which JSON does not allow; save it as UTF-8 without BOM";
        return Err(Error::malformed(path, what));
    }
    Ok(text)
}

/// Reads a configuration file.
///
/// # Errors
/// [`Error::Malformed`] where it is not JSON, else as [`text`].
pub(super) fn json(path: &Path) -> Result<Value> {
    let text = text(path)?;
    serde_json::from_str(&text).map_err(|e| Error::malformed(path, format!("not JSON: {e}")))
}

/// Reads the `config.json` of a model's folder, or the one beside its file where that says it is of `class`: beside a file may lie the
/// configuration of something else.
///
/// # Errors
/// As [`json`].
pub(super) fn beside(path: &Path, class: &str) -> Result<Option<(PathBuf, Value)>> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let config = folder.join("config.json");
    if !is_there(&config)? {
        return Ok(None);
    }
    let value = json(&config)?;
    Ok((path.is_dir() || value["_class_name"] == class).then_some((config, value)))
}

/// Makes the error for a part of class `class` that the index names and whose `file` is not in the folder.
pub(super) fn missing_part(index: &Path, part: &'static str, class: &str, file: &str) -> Error {
    Error::Config {
        path: index.to_owned(),
        field: part.into(),
        value: escape(class),
        expected: format!("the folder has no {part}/{file}; fetch it too").into(),
    }
}
