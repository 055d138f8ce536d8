//! What all commands share in reading arguments, and how they fail.

use braid::Error;
use braid::error::escape;
use lexopt::{Arg, Parser};
use std::ffi::OsString;
use std::str::FromStr;

/// Why a command ends before its work is done.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage: status 2.
    Usage(String),
    /// What the library says: status 2 for a parameter, else 1.
    Library(Error),
    /// Stopped by this signal: status 128 + its number.
    Signal(i32),
    /// Everything has been said; this is the status.
    Told(u8),
}

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

    /// One line for standard error.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Usage(what) => Some(what.clone()),
            Self::Library(error) => Some(crate::flags::text(error)),
            Self::Signal(signal) => Some(format!("stopped by signal {signal}; no unfinished file was left")),
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

/// The arguments after the program's name.
pub fn parser() -> Parser {
    Parser::from_env()
}

/// What the parser itself objects to.
pub fn usage(error: lexopt::Error) -> Failure {
    Failure::usage(error.to_string())
}

/// An argument that the command of `braid` does not know.
pub fn unexpected(arg: Arg<'_>, command: &str) -> Failure {
    let help = if command.is_empty() { "braid --help".into() } else { format!("braid help {command}") };
    unexpected_of(arg, &help)
}

/// An argument that is not known; `help` is the command that says which are.
pub fn unexpected_of(arg: Arg<'_>, help: &str) -> Failure {
    let what = match arg {
        Arg::Short(c) => format!("option -{c}"),
        Arg::Long(name) => format!("option --{name}"),
        Arg::Value(value) => format!("argument `{}`", value.to_string_lossy()),
    };
    Failure::usage(format!("{what} is not known; see `{help}`"))
}

/// The value of the option just read. What looks like an option is a value too, so that `-s -1` and `-p --x` work.
pub fn value(parser: &mut Parser, flag: &str) -> Result<OsString, Failure> {
    parser.value().map_err(|_| Failure::usage(format!("{flag}: a value is needed")))
}

/// The same as text.
pub fn text(parser: &mut Parser, flag: &str) -> Result<String, Failure> {
    value(parser, flag)?
        .into_string()
        .map_err(|raw| Failure::usage(format!("{flag}: `{}` is not valid UTF-8", raw.to_string_lossy())))
}

/// A value with a fixed set of names, as the library reads them; its error names flag and choices.
pub fn named<T: FromStr<Err = Error>>(parser: &mut Parser, flag: &str) -> Result<T, Failure> {
    Ok(text(parser, flag)?.parse()?)
}

/// A finite number of either sign.
pub fn signed(parser: &mut Parser, flag: &str) -> Result<f32, Failure> {
    let text = text(parser, flag)?;
    match text.trim().parse::<f32>() {
        Ok(v) if v.is_finite() => Ok(v),
        Ok(_) => Err(Failure::usage(format!("{flag}: `{text}` given; a finite number is needed"))),
        Err(_) => Err(Failure::usage(format!("{flag}: `{text}` is not a number"))),
    }
}

/// A finite number that is not negative.
pub fn number(parser: &mut Parser, flag: &str) -> Result<f32, Failure> {
    match signed(parser, flag)? {
        v if v >= 0.0 => Ok(v),
        v => Err(Failure::usage(format!("{flag}: `{v}` given; a finite number of at least 0 is needed"))),
    }
}

/// A whole number of `min` to `max`.
pub fn count(parser: &mut Parser, flag: &str, min: usize, max: usize) -> Result<usize, Failure> {
    let text = text(parser, flag)?;
    match text.trim().parse::<usize>() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(Failure::usage(format!("{flag}: `{text}` given; a whole number of {min} to {max} is needed"))),
    }
}

/// A width and a height, `WxH`.
pub fn size(parser: &mut Parser, flag: &str, max: usize) -> Result<(usize, usize), Failure> {
    let text = text(parser, flag)?;
    let side = |s: &str| s.parse::<usize>().ok().filter(|n| (1..=max).contains(n));
    let parsed = text.split_once(['x', 'X']).and_then(|(w, h)| Some((side(w)?, side(h)?)));
    parsed.ok_or_else(|| {
        Failure::usage(format!("{flag}: `{text}` given; WIDTHxHEIGHT is needed, each of 1 to {max}, as in 1024x1024"))
    })
}

/// A seed; `None` asks for a random one.
pub fn seed(parser: &mut Parser, flag: &str) -> Result<Option<u64>, Failure> {
    let text = text(parser, flag)?;
    if text.trim() == "-1" {
        return Ok(None);
    }
    text.trim().parse().map(Some).map_err(|_| {
        Failure::usage(format!("{flag}: `{text}` given; 0 to {} is allowed, or -1 for a random one", u64::MAX))
    })
}
