//! Standard output and standard error: whole lines, no control characters, no panic when they are closed.

use super::failure::Failure;
use crate::error::escape;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::field::{Field, Visit};
use tracing::{Event, Id, Level, Metadata, Subscriber, span};

/// Whether a progress line stands on the terminal and must be wiped first.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// Whether standard error is a terminal.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Shows or replaces the progress line.
pub fn status(text: &str) {
    SHOWN.store(true, Ordering::Relaxed);
    let mut err = io::stderr().lock();
    let _ = write!(err, "\r{text}\x1b[K").and_then(|()| err.flush());
}

/// Wipes the progress line.
pub fn wipe() {
    if SHOWN.swap(false, Ordering::Relaxed) {
        let mut err = io::stderr().lock();
        let _ = write!(err, "\r\x1b[K").and_then(|()| err.flush());
    }
}

/// One line on standard error, lost where that is closed.
pub fn line(prefix: &str, text: &str) {
    wipe();
    let line = format!("{prefix}{}\n", text.replace(['\n', '\r'], " "));
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Text on standard output. A reader that has gone away is no error.
pub fn print(text: &str) -> Result<(), Failure> {
    wipe();
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(crate::Error::Io { action: "write", path: "standard output".into(), source: e }.into())
        }
        _ => Ok(()),
    }
}

/// A value as one line of JSON in which no control character is left raw.
pub fn json(value: &impl serde::Serialize) -> String {
    let mut out = String::new();
    for c in serde_json::to_string(value).unwrap_or_default().chars() {
        // serde_json leaves those above 0x7e as they are; all of these are in the basic plane.
        if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.push_str(&format!("\\u{:04x}", c as u32));
        } else {
            out.push(c);
        }
    }
    out.push('\n');
    out
}

/// Warnings of the library go to standard error, and a panic becomes one line.
pub fn install() {
    let _ = tracing::subscriber::set_global_default(Warnings);
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let what =
            payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied());
        let what = what.unwrap_or("no message");
        let place = panic.location().map_or(String::new(), |l| format!(" at {}:{}", l.file(), l.line()));
        line("braid: ", &format!("defect in braid{place}: {}; please report it with the command line", escape(what)));
    }));
}

/// Prints warnings and errors, one line each.
struct Warnings;

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.target().starts_with("braid")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Message(String);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                } else {
                    self.0.push_str(&format!(" {}={value:?}", field.name()));
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        line("warning: ", &escape(&message.0));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
