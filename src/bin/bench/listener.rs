//! Listens to the library's events while a request runs: the time to compile executables, the bytes that they hold.

use braid::cli::terminal;
use braid::device::UPLOADS;
use braid::error::escape;
use braid::pipeline::{EXECUTABLES, Stage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tracing::field::{Field, Visit};
use tracing::{Event, Id, Level, Metadata, Subscriber, span};

/// The events so far.
#[derive(Debug, Default)]
pub struct Log {
    /// The stage under way; none before the first.
    stage: Option<Stage>,
    /// Seconds spent compiling executables, by the stage that asked for them.
    pub making: BTreeMap<Option<Stage>, f64>,
    /// Seconds of that spent uploading weights.
    pub uploading: f64,
    /// Bytes that executables hold.
    held: u64,
    /// The most of them since [`Shared::take_peak`].
    peak: u64,
    /// When denoising began.
    pub denoise: Option<Instant>,
    /// When the first step was done.
    pub first_step: Option<Instant>,
}

/// A log that the listener and its user share.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Log>>);

impl Shared {
    /// Locks the log.
    pub fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` and listens to it.
    pub fn listen<T>(&self, work: impl FnOnce() -> T) -> T {
        tracing::subscriber::with_default(Listener(self.clone()), work)
    }

    /// Notes a request's progress; true where a stage begins.
    pub fn progress(&self, stage: Stage, done: usize) -> bool {
        let mut log = self.lock();
        if stage == Stage::Denoise {
            let at = if done == 0 { &mut log.denoise } else { &mut log.first_step };
            at.get_or_insert_with(Instant::now);
        }
        log.stage.replace(stage) != Some(stage)
    }

    /// The most bytes that executables held since the last call.
    pub fn take_peak(&self) -> u64 {
        let mut log = self.lock();
        let held = log.held;
        std::mem::replace(&mut log.peak, held)
    }
}

/// Collects the events about executables and uploads; prints warnings as usual.
struct Listener(Shared);

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        [EXECUTABLES, UPLOADS].contains(&metadata.target())
            || (*metadata.level() <= Level::WARN && metadata.target().starts_with("braid"))
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut log = self.0.lock();
        match event.metadata().target() {
            EXECUTABLES => {}
            UPLOADS => {
                log.uploading += fields.seconds.unwrap_or(0.0);
                return;
            }
            _ => return terminal::line("warning: ", &escape(&fields.text)),
        }
        let stage = log.stage;
        *log.making.entry(stage).or_default() += fields.seconds.unwrap_or(0.0);
        if let Some(held) = fields.held {
            log.held = held;
            log.peak = log.peak.max(held);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    seconds: Option<f64>,
    held: Option<u64>,
    text: String,
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "seconds" {
            self.seconds = Some(value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "held" {
            self.held = Some(value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.text = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heard_events() {
        let log = Shared::default();
        log.listen(|| {
            tracing::debug!(target: EXECUTABLES, seconds = 0.5, held = 10u64);
            tracing::debug!("something else");
            assert!(log.progress(Stage::Denoise, 0) && log.lock().first_step.is_none());
            tracing::debug!(target: EXECUTABLES, seconds = 0.25, held = 30u64);
            tracing::debug!(target: EXECUTABLES, held = 20u64);
            tracing::debug!(target: UPLOADS, seconds = 0.125, bytes = 7u64);
            assert!(!log.progress(Stage::Denoise, 1) && log.lock().first_step.is_some());
        });
        // No listener is installed any more.
        tracing::debug!(target: EXECUTABLES, seconds = 9.0, held = 99u64);
        assert_eq!(log.lock().making, BTreeMap::from([(None, 0.5), (Some(Stage::Denoise), 0.25)]));
        assert_eq!(log.lock().uploading, 0.125);
        assert_eq!((log.take_peak(), log.take_peak()), (30, 20));
    }
}
