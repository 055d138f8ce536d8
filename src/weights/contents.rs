//! The result of reading one file.

use super::weight::Weights;
use crate::error::Error;
use std::path::Path;

/// The tensors of a file, and the names of those that were left out because they hold integers or booleans.
#[derive(Debug)]
pub(super) struct Contents {
    pub weights: Weights,
    pub skipped: Vec<String>,
}

/// Makes the error for a tensor whose element type no model here takes.
pub(super) fn unsupported(path: &Path, name: &str, dtype: &str) -> Error {
    let name = quoted(name);
    Error::mismatch(path, format!("tensor {name} is of type {dtype}; supported are F32, F16, BF16: convert the file"))
}

/// Puts a name from a file in backticks, shortened so that an error's text keeps its end.
pub(super) fn quoted(name: &str) -> String {
    const SHOWN: usize = 96;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`{}...`", &name[..end]),
        None => format!("`{name}`"),
    }
}
