//! Requests from beginning to end.

use super::batch::Batch;
use super::compile::Executables;
use super::request::{Callbacks, Output, Request};
use super::residency::EncoderResidency;
use super::running::Job;
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
            // The likeliest cause is worth the seconds that it takes to look for it.
            (Err(Error::NotFinite { stage, hint }), Some(job)) => {
                let bad = models.not_finite(&job.callbacks.cancel);
                let hint = match bad.first() {
                    Some(first) => format!("{} weights are NaN or infinite, fetch the file again: {first}", bad.len()),
                    None => hint,
                };
                Err(Error::NotFinite { stage, hint })
            }
            (result, _) => result,
        };
        done(left.ticket, result);
    });
}
