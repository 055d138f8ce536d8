//! Values that have a name on the command line.

use crate::error::{Error, Field, Result};

/// Finds the value of a name.
///
/// # Errors
/// [`Error::Parameter`] lists the names of the table.
pub(crate) fn value_of<T: Copy>(table: &[(&str, T)], field: Field, name: &str) -> Result<T> {
    table.iter().find(|entry| entry.0 == name).map(|entry| entry.1).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|entry| entry.0).collect();
        Error::parameter(field, format!("unknown value `{name}` (expected {})", any_of(&names)))
    })
}

/// Finds the name of a value.
pub(crate) fn name_of<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|entry| entry.1 == *value).map_or("?", |entry| entry.0)
}

/// Joins names to `a`, `a or b`, `a, b or c`.
pub fn any_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// A number of things with their noun: `1 mask`, `2 masks`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The length of [`any_of`]'s text.
pub(crate) const fn any_of_len(names: &[&str]) -> usize {
    let (mut len, mut i) = (0, 0);
    while i < names.len() {
        len += separator(i, names.len()).len() + names[i].len();
        i += 1;
    }
    len
}

/// Joins names as [`any_of`] does, at compile time; `N` is [`any_of_len`].
pub(crate) const fn any_of_bytes<const N: usize>(names: &[&str]) -> [u8; N] {
    let (mut out, mut at, mut i) = ([0; N], 0, 0);
    while i < names.len() {
        let pieces = [separator(i, names.len()).as_bytes(), names[i].as_bytes()];
        let mut piece = 0;
        while piece < pieces.len() {
            let mut byte = 0;
            while byte < pieces[piece].len() {
                out[at] = pieces[piece][byte];
                (at, byte) = (at + 1, byte + 1);
            }
            piece += 1;
        }
        i += 1;
    }
    out
}

/// The words before the name `i` of `n`.
const fn separator(i: usize, n: usize) -> &'static str {
    if i == 0 {
        ""
    } else if i + 1 == n {
        " or "
    } else {
        ", "
    }
}

/// Implements `FromStr` and `Display` by a table of names.
macro_rules! named_values {
    ($type:ty, $table:expr, $field:expr) => {
        impl std::str::FromStr for $type {
            type Err = crate::error::Error;

            /// Finds the value of a name; [`crate::error::Error::Parameter`] lists the names.
            fn from_str(name: &str) -> crate::error::Result<Self> {
                $crate::names::value_of($table, $field, name)
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($crate::names::name_of($table, self))
            }
        }
    };
}
pub(crate) use named_values;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives() {
        assert_eq!(any_of(&["a"]), "a");
        assert_eq!(any_of(&["a", "b", "c"]), "a, b or c");
        const NAMES: &[&str] = &["a", "bc", "d"];
        const JOINED: [u8; any_of_len(NAMES)] = any_of_bytes(NAMES);
        assert_eq!(JOINED, any_of(NAMES).as_bytes());
    }

    #[test]
    fn numbers_with_nouns() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "mask")), ["0 masks", "1 mask", "2 masks"]);
    }
}
