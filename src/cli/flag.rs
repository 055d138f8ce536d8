//! The definition of a flag: its names, its help, its effect and its place in the metadata.

use super::failure::Failure;
use super::value::Value;
use crate::error::Field;
use crate::schedulers::SchedulerKind;
use lexopt::{Arg, Parser};
use serde_json::Value as Json;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path};

/// Returns a flag's contribution to the metadata of an image.
pub type Metadata<T, V> = fn(&T, &Generated) -> V;

/// A flag of a command that reads its arguments into a `T`.
pub struct Flag<T: 'static> {
    /// The long name, with its dashes.
    pub long: &'static str,
    /// The short name.
    pub short: Option<char>,
    /// The name of its value in the help; a switch has none.
    pub value: Option<&'static str>,
    /// Its effect, for the help; wrapped when it is printed.
    pub help: &'static str,
    /// The fields of the library that it sets; errors about them name the flag.
    pub fields: &'static [Field],
    /// Reads the value and stores it.
    pub set: fn(&mut T, &mut Value<'_>) -> Result<(), Failure>,
    /// The key of the PNG text chunk `braid`, and the value there.
    pub json: Option<(&'static str, Metadata<T, Json>)>,
    /// The position among the settings of the PNG text chunk `parameters`, and the entries there.
    pub parameters: Option<(u8, Metadata<T, Vec<String>>)>,
}

/// Facts that are known once an image has been generated.
pub struct Generated {
    /// The scheduler that was used.
    pub scheduler: SchedulerKind,
    /// The image's number among those of its request, from 0.
    pub number: usize,
    /// The image's own seed.
    pub seed: u64,
    /// Whether its VAE ran in f32 after all ([`crate::pipeline::Output::upcast_vae`]).
    pub upcast_vae: bool,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// The extent of the metadata.
    pub metadata: MetadataExtent,
}

/// The last name of a path; of one that ends in `..` these dots.
pub fn last(path: &Path) -> &OsStr {
    path.components().next_back().map_or(OsStr::new(""), Component::as_os_str)
}

/// The extent of the metadata in a PNG.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetadataExtent {
    /// Everything, so that the image can be drawn again.
    #[default]
    Full,
    /// No folders: files by their last names, and not the command.
    NoPaths,
    /// Nothing.
    None,
}

impl MetadataExtent {
    /// The extents by name.
    pub const ALL: &[(&'static str, Self)] = &[("full", Self::Full), ("no-paths", Self::NoPaths), ("none", Self::None)];

    /// A path as the metadata have it.
    pub fn path(self, path: &Path) -> String {
        match self {
            Self::Full => path.to_string_lossy().into_owned(),
            _ => last(path).to_string_lossy().into_owned(),
        }
    }
}

impl<T> Flag<T> {
    /// The defaults of a definition, which overrides what differs.
    pub const NEW: Self = Self {
        long: "",
        short: None,
        value: None,
        help: "",
        fields: &[],
        set: |_, _| Ok(()),
        json: None,
        parameters: None,
    };

    /// Whether `name`, with its dashes, is one of its names.
    fn is(&self, name: &str) -> bool {
        self.long == name || self.short.is_some_and(|short| name.strip_prefix('-') == Some(short.to_string().as_str()))
    }

    /// Its names and its value, as the help shows them.
    fn usage(&self) -> String {
        let short = self.short.map_or("      ".to_owned(), |short| format!("  -{short}, "));
        let value = self.value.map_or(String::new(), |value| format!(" {value}"));
        format!("{short}{}{value}", self.long)
    }
}

/// Flags under a title of the help.
pub struct Group<T: 'static> {
    /// The title; none above the only group of a command.
    pub title: Option<&'static str>,
    /// The flags, in the order of the help.
    pub flags: &'static [Flag<T>],
    /// A remark below them.
    pub note: Option<&'static str>,
}

/// An argument.
pub enum Argument {
    /// `-h` or `--help`.
    Help,
    /// A flag, with its dashes.
    Flag(String),
    /// Anything else.
    Value(OsString),
}

impl Argument {
    /// The next one; none after the last.
    pub fn next(parser: &mut Parser) -> Result<Option<Self>, Failure> {
        Ok(match parser.next().map_err(|error| Failure::usage(error.to_string()))? {
            None => None,
            Some(Arg::Short('h') | Arg::Long("help")) => Some(Self::Help),
            Some(Arg::Short(c)) => Some(Self::Flag(format!("-{c}"))),
            Some(Arg::Long(name)) => Some(Self::Flag(format!("--{name}"))),
            Some(Arg::Value(value)) => Some(Self::Value(value)),
        })
    }

    /// The error for one that a command does not take; `help` is the command that lists those it does.
    pub fn unknown(&self, help: &str) -> Failure {
        let what = match self {
            Self::Help => "option --help".to_owned(),
            Self::Flag(name) => format!("option {name}"),
            Self::Value(value) => format!("argument `{}`", value.to_string_lossy()),
        };
        Failure::usage(format!("{what} is not known; see `{help}`"))
    }
}

/// Applies a flag if it is one of these.
pub fn take<'f, T: 'static>(
    flags: impl IntoIterator<Item = &'f Flag<T>>,
    argument: &Argument,
    options: &mut T,
    parser: &mut Parser,
) -> Result<bool, Failure> {
    let Argument::Flag(name) = argument else { return Ok(false) };
    let Some(flag) = flags.into_iter().find(|flag| flag.is(name)) else { return Ok(false) };
    (flag.set)(options, &mut Value::new(parser, flag.long))?;
    Ok(true)
}

/// Reads all arguments of `braid COMMAND`; `false` where help was asked for. `operand` takes what is no flag, or refuses it.
pub fn parse<T>(
    parser: &mut Parser,
    groups: &'static [Group<T>],
    command: &str,
    options: &mut T,
    mut operand: impl FnMut(&mut T, OsString) -> Result<(), OsString>,
) -> Result<bool, Failure> {
    let help = format!("braid help {command}");
    while let Some(argument) = Argument::next(parser)? {
        let flags = groups.iter().flat_map(|group| group.flags);
        match argument {
            Argument::Help => return Ok(false),
            Argument::Value(value) => {
                operand(options, value).map_err(|value| Argument::Value(value).unknown(&help))?;
            }
            flag if take(flags, &flag, options, parser)? => {}
            flag => return Err(flag.unknown(&help)),
        }
    }
    Ok(true)
}

/// The widest line of a help text.
const WIDTH: usize = 92;

/// The help of all flags, group by group.
pub fn help<T>(groups: &[Group<T>]) -> String {
    let mut out = String::new();
    for (i, group) in groups.iter().enumerate() {
        out.push_str(if i > 0 { "\n" } else { "" });
        out.extend(group.title.map(|title| format!("{title}:\n")));
        out.push_str(&list(group.flags));
        out.extend(group.note.map(|note| format!("{}\n", wrap(note, 2, "  "))));
    }
    out
}

/// The help of some flags.
pub fn list<'f, T: 'static>(flags: impl IntoIterator<Item = &'f Flag<T>>) -> String {
    const COLUMN: usize = 32;
    let line = |flag: &Flag<T>| {
        let usage = flag.usage();
        let text = wrap(flag.help, COLUMN, "");
        match usage.len() < COLUMN {
            true => format!("{usage:COLUMN$}{text}\n"),
            false => format!("{usage}\n{:COLUMN$}{text}\n", ""),
        }
    };
    // A flag without help is the command's own affair.
    flags.into_iter().filter(|flag| !flag.help.is_empty()).map(line).collect()
}

/// Text in lines that begin at a column, the first one after `first`.
pub fn wrap(text: &str, column: usize, first: &str) -> String {
    let mut out = first.to_owned();
    let mut at = column;
    for word in text.split(' ') {
        if at > column && at + 1 + word.len() > WIDTH {
            out.push_str(&format!("\n{:column$}", ""));
            at = column;
        }
        if at > column {
            out.push(' ');
            at += 1;
        }
        out.push_str(word);
        at += word.len();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_wrapped() {
        const FLAGS: &[Flag<()>] = &[
            Flag { long: "--long-name", short: Some('l'), value: Some("N"), help: "what it does", ..Flag::NEW },
            Flag { long: "--a-name-that-is-longer-than-the-column", help: "b", ..Flag::NEW },
        ];
        let column = " ".repeat(32);
        let text = format!("  -l, --long-name N             what it does\n      {}\n{column}b\n", FLAGS[1].long);
        assert_eq!(list(FLAGS), text);
        let words = ["word"; 30].join(" ");
        assert!(wrap(&words, 32, "").lines().all(|line| line.len() <= 60 + 32));
    }
}
