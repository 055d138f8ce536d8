//! The one error type: each value says what failed, where, what was expected and what to do.

use std::path::{Path, PathBuf};

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong.
///
/// The text of each variant is one line. Text that came from a file or from the user is escaped, so that control
/// characters never reach a terminal raw (see [`escape`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("{}: cannot {action}: {source}", shown(.path))]
    Io {
        /// What was attempted, as a verb: `open`, `map`, `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not what its format demands.
    #[error("{}: {what}", shown(.path))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in the file, what was expected and what to do.
        what: String,
    },
    /// A file is sound but is not one that fits here: another model family, another encoder, another layout.
    #[error("{}: {what}", shown(.path))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected, which file is needed.
        what: String,
    },
    /// Tensors of a weight file are missing or have other shapes than the model needs.
    #[error("{}: {} tensor(s) do not fit the {model}: {}", shown(.path), .problems.len(), listed(.problems))]
    Tensors {
        /// The file or folder.
        path: PathBuf,
        /// The model that needs them, e.g. `UNet`.
        model: String,
        /// One entry for each tensor: `NAME missing, expected [..]` or `NAME is [..], expected [..]`.
        problems: Vec<String>,
    },
    /// A setting in a configuration file that is not supported.
    #[error("{}: `{field}` is {value}: {expected}", shown(.path))]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// The value found, as JSON.
        value: String,
        /// What is supported instead.
        expected: String,
    },
    /// A parameter of the request or of the command line is not usable.
    #[error("{name}: {what}")]
    Parameter {
        /// The parameter as the user writes it, e.g. `--steps`.
        name: String,
        /// What was given and what is allowed.
        what: String,
    },
    /// More memory is needed than there is.
    #[error("out of memory in {stage}: {need} bytes needed, {have} available; {hint}")]
    Memory {
        /// Where: loading, planning (a program's arena), condition, decode.
        stage: &'static str,
        /// Bytes needed.
        need: u64,
        /// Bytes available.
        have: u64,
        /// Which setting would fit.
        hint: String,
    },
    /// A computation gave NaN or infinity.
    #[error("{stage} gave a value that is not finite; {hint}")]
    NotFinite {
        /// The stage, with the step number where it has one.
        stage: String,
        /// What to try.
        hint: String,
    },
    /// The request's cancel token was set.
    #[error("cancelled")]
    Cancelled,
    /// A device cannot be used.
    #[error("device {device}: {what}")]
    Device {
        /// The device as the user names it.
        device: String,
        /// What is missing, where it was sought, what to do.
        what: String,
    },
    /// A device failed at its work.
    #[error("device {device}: {call} failed: {what}{}", if *.lost { "; the device is lost to this process: start it again, or use --device cpu" } else { "" })]
    Fault {
        /// The device as the user names it.
        device: String,
        /// The kernel or the function of a library.
        call: String,
        /// What the driver said.
        what: String,
        /// Whether nothing can be done on the device any more.
        lost: bool,
    },
    /// A graph was built or bound wrongly: a defect of the caller within this crate.
    #[error("graph: {0}")]
    Graph(String),
}

impl Error {
    /// An [`Error::Io`]; for `map_err(Error::io("open", path))`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// An [`Error::Malformed`].
    pub fn malformed(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), what: escape(&what.into()) }
    }

    /// An [`Error::Mismatch`].
    pub fn mismatch(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Mismatch { path: path.into(), what: escape(&what.into()) }
    }

    /// An [`Error::Parameter`].
    pub fn parameter(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Parameter { name: name.into(), what: escape(&what.into()) }
    }
}

/// Replaces control characters by their escapes and cuts the text at 300 characters, so that foreign text is safe to
/// print on one line.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, c) in text.chars().enumerate() {
        if i == 300 {
            out.push_str("...");
            break;
        }
        if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

fn listed(problems: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = problems.iter().take(SHOWN).map(|p| escape(p)).collect::<Vec<_>>().join("; ");
    if problems.len() > SHOWN {
        text.push_str(&format!("; and {} more", problems.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_control_characters() {
        assert_eq!(escape("a\x1b[31m\0b"), "a\\u{1b}[31m\\u{0}b");
        assert_eq!(escape(&"x".repeat(400)).len(), 303);
    }

    #[test]
    fn many_problems_are_counted() {
        let problems = (0..20).map(|i| format!("t{i} missing")).collect();
        let text = Error::Tensors { path: "f".into(), model: "UNet".into(), problems }.to_string();
        assert!(text.starts_with("f: 20 tensor(s)"), "{text}");
        assert!(text.ends_with("and 12 more"), "{text}");
    }
}
