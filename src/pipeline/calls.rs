//! Calls that draw: one at a time, in the order in which they come.

use super::Pipeline;
use super::callbacks::Callbacks;
use super::executable_cache::ExecutableCache;
use super::fair_mutex::Wait;
use super::generate;
use super::jobs::{InOrder, Jobs};
use super::plan::{RequestPlan, Room};
use super::request::{Output, Request};
use crate::error::{Error, Result};
use tracing::subscriber::{NoSubscriber, with_default};

impl Pipeline {
    /// Generates the requested images.
    ///
    /// # Errors
    /// As [`Pipeline::generate_with`].
    pub fn generate(&self, request: &Request) -> Result<Output> {
        self.generate_with(request, Callbacks::new())
    }

    /// Generates the requested images; `callbacks` report progress and can stop the request, also while it waits for earlier calls.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a request that cannot be, without waiting for earlier calls; [`Error::Cancelled`]; [`Error::Late`] where
    /// [`Callbacks::deadline`] has passed; [`Error::InCallback`] in a callback of this pipeline, which would wait for its own end;
    /// [`Error::NotFinite`] where the model's output has no meaning. The pipeline stays usable. [`Error::Changed`] where a mapped file was
    /// written to since it was loaded; only loading it again helps.
    pub fn generate_with(&self, request: &Request, callbacks: Callbacks<'_>) -> Result<Output> {
        let wait = callbacks.deadline.map_or(Wait::Long, Wait::Until);
        self.generate_within(wait, request, callbacks)
    }

    /// Generates the requested images unless it would have to wait for another call.
    ///
    /// # Errors
    /// As [`Pipeline::generate_with`]; [`Error::Busy`] where another call is at work, with the number of those that wait for its end.
    pub fn try_generate(&self, request: &Request) -> Result<Output> {
        self.try_generate_with(request, Callbacks::new())
    }

    /// The same with callbacks.
    ///
    /// # Errors
    /// As [`Pipeline::try_generate`].
    pub fn try_generate_with(&self, request: &Request, callbacks: Callbacks<'_>) -> Result<Output> {
        self.generate_within(Wait::Never, request, callbacks)
    }

    fn generate_within(&self, wait: Wait, request: &Request, callbacks: Callbacks<'_>) -> Result<Output> {
        let run = match self.cache.run(Wait::Never) {
            Err(Error::Busy { .. }) => {
                self.check(request)?;
                callbacks.cancel.scope(|| self.cache.run(wait))?
            }
            run => run?,
        };
        generate::generate(self.compiler(), &run, self.encoders, request.clone(), callbacks)
    }

    /// Checks a request as far as that goes without the executables, which another call may be using.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a request that cannot be; [`Error::Memory`] where its images do not fit the host's memory.
    pub(crate) fn check(&self, request: &Request) -> Result<()> {
        request.check()?;
        let mut none = ExecutableCache::default();
        let plan = || RequestPlan::new(&mut self.executables(&mut none), Room::Unchecked, request).map(drop);
        // It is planned again, and its warnings come then.
        with_default(NoSubscriber::new(), plan)
    }

    /// Generates the images of several requests, with a result for each: the images are those of the request alone, and what is wrong
    /// with one request concerns no other. Images of one size, of the same adapters and numbers of masks, and with the same masks and
    /// scales of LoRAs, share evaluations of the UNet, as many as [`crate::PipelineOptions::max_batch`] says: with other prompts,
    /// references, scales, steps, schedulers and guidance.
    pub fn generate_batch(&self, requests: &[Request]) -> Vec<Result<Output>> {
        let mut results: Vec<_> = requests.iter().map(|_| Err(Error::Cancelled)).collect();
        let jobs = requests.iter().map(|request| (request.clone(), Callbacks::new()));
        self.generate_batch_with(jobs, |number, result| results[number] = result);
        results
    }

    /// As [`Pipeline::generate_batch`], of requests that are taken one by one as there is room for them, each with its callbacks; `done`
    /// takes the result of each as soon as it is there, with its number. A request that is not taken by its [`Callbacks::deadline`] fails
    /// with [`Error::Late`]. In a callback of this pipeline all of them fail with [`Error::InCallback`].
    pub fn generate_batch_with<'a>(
        &self,
        requests: impl IntoIterator<Item = (Request, Callbacks<'a>)>,
        mut done: impl FnMut(usize, Result<Output>),
    ) {
        self.generate_jobs(&mut InOrder::new(requests), &mut done);
    }

    /// As [`Pipeline::generate_batch_with`], of requests whose order may change until they begin.
    pub(crate) fn generate_jobs<'a>(&self, jobs: &mut dyn Jobs<'a>, done: &mut dyn FnMut(usize, Result<Output>)) {
        let run = match self.cache.run(Wait::Long) {
            Ok(run) => run,
            Err(error) => {
                let refusal = || if matches!(error, Error::InCallback) { Error::InCallback } else { Error::Cancelled };
                return std::iter::from_fn(|| jobs.next()).for_each(|(number, ..)| done(number, Err(refusal())));
            }
        };
        generate::generate_all(self.compiler(), &run, self.encoders, jobs, done);
    }
}
