//! The library's warnings, which it tells by `tracing`.

use crate::edge::Failure;
use crate::status::{BRAID_OK, braid_status};
use braid::error::escape;
use std::ffi::{CString, c_char, c_void};
use std::fmt::{Debug, Write};
use std::sync::{OnceLock, PoisonError, RwLock};
use tracing::field::{Field, Visit};
use tracing::{Event, Id, Level, Metadata, Subscriber, span};

/// See braid.h.
pub type braid_warning_fn = Option<unsafe extern "C" fn(*const c_char, *mut c_void)>;

/// The process's function and its data.
struct Listener(braid_warning_fn, *mut c_void);

// SAFETY: braid.h says that the function is called from any thread.
unsafe impl Send for Listener {}
// SAFETY: the same.
unsafe impl Sync for Listener {}

static LISTENER: RwLock<Listener> = RwLock::new(Listener(None, std::ptr::null_mut()));

/// Hands warnings to the process's function.
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
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                let _ = match field.name() {
                    "message" => write!(self.0, "{value:?}"),
                    name => write!(self.0, " {name}={value:?}"),
                };
            }
        }
        let listener = LISTENER.read().unwrap_or_else(PoisonError::into_inner);
        let Some(function) = listener.0 else { return };
        let mut text = Text(String::new());
        event.record(&mut text);
        // Escaped, so that it holds no NUL.
        let text = CString::new(escape(&text.0)).unwrap_or_default();
        // SAFETY: function and data are as braid.h asks for.
        unsafe { function(text.as_ptr(), listener.1) };
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

export! {
    fn braid_set_warning_callback(on_warning: braid_warning_fn, user_data: *mut c_void) -> braid_status {
        static INSTALLED: OnceLock<bool> = OnceLock::new();
        if !INSTALLED.get_or_init(|| tracing::subscriber::set_global_default(Warnings).is_ok()) {
            return Err(Failure::argument("braid_set_warning_callback: the process has a subscriber of tracing already"));
        }
        *LISTENER.write().unwrap_or_else(PoisonError::into_inner) = Listener(on_warning, user_data);
        Ok(BRAID_OK)
    }
}
