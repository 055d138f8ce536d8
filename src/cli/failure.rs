//! Failures of a command.

use crate::error::{Error, FieldNames, escape};

/// The reason why a command ends before its work is done.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage: status 2.
    Usage(String),
    /// An error of the library: status 2 for a parameter, else 1.
    Library(Error),
    /// Stopped by this signal: status 128 + its number.
    Signal(i32),
    /// The error has been printed already; exits with this status.
    Told(u8),
}

/// The result of a command.
pub type Outcome = Result<(), Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

impl Failure {
    /// Wrong usage; the text is made safe to print.
    pub fn usage(what: impl AsRef<str>) -> Self {
        Self::Usage(escape(what.as_ref()))
    }

    /// One line for standard error, with fields called as `names` says.
    pub fn text(&self, names: &dyn FieldNames) -> Option<String> {
        match self {
            Self::Usage(what) => Some(what.clone()),
            Self::Library(error) => Some(error.message().describe(names)),
            Self::Signal(signal) => Some(stopped(*signal)),
            Self::Told(_) => None,
        }
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Library(Error::Parameter { .. }) => 2,
            Self::Library(_) => 1,
            Self::Signal(signal) => 128u8.saturating_add(u8::try_from(*signal).unwrap_or(1)),
            Self::Told(status) => *status,
        }
    }
}

/// The line about a signal.
pub fn stopped(signal: i32) -> String {
    format!("stopped by signal {signal}; no unfinished file was left")
}
