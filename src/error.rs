//! The crate's error type. Each value names the failure, its place, the expectation and the remedy.

mod escape;
mod field;

pub use escape::escape;
pub(crate) use escape::one_line;
pub use field::{Field, FieldNames, Message};

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of any operation of this crate.
///
/// The text of each variant is one line. Control characters in it, such as those of a name in a file or of a driver's words, are
/// escaped where it is written out ([`Message`]), so that they never reach a terminal raw.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    Io {
        /// The attempted operation, as a verb: `open`, `map`, `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file does not follow its format.
    Malformed {
        /// The file.
        path: PathBuf,
        /// The defect, its place in the file, the expectation and the remedy.
        what: String,
    },
    /// A sound file does not fit here: another model family, another encoder, another layout.
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The file's kind, the expected one and the file that is needed.
        what: String,
    },
    /// A model's file was written to or cut short while it was in use: by its size and the time of its last change it is another one
    /// than it was when it was opened.
    Changed {
        /// The file.
        path: PathBuf,
        /// The change and the remedy.
        what: Message,
    },
    /// Tensors of a weight file are missing or have other shapes than the model needs.
    Tensors {
        /// The file or folder.
        path: PathBuf,
        /// The model that needs them, e.g. `UNet`.
        model: String,
        /// One entry for each tensor: `NAME missing, expected [..]` or `NAME is [..], expected [..]`.
        problems: Vec<String>,
    },
    /// A setting in a configuration file is not supported.
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// The value found, as JSON.
        value: String,
        /// The supported values.
        expected: Message,
    },
    /// A field of the request or of the options is not usable.
    Parameter {
        /// The field.
        field: Field,
        /// The value given and the values allowed.
        what: Message,
    },
    /// More memory is needed than is available.
    Memory {
        /// The stage: loading, planning (an executable's arena), condition, decode.
        stage: &'static str,
        /// The bytes needed; 0 where the device's driver does not say how many.
        need: u64,
        /// The bytes available.
        have: u64,
        /// A setting that would fit.
        hint: Message,
    },
    /// A computation gave NaN or infinity.
    NotFinite {
        /// The stage, with the step number where it has one.
        stage: String,
        /// A remedy to try.
        hint: String,
    },
    /// A frame of a [`crate::Stream`] cannot be drawn; the next one may.
    Frame {
        /// The number of the frame, from 0.
        number: u64,
        /// The failure of its request.
        error: Box<Error>,
    },
    /// The request's cancel token was set.
    Cancelled,
    /// An engine's queue is full, or a pipeline is at work for another call of [`crate::Pipeline::try_generate`]'s kind.
    Busy {
        /// The requests, or the calls, that wait.
        waiting: usize,
    },
    /// A request had not begun by its deadline.
    Late,
    /// A callback called what would wait for its own end: its pipeline, or a ticket of its engine.
    InCallback,
    /// An engine takes no more requests, or was dropped before it began this one.
    Stopped,
    /// A callback of a request in an engine, or the engine's work on it, panicked.
    Panicked(String),
    /// A device cannot be used.
    Device {
        /// The device as the user names it.
        device: String,
        /// The missing part, the places searched and the remedy.
        what: Message,
    },
    /// A device failed at its work.
    Fault {
        /// The device as the user names it.
        device: String,
        /// The kernel or the library's function.
        call: String,
        /// The driver's error.
        what: String,
        /// Whether the device is unusable for the rest of the process.
        lost: bool,
    },
    /// A graph was built or bound wrongly: a bug of the caller within this crate.
    Graph(String),
}

impl Error {
    /// Makes an [`Error::Io`]; for `map_err(Error::io("open", path))`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Makes an [`Error::Malformed`].
    pub fn malformed(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), what: escape(&what.into()) }
    }

    /// Makes an [`Error::Mismatch`].
    pub fn mismatch(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Mismatch { path: path.into(), what: escape(&what.into()) }
    }

    /// Makes an [`Error::Parameter`].
    pub fn parameter(field: Field, what: impl Into<Message>) -> Self {
        Self::Parameter { field, what: what.into().escaped() }
    }

    /// The error's text, one line, in which fields are mentioned.
    pub fn message(&self) -> Message {
        match self {
            Self::Io { action, path, source } => format!("{}: cannot {action}: {source}", shown(path)).into(),
            Self::Malformed { path, what } | Self::Mismatch { path, what } => format!("{}: {what}", shown(path)).into(),
            Self::Changed { path, what } => Message::from(format!("{}: ", shown(path))).then(what),
            Self::Tensors { path, model, problems } => {
                let (count, list) = (problems.len(), listed(problems));
                format!("{}: {count} tensor(s) do not fit the {model}: {list}", shown(path)).into()
            }
            Self::Config { path, field, value, expected } => {
                Message::from(format!("{}: `{field}` is {value}: ", shown(path))).then(expected)
            }
            Self::Parameter { field, what } => Message::default().field(*field).text(": ").then(what),
            Self::Memory { stage, need: 0, have, hint } => {
                let what = "more bytes needed, the driver does not say how many";
                Message::from(format!("out of memory in {stage}: {what}; {have} available; ")).then(hint)
            }
            Self::Memory { stage, need, have, hint } => {
                Message::from(format!("out of memory in {stage}: {need} bytes needed, {have} available; ")).then(hint)
            }
            Self::NotFinite { stage, hint } => format!("{stage} gave a value that is not finite; {hint}").into(),
            Self::Frame { number, error } => Message::from(format!("frame {number}: ")).then(&error.message()),
            Self::Cancelled => "cancelled".into(),
            Self::Busy { waiting } => {
                format!("busy, and {waiting} requests wait; try it again later, or let more wait in an engine").into()
            }
            Self::Late => "the request had not begun by its deadline; give it more time or a higher priority".into(),
            Self::InCallback => {
                "a callback called what would wait for its own end, its pipeline or a ticket of its engine; \
                call it after the callback has returned, or submit a request to an engine and wait for it elsewhere"
                    .into()
            }
            Self::Stopped => "the engine was stopped; submit the request to another one".into(),
            Self::Panicked(what) => format!("a callback or the work on the request panicked: {}", escape(what)).into(),
            Self::Device { device, what } => Message::from(format!("device {device}: ")).then(what),
            Self::Fault { device, call, what, lost } => {
                let text = Message::from(format!("device {device}: {call} failed: {what}"));
                if !lost {
                    return text;
                }
                let lost = "; the device is lost to this process: start it again, or use ";
                text.text(lost).setting(Field::Device, "cpu")
            }
            Self::Graph(what) => format!("graph: {what}").into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
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
    fn control_characters_anywhere() {
        const RAW: &str = "a\x1b[2J\nb\u{202e}";
        let (path, what) = (PathBuf::from(RAW), RAW.to_owned());
        let (stage, hint, device, call) = (what.clone(), what.clone(), what.clone(), what.clone());
        for error in [
            Error::Io { action: "open", path: path.clone(), source: std::io::Error::other(RAW) },
            Error::Malformed { path: path.clone(), what: what.clone() },
            Error::Changed { path: path.clone(), what: RAW.into() },
            Error::Tensors { path: path.clone(), model: what.clone(), problems: vec![what.clone()] },
            Error::Config { path, field: what.clone(), value: what.clone(), expected: RAW.into() },
            Error::Parameter { field: Field::Steps, what: RAW.into() },
            Error::Memory { stage: "load", need: 1, have: 0, hint: RAW.into() },
            Error::NotFinite { stage, hint },
            Error::Panicked(what.clone()),
            Error::Device { device: device.clone(), what: RAW.into() },
            Error::Fault { device, call, what: what.clone(), lost: true },
            Error::Graph(what),
        ] {
            let text = error.to_string();
            assert!(text.contains("\\u{1b}[2J\\u{a}b\\u{202e}"), "{text:?}");
            assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
        }
    }

    #[test]
    fn many_problems() {
        let problems = (0..20).map(|i| format!("t{i} missing")).collect();
        let text = Error::Tensors { path: "f".into(), model: "UNet".into(), problems }.to_string();
        assert!(text.starts_with("f: 20 tensor(s)"), "{text}");
        assert!(text.ends_with("and 12 more"), "{text}");
    }
}
