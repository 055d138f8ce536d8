//! The settings of an engine and of a request that is submitted to it.

use crate::pipeline::{FinishedImage, Preview, Progress};
use crate::setters::setters;
use std::time::{Duration, Instant};

/// The policy of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineOptions {
    /// The most requests that wait; 64 by default. More are refused with [`crate::Error::Busy`].
    pub max_waiting: usize,
    /// The most requests that are drawn at once, 8 by default: [`crate::PipelineOptions::max_batch`] says how many of their images share an
    /// evaluation.
    pub max_running: usize,
    /// The time that the first request waits for others to begin with it, where nothing is drawn; none by default.
    pub gather: Duration,
    /// A request that has waited so long counts as one of the next higher priority, and so on, so that none starves; 10 s by default.
    pub aging: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_waiting: 64, max_running: 8, gather: Duration::ZERO, aging: Duration::from_secs(10) }
    }
}

impl EngineOptions {
    setters! {
        /// Sets the most requests that wait, at least 1.
        with_max_waiting(max_waiting: usize => max_waiting.max(1));
        /// Sets the most requests that are drawn at once, at least 1: 1 draws them one after the other.
        with_max_running(max_running: usize => max_running.max(1));
        /// Sets the time that the first request waits for others.
        with_gather(gather: Duration);
        /// Sets the waiting time that stands for a step of priority.
        with_aging(aging: Duration);
    }
}

/// A callback that may be called from the worker's thread.
pub(super) type Callback<T> = Box<dyn FnMut(T) + Send>;
/// The same of images that are done.
pub(super) type OnImage = Box<dyn FnMut(FinishedImage<'_>) + Send>;

/// The settings of a request in the queue.
#[derive(Default)]
#[non_exhaustive]
pub struct SubmitOptions {
    /// Requests of a higher priority begin first; those of one in the order in which they came.
    pub priority: i32,
    /// A request that has not begun by then fails with [`crate::Error::Late`], and costs nothing.
    pub deadline: Option<Instant>,
    pub(super) on_progress: Option<Callback<Progress>>,
    pub(super) on_preview: Option<(usize, Callback<Preview>)>,
    pub(super) on_image: Option<OnImage>,
}

impl SubmitOptions {
    /// Priority 0, no deadline, no callbacks.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets the priority.
        with_priority(priority: i32);
        /// Sets the time by which the request must have begun.
        with_deadline(deadline: Instant => Some(deadline));
    }

    /// Calls `progress` on the worker's thread, as [`crate::Callbacks::with_progress`].
    #[must_use]
    pub fn with_progress(self, progress: impl FnMut(Progress) + Send + 'static) -> Self {
        Self { on_progress: Some(Box::new(progress)), ..self }
    }

    /// Calls `show` on the worker's thread, as [`crate::Callbacks::with_preview`].
    #[must_use]
    pub fn with_preview(self, every: usize, show: impl FnMut(Preview) + Send + 'static) -> Self {
        Self { on_preview: Some((every, Box::new(show))), ..self }
    }

    /// Calls `take` on the worker's thread, as [`crate::Callbacks::with_image`].
    #[must_use]
    pub fn with_image(self, take: impl FnMut(FinishedImage<'_>) + Send + 'static) -> Self {
        Self { on_image: Some(Box::new(take)), ..self }
    }
}

impl std::fmt::Debug for SubmitOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SubmitOptions(priority {}, deadline {:?})", self.priority, self.deadline)
    }
}
