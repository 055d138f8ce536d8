//! Requests in an engine.

use crate::callbacks::{Functions, demand_outside, is_inside};
use crate::edge::{Failure, LastError, Outcome};
use crate::live::{braid_prepared_prompts, scales};
use crate::output::braid_output;
use crate::pointers::{borrow, free, give, store};
use crate::status::{BRAID_OK, braid_status};
use crate::structs::braid_callbacks;
use braid::{SubmitOptions, Ticket, TicketStatus};
use std::ffi::c_char;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// See `BRAID_TICKET_WAITING` in braid.h.
pub const BRAID_TICKET_WAITING: i32 = 0;
/// See `BRAID_TICKET_RUNNING` in braid.h.
pub const BRAID_TICKET_RUNNING: i32 = 1;
/// See `BRAID_TICKET_DONE` in braid.h.
pub const BRAID_TICKET_DONE: i32 = 2;

/// The callbacks of a request in an engine, which are called no more once the ticket is freed.
pub(crate) struct Gate {
    functions: Functions,
    /// Held during a call.
    calling: Mutex<()>,
    closed: AtomicBool,
    /// Whether a callback has stopped the request; the ticket may not be there yet.
    stopped: AtomicBool,
    ticket: OnceLock<Weak<Ticket>>,
}

impl Gate {
    /// Reads callbacks; none where the pointer is null.
    ///
    /// # Safety
    /// `given` is null or as braid.h asks for.
    pub(crate) unsafe fn read(given: *const braid_callbacks) -> Outcome<Option<Arc<Self>>> {
        // SAFETY: as the caller promises.
        let Some(functions) = (unsafe { Functions::read(given) })? else { return Ok(None) };
        if let Some((field, instead)) = functions.not_for_engines() {
            return Err(Failure::argument(format!("callbacks.{field}: given for a request in an engine; {instead}")));
        }
        let (calling, ticket) = (Mutex::default(), OnceLock::new());
        let [closed, stopped] = [false, false].map(AtomicBool::new);
        Ok(Some(Arc::new(Self { functions, calling, closed, stopped, ticket })))
    }

    /// Adds the callbacks to the settings of the request.
    pub(crate) fn add_to(self: &Arc<Self>, mut options: SubmitOptions) -> SubmitOptions {
        if self.functions.has_progress() {
            let gate = self.clone();
            options = options.with_progress(move |progress| gate.call(|functions| functions.progress(progress)));
        }
        if let Some(every) = self.functions.preview_every() {
            let gate = self.clone();
            options = options.with_preview(every, move |preview| gate.call(|functions| functions.preview(&preview)));
        }
        if self.functions.has_image() {
            let gate = self.clone();
            options = options.with_image(move |finished| gate.call(|functions| functions.image(&finished)));
        }
        options
    }

    fn call(&self, call: impl FnOnce(&Functions) -> bool) {
        let calling = self.calling.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        let stops = call(&self.functions);
        drop(calling);
        if stops {
            self.stopped.store(true, Ordering::SeqCst);
            self.cancel_if_stopped();
        }
    }

    fn cancel_if_stopped(&self) {
        if self.stopped.load(Ordering::SeqCst)
            && let Some(ticket) = self.ticket.get().and_then(Weak::upgrade)
        {
            ticket.cancel();
        }
    }

    /// Ends the calls, and waits for one under way on another thread.
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if !is_inside() {
            drop(self.calling.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// A request in an engine.
pub struct braid_ticket {
    ticket: Arc<Ticket>,
    gate: Option<Arc<Gate>>,
    taken: AtomicBool,
    error: LastError,
}

impl braid_ticket {
    pub(crate) fn new(ticket: Ticket, gate: Option<Arc<Gate>>) -> Self {
        let ticket = Arc::new(ticket);
        if let Some(gate) = &gate {
            let _ = gate.ticket.set(Arc::downgrade(&ticket));
            // A callback may have come before.
            gate.cancel_if_stopped();
        }
        Self { ticket, gate, taken: AtomicBool::new(false), error: LastError::default() }
    }

    fn wait(&self, timeout_ms: i64) -> Outcome<braid_output> {
        let timeout = u64::try_from(timeout_ms).map_or(Duration::MAX, Duration::from_millis);
        match self.ticket.wait_for(timeout) {
            Some(result) => {
                self.taken.store(true, Ordering::SeqCst);
                Ok(braid_output(result?))
            }
            // Without a limit there is a result, which another thread has taken.
            None if timeout_ms < 0 || self.taken.load(Ordering::SeqCst) => {
                Err(Failure::argument("ticket: its result was taken before"))
            }
            None => Err(Failure::Timeout),
        }
    }
}

impl Drop for braid_ticket {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.close();
        }
        self.ticket.cancel();
    }
}

export! {
    fn braid_ticket_wait(ticket: *const braid_ticket, timeout_ms: i64, output: *mut *mut braid_output) -> braid_status {
        give(output, "output", || {
            let ticket = borrow(ticket, "ticket")?;
            ticket.error.note(|| {
                demand_outside("braid_ticket_wait")?;
                ticket.wait(timeout_ms)
            })
        })
    }

    fn braid_ticket_cancel(ticket: *const braid_ticket) -> braid_status {
        borrow(ticket, "ticket")?.ticket.cancel();
        Ok(BRAID_OK)
    }

    fn braid_ticket_state(ticket: *const braid_ticket, state: *mut i32, ahead: *mut usize) -> braid_status {
        let status = borrow(ticket, "ticket")?.ticket.status();
        let (number, others) = match status {
            TicketStatus::Waiting { ahead } => (BRAID_TICKET_WAITING, ahead),
            TicketStatus::Done => (BRAID_TICKET_DONE, 0),
            _ => (BRAID_TICKET_RUNNING, 0),
        };
        if !ahead.is_null() {
            store(ahead, others, "ahead")?;
        }
        store(state, number, "state")
    }

    fn braid_ticket_set_scales(ticket: *const braid_ticket, adapter: usize, scale: f32, blocks: *const c_char) -> braid_status {
        let ticket = borrow(ticket, "ticket")?;
        ticket.error.note(|| {
            ticket.ticket.set_scales(adapter, scales(scale, blocks)?)?;
            Ok(BRAID_OK)
        })
    }

    fn braid_ticket_set_prompts(ticket: *const braid_ticket, prompts: *const braid_prepared_prompts) -> braid_status {
        borrow(ticket, "ticket")?.ticket.set_prompts(&borrow(prompts, "prompts")?.0);
        Ok(BRAID_OK)
    }

    fn braid_ticket_last_error(ticket: *const braid_ticket, buffer: *mut c_char, size: usize) -> usize {
        borrow(ticket, "ticket")?.error.copy(buffer, size)
    }

    fn braid_ticket_free(ticket: *mut braid_ticket) {
        free(ticket);
        Ok(())
    }
}
