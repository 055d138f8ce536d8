//! Faults that a test asks for by `MOCK_FAULT`, a list with commas between:
//!
//!     cuEventRecord=98765     each call of the function returns that code
//!     cuMemAlloc_v2@17=2      the 17th call alone
//!     cuMemAlloc_v2@17+=2     the 17th and all later ones
//!     cuLaunchKernelEx@3!700  the third call returns the code, and the device is lost by it: so does every later call
//!     kernel@3!700            the device is lost by the third kernel that it runs, which shows at some later call
//!     call@3=1                the third call of whatever function, but for those of which [`is_counted`] says no
//!     call@1+=0               no fault: each call is a line `NAME is called` in the log
//!
//! Calls are counted from when the variable is set to another value. Each fault is a line `NAME fails` in the log.

use super::settings::log;
use std::collections::BTreeMap;
use std::env::var;
use std::ffi::c_int;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

/// The name under which the kernels that the device runs are counted.
pub const KERNEL: &str = "kernel";

/// The name under which captures that end are counted: where that fails, the capture is over all the same.
pub const CAPTURE: &str = "capture";

/// The name under which the calls of all functions are counted.
const CALL: &str = "call";

/// A fault of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The code that the call returns.
    pub code: c_int,
    /// Whether the device is lost by it.
    pub loses: bool,
}

/// A fault, and the calls that it is for, from 1.
type Planned = (String, RangeInclusive<u64>, Fault);

struct Table {
    text: String,
    planned: Vec<Planned>,
    calls: BTreeMap<String, u64>,
}

static TABLE: Mutex<Table> = Mutex::new(Table { text: String::new(), planned: Vec::new(), calls: BTreeMap::new() });

/// One entry of the list.
fn parse(entry: &str) -> Option<Planned> {
    let (which, rest) = entry.split_at(entry.find(['=', '!'])?);
    let fault = Fault { code: rest[1..].parse().ok()?, loses: rest.starts_with('!') };
    let (name, calls) = match which.split_once('@') {
        None => (which, 1..=u64::MAX),
        Some((name, number)) => match number.strip_suffix('+') {
            Some(first) => (name, first.parse().ok()?..=u64::MAX),
            None => (name, number.parse().map(|number| number..=number).ok()?),
        },
    };
    Some((name.to_owned(), calls, fault))
}

/// Whether a function's calls are counted with those of all others: not where they give something back, as nobody does that again, nor
/// where they describe another call's fault, make a context current, as each call does first, or are the mock's own.
fn is_counted(name: &str) -> bool {
    let apart =
        ["Free", "Destroy", "Release", "Unload", "GetError", "EndCapture", "CtxSetCurrent", "mockCapturing", KERNEL];
    !apart.iter().any(|part| name.contains(part))
}

/// Counts a call, and gives the fault that it has.
pub fn of_call(name: &str) -> Option<Fault> {
    let text = var("MOCK_FAULT").unwrap_or_default();
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    if text != table.text {
        let entries = text.split(',').filter(|entry| !entry.is_empty());
        table.planned = entries.map(|entry| parse(entry).unwrap_or_else(|| panic!("MOCK_FAULT: {entry}"))).collect();
        table.calls.clear();
        table.text = text;
    }
    if table.planned.is_empty() {
        return None;
    }
    let mut count = |name: &str| {
        let calls = table.calls.entry(name.to_owned()).or_default();
        *calls += 1;
        *calls
    };
    let (number, of_all) = (count(name), is_counted(name).then(|| count(CALL)));
    let hit = |(of, calls, _): &&Planned| match of.as_str() {
        CALL => of_all.is_some_and(|number| calls.contains(&number)),
        of => of == name && calls.contains(&number),
    };
    let (.., fault) = table.planned.iter().find(hit)?;
    log(&format!("{name} {}", if fault.code == 0 { "is called" } else { "fails" }));
    Some(*fault).filter(|fault| fault.code != 0)
}
