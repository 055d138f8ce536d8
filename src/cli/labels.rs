//! Values of flags as the metadata of an image spells them.

use super::flag::{Generated, last};
use crate::schedulers::{SchedulerKind, SigmaSchedule};
use serde_json::{Value, json};
use std::path::Path;

/// A scheduler's name in AUTOMATIC1111's interface.
pub fn scheduler_label(scheduler: SchedulerKind, schedule: Option<SigmaSchedule>) -> String {
    match schedule.and_then(SigmaSchedule::label) {
        Some(schedule) => format!("{} {schedule}", scheduler.label()),
        None => scheduler.label().to_owned(),
    }
}

/// A file's name without its extension.
pub fn stem(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    // A comma would end the value.
    name.unwrap_or(last(path)).to_string_lossy().replace(',', " ")
}

/// The number after a name of which there may be several: none for the first.
pub fn number(i: usize) -> String {
    if i == 0 { String::new() } else { format!(" {}", i + 1) }
}

/// A path as JSON; its last name alone where folders have no place in the metadata.
pub fn path(path: &Path, generated: &Generated) -> Value {
    generated.metadata.path(path).into()
}

/// Two numbers as JSON, or null.
pub fn size(size: Option<(usize, usize)>) -> Value {
    size.map(|(first, second)| json!([first, second])).into()
}

/// A value by its name, or null.
pub fn text(value: Option<impl ToString>) -> Value {
    value.map(|value| value.to_string()).into()
}
