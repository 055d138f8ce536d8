//! A submitted request, as its owner sees it.

use super::state::{Phase, TicketState};
use super::worker::Shared;
use crate::error::{Error, Result};
use crate::pipeline::{Output, PreparedPrompts, Progress, Scales};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// The state of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TicketStatus {
    /// In the queue, with so many requests that would begin before it now.
    Waiting {
        /// Their number.
        ahead: usize,
    },
    /// Being drawn; with what was last reported.
    Running {
        /// The last report; none before the first.
        progress: Option<Progress>,
    },
    /// Its result is there, or was taken.
    Done,
}

/// A submitted request. Dropping it cancels the request, as nobody could take its result.
pub struct Ticket {
    pub(super) state: Arc<TicketState>,
    pub(super) shared: Arc<Shared>,
}

impl Ticket {
    /// Waits for the result.
    ///
    /// # Errors
    /// Those of [`crate::Pipeline::generate_with`]; [`Error::Late`] where the request had not begun by its deadline; [`Error::Panicked`]
    /// where one of its callbacks, or the engine's work on it, panicked; [`Error::Stopped`] where the engine was dropped;
    /// [`Error::InCallback`] in a callback of a request of the engine, which would wait for itself: the request is cancelled with its ticket.
    pub fn wait(mut self) -> Result<Output> {
        loop {
            match self.wait_timeout(Duration::MAX) {
                Ok(result) => return result,
                Err(ticket) => self = ticket,
            }
        }
    }

    /// Waits for the result so long at most. In a callback of a request of the engine, which would hold it up, only a time of 0 is allowed.
    ///
    /// # Errors
    /// The ticket, where the result is not there by then.
    pub fn wait_timeout(self, timeout: Duration) -> std::result::Result<Result<Output>, Self> {
        self.wait_for(timeout).ok_or(self)
    }

    /// Waits for the result so long at most and takes it, while other threads may use the ticket, to cancel it for one. `None` where the
    /// result is not there by then, or was taken before; [`Error::InCallback`] as in [`Ticket::wait`], but that the ticket stays.
    pub fn wait_for(&self, timeout: Duration) -> Option<Result<Output>> {
        const LONGEST: Duration = Duration::from_secs(1 << 32);
        self.result_by(Instant::now() + timeout.min(LONGEST))
    }

    fn result_by(&self, end: Instant) -> Option<Result<Output>> {
        let mut phase = self.state.lock();
        loop {
            if let Phase::Done(result) = &mut *phase {
                return result.take();
            }
            let now = Instant::now();
            let deadline = self.state.deadline.filter(|_| matches!(*phase, Phase::Waiting));
            if deadline.is_some_and(|deadline| deadline <= now) {
                drop(phase);
                self.shared.refuse_late(now);
                phase = self.state.lock();
                if matches!(*phase, Phase::Waiting) {
                    // The worker has taken it this moment.
                    *phase = Phase::Running(None);
                }
                continue;
            }
            if end <= now {
                return None;
            }
            if self.shared.is_worker() {
                return Some(Err(Error::InCallback));
            }
            let until = deadline.map_or(end, |deadline| deadline.min(end));
            let waited = self.state.done.wait_timeout(phase, until.saturating_duration_since(now));
            phase = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Stops the request: at once where it waits; where it runs, on the CPU within a step, on a GPU at the next one. Its result is then
    /// [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.state.cancel.cancel();
        if self.shared.remove(self.state.id) {
            self.state.finish(Err(Error::Cancelled));
        }
    }

    /// Sets an adapter's scales from the next step of the request's images on, and for images that have not begun; see
    /// [`crate::LiveScales::set`].
    ///
    /// # Errors
    /// [`Error::Parameter`] for a number that is not finite.
    pub fn set_scales(&self, adapter: usize, scales: impl Into<Scales>) -> Result<()> {
        self.state.live_scales.set(adapter, scales)
    }

    /// Exchanges the prompts and references from the next step of the request's images on, and for images that have not begun; see
    /// [`crate::LivePrompts::set`]. [`crate::Pipeline::prepare_prompts`] encodes them, for a request like this one.
    pub fn set_prompts(&self, prompts: &PreparedPrompts) {
        self.state.live_prompts.set(prompts);
    }

    /// The state of the request.
    pub fn status(&self) -> TicketStatus {
        let ahead = self.shared.ahead(self.state.id);
        match (&*self.state.lock(), ahead) {
            (Phase::Done(_), _) => TicketStatus::Done,
            (_, Some(ahead)) => TicketStatus::Waiting { ahead },
            (Phase::Running(progress), None) => TicketStatus::Running { progress: *progress },
            (Phase::Waiting, None) => TicketStatus::Running { progress: None },
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket({}, {:?})", self.state.id, self.status())
    }
}
