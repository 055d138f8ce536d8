//! Statuses: one for each variant of the library's error, and those of the interface itself.

use braid::Error;
use std::ffi::c_char;

/// A status as C has it.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct braid_status(pub i32);

macro_rules! statuses {
    ($($name:ident = $number:literal;)*) => {
        $(#[doc = concat!("See `", stringify!($name), "` in braid.h.")] pub const $name: braid_status = braid_status($number);)*

        /// All statuses by name.
        pub const STATUSES: &[(&str, i32)] = &[$((stringify!($name), $number)),*];

        export! {
            fn braid_status_name(status: braid_status) -> *const c_char {
                Ok(match status.0 {
                    $($number => concat!(stringify!($name), "\0").as_ptr().cast(),)*
                    _ => c"unknown status".as_ptr(),
                })
            }
        }
    };
}

statuses! {
    BRAID_OK = 0;
    BRAID_ERROR_IO = 1;
    BRAID_ERROR_MALFORMED = 2;
    BRAID_ERROR_MISMATCH = 3;
    BRAID_ERROR_TENSORS = 4;
    BRAID_ERROR_CONFIG = 5;
    BRAID_ERROR_PARAMETER = 6;
    BRAID_ERROR_MEMORY = 7;
    BRAID_ERROR_NOT_FINITE = 8;
    BRAID_ERROR_CANCELLED = 9;
    BRAID_ERROR_BUSY = 10;
    BRAID_ERROR_LATE = 11;
    BRAID_ERROR_STOPPED = 12;
    BRAID_ERROR_PANICKED = 13;
    BRAID_ERROR_DEVICE = 14;
    BRAID_ERROR_FAULT = 15;
    BRAID_ERROR_GRAPH = 16;
    BRAID_ERROR_INVALID_ARGUMENT = 17;
    BRAID_ERROR_PANIC = 18;
    BRAID_ERROR_TIMEOUT = 19;
    BRAID_ERROR_OTHER = 20;
    BRAID_ERROR_FRAME = 21;
    BRAID_ERROR_CHANGED = 22;
    BRAID_ERROR_IN_CALLBACK = 23;
}

/// The status of an error of the library.
pub(crate) fn of_error(error: &Error) -> braid_status {
    match error {
        Error::Io { .. } => BRAID_ERROR_IO,
        Error::Malformed { .. } => BRAID_ERROR_MALFORMED,
        Error::Mismatch { .. } => BRAID_ERROR_MISMATCH,
        Error::Tensors { .. } => BRAID_ERROR_TENSORS,
        Error::Config { .. } => BRAID_ERROR_CONFIG,
        Error::Parameter { .. } => BRAID_ERROR_PARAMETER,
        Error::Memory { .. } => BRAID_ERROR_MEMORY,
        Error::NotFinite { .. } => BRAID_ERROR_NOT_FINITE,
        Error::Cancelled => BRAID_ERROR_CANCELLED,
        Error::Busy { .. } => BRAID_ERROR_BUSY,
        Error::Late => BRAID_ERROR_LATE,
        Error::Stopped => BRAID_ERROR_STOPPED,
        Error::Panicked(_) => BRAID_ERROR_PANICKED,
        Error::Device { .. } => BRAID_ERROR_DEVICE,
        Error::Fault { .. } => BRAID_ERROR_FAULT,
        Error::Graph(_) => BRAID_ERROR_GRAPH,
        Error::Frame { .. } => BRAID_ERROR_FRAME,
        Error::Changed { .. } => BRAID_ERROR_CHANGED,
        Error::InCallback => BRAID_ERROR_IN_CALLBACK,
        _ => BRAID_ERROR_OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every variant of the library's error has a status of its own name, so that a new one is not forgotten.
    #[test]
    fn one_for_each_error() {
        let source = include_str!("../../src/error.rs");
        let body = source.split_once("pub enum Error {").and_then(|(_, rest)| rest.split_once("\n}\n")).unwrap().0;
        let variants: Vec<&str> = body
            .lines()
            .filter_map(|line| line.strip_prefix("    "))
            .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
            .map(|line| line.split(|c: char| !c.is_alphanumeric()).next().unwrap())
            .collect();
        assert!(variants.len() > 16, "{variants:?}");
        for variant in variants {
            let mut name = "BRAID_ERROR".to_owned();
            for c in variant.chars() {
                name.push_str(if c.is_uppercase() { "_" } else { "" });
                name.extend(c.to_uppercase());
            }
            assert!(STATUSES.iter().any(|(known, _)| *known == name), "{name}");
        }
        assert_eq!(of_error(&Error::Busy { waiting: 1 }), BRAID_ERROR_BUSY);
        assert_eq!(of_error(&Error::NotFinite { stage: String::new(), hint: String::new() }), BRAID_ERROR_NOT_FINITE);
    }
}
