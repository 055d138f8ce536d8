//! Work that Python's signals interrupt.

use crate::errors::exception;
use braid::{CancelToken, Error, Pipeline};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// The time between two looks for signals.
pub const LOOK: Duration = Duration::from_millis(50);

/// Runs `work` on a thread of its own, without the interpreter's lock. A signal (Ctrl-C) sets `cancel` and becomes the exception that
/// its handler raises, once the work has ended.
pub fn interruptible<T: Send>(
    py: Python<'_>,
    cancel: &CancelToken,
    work: impl FnOnce() -> braid::Result<T> + Send,
) -> PyResult<T> {
    let (result, interrupt) = py.detach(|| {
        std::thread::scope(|scope| {
            let (done, ended) = channel();
            let worker = scope.spawn(move || {
                let result = cancel.scope(work);
                // The other end waits for it; where it does not, nobody needs to know.
                let _ = done.send(());
                result
            });
            let mut interrupt = None;
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if interrupt.is_none()
                    && let Err(raised) = Python::attach(|py| py.check_signals())
                {
                    cancel.cancel();
                    interrupt = Some(raised);
                }
            }
            (worker.join(), interrupt)
        })
    });
    match (interrupt, result) {
        (Some(raised), _) => Err(raised),
        (None, Ok(result)) => result.map_err(|error| exception(py, &error)),
        (None, Err(_)) => Err(PyRuntimeError::new_err("braid panicked; this is a bug in it")),
    }
}

/// Refuses a call from a callback of the pipeline: its work would wait for the callback, on a thread of its own.
pub fn demand_outside(py: Python<'_>, pipeline: &Pipeline) -> PyResult<()> {
    if pipeline.is_in_callback() { Err(exception(py, &Error::InCallback)) } else { Ok(()) }
}
