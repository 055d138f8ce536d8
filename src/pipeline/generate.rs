//! Requests from beginning to end.

use super::batch::Batch;
use super::compile::Executables;
use super::content_cache::Held;
use super::load::Models;
use super::request::{Callbacks, Output, Request};
use super::residency::EncoderResidency;
use super::running::{Job, RunningRequest};
use crate::error::{Error, Result};

/// Plans one request, compiles what it runs, and runs its stages.
///
/// # Errors
/// See [`super::Pipeline::generate_with`].
pub(super) fn generate(
    executables: &mut Executables<'_>,
    residency: EncoderResidency,
    request: Request,
    callbacks: Callbacks<'_>,
) -> Result<Output> {
    let job = Job { request, callbacks };
    let mut result = Err(Error::Cancelled);
    generate_all(executables, residency, std::iter::once(job), |_, output| result = output);
    result
}

/// Runs requests whose images share evaluations; `done` takes the result of each as it leaves, with its number.
pub(super) fn generate_all<'a>(
    executables: &mut Executables<'_>,
    residency: EncoderResidency,
    jobs: impl Iterator<Item = Job<'a>>,
    mut done: impl FnMut(usize, Result<Output>),
) {
    let models = executables.compiler.models;
    Batch::run(executables, residency, jobs, |left| {
        let result = match (left.result, left.job) {
            (Err(error), Some(job)) => Err(with_cause(models, &job, error)),
            (result, _) => result,
        };
        done(left.ticket, result);
    });
}

/// Runs a request's stages up to its conditioning, and gives what they found or made.
///
/// # Errors
/// See [`super::Pipeline::generate_with`].
pub(super) fn hold(executables: &mut Executables<'_>, residency: EncoderResidency, request: Request) -> Result<Held> {
    let models = executables.compiler.models;
    executables.cache.contents.record();
    let prepared = RunningRequest::prepare(executables, residency, Job { request, callbacks: Callbacks::new() });
    let held = executables.cache.contents.recorded();
    match prepared {
        Ok(_) => Ok(held),
        Err(failed) => {
            let (job, error) = *failed;
            Err(with_cause(models, &job, error))
        }
    }
}

/// An error with its likeliest cause, which is worth the seconds that it takes to look for it.
fn with_cause(models: &Models, job: &Job<'_>, error: Error) -> Error {
    let Error::NotFinite { stage, hint } = error else { return error };
    let bad = models.not_finite(&job.callbacks.cancel);
    let hint = match bad.first() {
        Some(first) => format!("{} weights are NaN or infinite, fetch the file again: {first}", bad.len()),
        None => hint,
    };
    Error::NotFinite { stage, hint }
}
