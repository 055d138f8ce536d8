//! Names from files in errors.

/// Puts a name from a file in backticks, shortened so that an error's text keeps its end.
pub(super) fn quoted(name: &str) -> String {
    const SHOWN: usize = 96;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`{}...`", &name[..end]),
        None => format!("`{name}`"),
    }
}
