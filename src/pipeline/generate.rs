//! Requests from beginning to end.

use super::batch::Batch;
use super::cache_access::Run;
use super::callbacks::Callbacks;
use super::compile::{Compiler, Executables};
use super::content_cache::Held;
use super::jobs::{InOrder, Jobs};
use super::live_prompts::{PreparedPrompts, Prompts};
use super::load::Models;
use super::prompt_changes::{self, note};
use super::request::{Output, Request};
use super::residency::EncoderResidency;
use super::running::{Job, RunningRequest};
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::names::counted;
use std::sync::Arc;

/// Plans one request, compiles what it runs, and runs its stages.
///
/// # Errors
/// See [`super::Pipeline::generate_with`].
pub(super) fn generate(
    compiler: Compiler<'_>,
    run: &Run<'_>,
    residency: EncoderResidency,
    request: Request,
    callbacks: Callbacks<'_>,
) -> Result<Output> {
    let mut result = Err(Error::Cancelled);
    let mut jobs = InOrder::new([(request, callbacks)]);
    advance_all(compiler, run, (residency, false), &mut jobs, &mut |_, output| result = output);
    result
}

/// Runs requests whose images share evaluations; `done` takes the result of each as it leaves, with its number. Others may encode between
/// two evaluations.
pub(super) fn generate_all<'a>(
    compiler: Compiler<'_>,
    run: &Run<'_>,
    residency: EncoderResidency,
    jobs: &mut dyn Jobs<'a>,
    done: &mut dyn FnMut(usize, Result<Output>),
) {
    advance_all(compiler, run, (residency, true), jobs, done);
}

/// Runs requests of which with `joins` those that come later may join the ones under way.
fn advance_all<'a>(
    compiler: Compiler<'_>,
    run: &Run<'_>,
    (residency, joins): (EncoderResidency, bool),
    jobs: &mut dyn Jobs<'a>,
    done: &mut dyn FnMut(usize, Result<Output>),
) {
    let mut batch = Batch::default();
    let mut cache = run.lock();
    loop {
        let executables = &mut Executables { compiler, cache: &mut cache, joins, under_way: Vec::new() };
        let goes_on = batch.advance(executables, residency, jobs);
        for left in batch.take_left() {
            let result = left.result.map_err(|error| with_cause(compiler.models, &left.job.callbacks.cancel, error));
            done(left.ticket, result);
        }
        if !goes_on {
            return;
        }
        if batch.outlasts() {
            drop(cache);
            cache = run.lock();
        }
    }
}

/// Runs a request's stages up to its conditioning, and gives what they found or made.
///
/// # Errors
/// See [`super::Pipeline::generate_with`].
pub(super) fn hold(executables: &mut Executables<'_>, residency: EncoderResidency, request: Request) -> Result<Held> {
    let models = executables.compiler.models;
    let job = Job { request, callbacks: Callbacks::new() };
    match note(executables, |executables| RunningRequest::prepare(executables, residency, job, &[])) {
        Ok(((request, _), held)) => {
            // Requests like it with fewer tokens run on what was compiled for it.
            executables.cache.prepared(request.plan.denoise.clone());
            Ok(held)
        }
        Err(failed) => {
            let (job, error) = *failed;
            Err(with_cause(models, &job.callbacks.cancel, error))
        }
    }
}

/// Encodes prompts that are to take the place of a request's own.
///
/// # Errors
/// See [`super::Pipeline::prepare_prompts`].
pub(super) fn hold_prompts(
    executables: &mut Executables<'_>,
    request: &Request,
    prompts: Arc<Prompts>,
) -> Result<PreparedPrompts> {
    let models = executables.compiler.models;
    let prepared = prompt_changes::prepare(executables, request, prompts);
    prepared.map_err(|error| with_cause(models, &CancelToken::new(), error))
}

/// An error with its likeliest cause, which is worth the seconds that it takes to look for it.
pub(super) fn with_cause(models: &Models, cancel: &CancelToken, error: Error) -> Error {
    let Error::NotFinite { stage, hint } = error else { return error };
    if let Err(changed) = models.check_unchanged() {
        return changed;
    }
    let bad = cancel.scope(|| models.not_finite());
    let hint = match bad.first() {
        Some(first) => format!("NaN or infinity in {}, fetch the file again: {first}", counted(bad.len(), "weight")),
        None => hint,
    };
    Error::NotFinite { stage, hint }
}
