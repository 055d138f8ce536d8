//! The part of a submitted request that its ticket and the worker share.

use crate::error::Result;
use crate::pipeline::{CancelToken, LivePrompts, LiveScales, Output, Progress};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A request's number, deadline, cancellation, live scales and prompts, and phase.
pub(super) struct TicketState {
    pub(super) id: u64,
    pub(super) deadline: Option<Instant>,
    pub(super) cancel: CancelToken,
    pub(super) live_scales: LiveScales,
    pub(super) live_prompts: LivePrompts,
    phase: Mutex<Phase>,
    /// Told of the result.
    pub(super) done: Condvar,
}

/// The way of a request.
pub(super) enum Phase {
    Waiting,
    /// With its last report.
    Running(Option<Progress>),
    /// With its result, until that is taken.
    Done(Option<Result<Output>>),
}

impl TicketState {
    pub(super) fn new(id: u64, deadline: Option<Instant>) -> Self {
        Self {
            id,
            deadline,
            cancel: CancelToken::new(),
            live_scales: LiveScales::new(),
            live_prompts: LivePrompts::new(),
            phase: Mutex::new(Phase::Waiting),
            done: Condvar::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the request begins, or what it has reported.
    pub(super) fn advance(&self, progress: Option<Progress>) {
        let mut phase = self.lock();
        if !matches!(*phase, Phase::Done(_)) {
            *phase = Phase::Running(progress);
        }
    }

    /// Gives the result, the first time that it is called.
    pub(super) fn finish(&self, result: Result<Output>) {
        let mut phase = self.lock();
        if !matches!(*phase, Phase::Done(_)) {
            *phase = Phase::Done(Some(result));
            self.done.notify_all();
        }
    }
}
