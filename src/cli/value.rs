//! The values of flags.

use super::failure::Failure;
use crate::Error;
pub use crate::names::any_of;
use lexopt::Parser;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

/// The value that follows a flag, not read yet.
///
/// Text that looks like a flag is a value too, so that `-s -1` and `-p --x` work.
pub struct Value<'p> {
    parser: &'p mut Parser,
    flag: &'static str,
}

impl<'p> Value<'p> {
    /// The value of `flag`, which was just read.
    pub fn new(parser: &'p mut Parser, flag: &'static str) -> Self {
        Self { parser, flag }
    }

    /// Wrong usage of the flag.
    pub fn wrong(&self, what: &str) -> Failure {
        Failure::usage(format!("{}: {what}", self.flag))
    }

    /// The value as the operating system gives it.
    pub fn raw(&mut self) -> Result<OsString, Failure> {
        self.parser.value().map_err(|_| self.wrong("a value is needed"))
    }

    /// A path.
    pub fn path(&mut self) -> Result<PathBuf, Failure> {
        Ok(self.raw()?.into())
    }

    /// Text.
    pub fn text(&mut self) -> Result<String, Failure> {
        let raw = self.raw()?;
        raw.into_string().map_err(|raw| self.wrong(&format!("`{}` is not valid UTF-8", raw.to_string_lossy())))
    }

    /// A value with a fixed set of names, as the library reads them; its error lists them.
    pub fn named<T: FromStr<Err = Error>>(&mut self) -> Result<T, Failure> {
        Ok(self.text()?.parse()?)
    }

    /// One of these names.
    pub fn choice<T: Copy>(&mut self, choices: &[(&str, T)]) -> Result<T, Failure> {
        let name = self.text()?;
        choices.iter().find(|choice| choice.0 == name).map(|choice| choice.1).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|choice| choice.0).collect();
            self.wrong(&format!("unknown value `{name}` (expected {})", any_of(&names)))
        })
    }

    /// Items with commas between them.
    pub fn list<T>(&mut self, read: impl Fn(&str) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
        self.text()?.split(',').map(|item| read(item.trim())).collect()
    }

    /// A finite number of either sign.
    pub fn signed(&mut self) -> Result<f32, Failure> {
        let text = self.text()?;
        match text.trim().parse::<f32>() {
            Ok(v) if v.is_finite() => Ok(v),
            Ok(_) => Err(self.wrong(&format!("must be a finite number, got `{text}`"))),
            Err(_) => Err(self.wrong(&format!("`{text}` is not a number"))),
        }
    }

    /// A finite number that is not negative.
    pub fn number(&mut self) -> Result<f32, Failure> {
        match self.signed()? {
            v if v >= 0.0 => Ok(v),
            v => Err(self.wrong(&format!("must be at least 0, got `{v}`"))),
        }
    }

    /// A number of 0 to 1, as exact as it is written.
    pub fn fraction(&mut self) -> Result<f64, Failure> {
        let text = self.text()?;
        match text.trim().parse::<f64>() {
            Ok(v) if (0.0..=1.0).contains(&v) => Ok(v),
            _ => Err(self.wrong(&format!("must be a number of 0 to 1, got `{text}`"))),
        }
    }

    /// Two numbers of 0 to 1, `A:B`.
    pub fn interval(&mut self) -> Result<(f64, f64), Failure> {
        let text = self.text()?;
        let part = |s: &str| s.trim().parse::<f64>().ok().filter(|v| (0.0..=1.0).contains(v));
        let parsed = text.split_once(':').and_then(|(a, b)| Some((part(a)?, part(b)?))).filter(|(a, b)| a <= b);
        let what = || format!("must be A:B, of 0 to 1, as in 0.2:0.8; got `{text}`");
        parsed.ok_or_else(|| self.wrong(&what()))
    }

    /// A whole number of `min` to `max`.
    pub fn count(&mut self, min: usize, max: usize) -> Result<usize, Failure> {
        let text = self.text()?;
        match text.trim().parse::<usize>() {
            Ok(n) if (min..=max).contains(&n) => Ok(n),
            _ => Err(self.wrong(&format!("must be a whole number of {min} to {max}, got `{text}`"))),
        }
    }

    /// A width and a height, `WxH`.
    pub fn size(&mut self, max: usize) -> Result<(usize, usize), Failure> {
        let text = self.text()?;
        let side = |s: &str| s.parse::<usize>().ok().filter(|n| (1..=max).contains(n));
        let parsed = text.split_once(['x', 'X']).and_then(|(w, h)| Some((side(w)?, side(h)?)));
        let what = || format!("must be WIDTHxHEIGHT, each of 1 to {max}, as in 1024x1024; got `{text}`");
        parsed.ok_or_else(|| self.wrong(&what()))
    }

    /// A place, `X,Y`.
    pub fn place(&mut self, max: usize) -> Result<(usize, usize), Failure> {
        let text = self.text()?;
        let side = |s: &str| s.trim().parse::<usize>().ok().filter(|n| *n <= max);
        let parsed = text.split_once(',').and_then(|(x, y)| Some((side(x)?, side(y)?)));
        parsed.ok_or_else(|| self.wrong(&format!("must be X,Y, each of 0 to {max}, as in 0,256; got `{text}`")))
    }

    /// A seed; `None` asks for a random one.
    pub fn seed(&mut self) -> Result<Option<u64>, Failure> {
        let text = self.text()?;
        if text.trim() == "-1" {
            return Ok(None);
        }
        let what = || format!("must be 0 to {}, or -1 for a random one; got `{text}`", u64::MAX);
        text.trim().parse().map(Some).map_err(|_| self.wrong(&what()))
    }
}
