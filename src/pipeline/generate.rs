//! One request from beginning to end.

use super::captures::Captures;
use super::compile::Executables;
use super::plan::RequestPlan;
use super::request::{Callbacks, Output, Progress, Request, Stage};
use super::residency::EncoderResidency;
use super::stages::{condition, decode, denoise::Denoise, image, init_image, text};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::time::Instant;

/// Plans the request, compiles what it runs, and runs its stages.
///
/// # Errors
/// See [`super::Pipeline::generate_with`].
pub(super) fn generate(
    executables: &mut Executables<'_>,
    residency: EncoderResidency,
    request: &Request,
    callbacks: &mut Callbacks<'_>,
) -> Result<Output> {
    request.check()?;
    let models = executables.compiler.models;
    match run(executables, residency, request, callbacks) {
        // The likeliest cause is worth the seconds that it takes to look for it.
        Err(Error::NotFinite { stage, hint }) => {
            let bad = models.not_finite(&callbacks.cancel);
            let hint = match bad.first() {
                Some(first) => format!("{} weights are NaN or infinite, fetch the file again: {first}", bad.len()),
                None => hint,
            };
            Err(Error::NotFinite { stage, hint })
        }
        result => result,
    }
}

fn run(
    executables: &mut Executables<'_>,
    residency: EncoderResidency,
    request: &Request,
    callbacks: &mut Callbacks<'_>,
) -> Result<Output> {
    executables.cache.begin_request();
    let plan = RequestPlan::new(executables, residency, request)?;
    plan.compile(executables, &callbacks.cancel)?;
    let mut captures = Captures::new(request.capture_intermediates);
    let mut step_seconds = Vec::new();
    let mut stages = Stages { callbacks, num_images: request.num_images, image: 0, seconds: BTreeMap::new() };
    let texts = stages.run(Stage::Text, 1, |_| text::run(executables, &plan, &mut captures))?;
    executables.cache.release_encoders();
    let images = stages
        .run(Stage::Image, 1, |callbacks| image::run(executables, request, &plan, &callbacks.cancel, &mut captures))?;
    executables.cache.release_encoders();
    let init_image = match &request.init_image {
        Some(image) => Some(stages.run(Stage::Encode, 1, |_| init_image::run(executables, request, image, &plan))?),
        None => None,
    };
    executables.cache.release_encoders();
    let conditioning =
        stages.run(Stage::Condition, 1, |_| condition::run(executables, &plan, &texts, &images, &mut captures))?;
    let mut images = Vec::new();
    for index in 0..request.num_images {
        stages.image = index;
        let init_image = init_image.as_ref();
        let denoise = Denoise { request, plan: &plan, conditioning: &conditioning, init_image, image: index };
        let latents = stages.run(Stage::Denoise, plan.table.steps.len(), |callbacks| {
            denoise.run(executables, callbacks, &mut step_seconds, &mut captures)
        })?;
        images.push(stages.run(Stage::Decode, 1, |_| decode::run(executables, &plan, &latents, &mut captures))?);
    }
    Ok(Output {
        images,
        seeds: (0..request.num_images as u64).map(|i| request.seed.wrapping_add(i)).collect(),
        seconds: stages.seconds,
        step_seconds,
        intermediates: captures.into_tensors(),
        truncated_tokens: plan.prompt.prompt.truncated_tokens,
    })
}

/// Times the stages and reports them.
struct Stages<'a, 'w> {
    callbacks: &'a mut Callbacks<'w>,
    num_images: usize,
    image: usize,
    seconds: BTreeMap<Stage, f64>,
}

impl<'w> Stages<'_, 'w> {
    /// Runs a stage of that many steps; a stage of more than one reports each of them itself.
    fn run<T>(&mut self, stage: Stage, steps: usize, work: impl FnOnce(&mut Callbacks<'w>) -> Result<T>) -> Result<T> {
        self.callbacks.cancel.check()?;
        self.report(stage, 0, steps);
        let begin = Instant::now();
        let result = work(self.callbacks)?;
        *self.seconds.entry(stage).or_default() += begin.elapsed().as_secs_f64();
        if stage != Stage::Denoise {
            self.report(stage, 1, 1);
        }
        Ok(result)
    }

    fn report(&mut self, stage: Stage, done: usize, steps: usize) {
        self.callbacks.report(Progress { stage, image: self.image, num_images: self.num_images, done, steps });
    }
}
