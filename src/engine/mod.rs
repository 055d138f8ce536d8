//! A queue before a pipeline: requests are submitted from any thread, and one worker draws them, as many at once as may share evaluations
//! of the model.

mod options;
mod queue;
mod state;
#[cfg(test)]
mod tests;
mod ticket;
mod worker;

pub use options::{EngineOptions, SubmitOptions};
pub use ticket::{Ticket, TicketStatus};

use self::worker::{Runner, Shared};
use crate::error::{Error, Result};
use crate::pipeline::{Pipeline, Request};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Draws requests in the order of their priorities, on a thread of its own.
///
/// A request that is submitted while others are drawn joins them at the next step, where there is room
/// ([`crate::PipelineOptions::max_batch`]); its images are those that it has alone. What is wrong with one request, a panic in one of its
/// callbacks included, concerns no other. Dropping an engine cancels all of its requests; [`Engine::drain`] ends them first.
pub struct Engine {
    shared: Arc<Shared>,
    pipeline: Option<Arc<Pipeline>>,
    worker: Option<JoinHandle<()>>,
}

impl Engine {
    /// An engine that draws with `pipeline`, which may be used beside it; its requests then wait for one another.
    ///
    /// # Errors
    /// [`Error::Io`] where no thread can be started.
    pub fn new(pipeline: impl Into<Arc<Pipeline>>, options: EngineOptions) -> Result<Self> {
        let pipeline = pipeline.into();
        let mut engine = Self::over(pipeline.clone(), options)?;
        engine.pipeline = Some(pipeline);
        Ok(engine)
    }

    fn over(runner: Arc<dyn Runner>, options: EngineOptions) -> Result<Self> {
        let shared = Arc::new(Shared::new(options));
        let of_worker = shared.clone();
        let worker = std::thread::Builder::new().name("braid-engine".into()).spawn(move || of_worker.work(&*runner));
        Ok(Self {
            shared,
            pipeline: None,
            worker: Some(worker.map_err(Error::io("start the thread", "braid-engine"))?),
        })
    }

    /// The pipeline that draws.
    pub fn pipeline(&self) -> Option<&Pipeline> {
        self.pipeline.as_deref()
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// [`Error::Busy`] where the queue is full; [`Error::Stopped`] once the engine is draining; [`Error::Parameter`] for a request that
    /// cannot be, and [`Error::Memory`] for images that do not fit the host's memory.
    pub fn submit(&self, request: Request) -> Result<Ticket> {
        self.submit_with(request, SubmitOptions::default())
    }

    /// The same with a priority, a deadline or callbacks.
    ///
    /// # Errors
    /// As [`Engine::submit`]; [`Error::Late`] where the deadline is past.
    pub fn submit_with(&self, request: Request, options: SubmitOptions) -> Result<Ticket> {
        if let Some(pipeline) = &self.pipeline {
            pipeline.check(&request)?;
        }
        let state = self.shared.submit(request, options)?;
        Ok(Ticket { state, shared: self.shared.clone() })
    }

    /// The number of requests that wait.
    pub fn waiting(&self) -> usize {
        self.shared.waiting()
    }

    /// The number of requests that are drawn now.
    pub fn running(&self) -> usize {
        self.shared.running()
    }

    /// Takes no more requests, and returns when all that were submitted are done; in a callback of one of them, at once.
    pub fn drain(mut self) {
        self.shared.close();
        self.join();
    }

    fn join(&mut self) {
        // In a callback this is the worker itself, which ends when it has nothing more to do.
        if let Some(worker) = self.worker.take().filter(|_| !self.shared.is_worker()) {
            // It catches every panic, and has told the tickets.
            let _ = worker.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.worker.is_some() {
            self.shared.close();
            self.shared.cancel_all();
            self.join();
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({} waiting, {} running)", self.waiting(), self.running())
    }
}
