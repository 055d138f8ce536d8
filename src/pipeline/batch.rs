//! Requests whose images share evaluations of the model, step by step: in-flight batching, where images join at any step boundary and
//! leave when they are done.

use super::compile::Executables;
use super::content_cache::Held;
use super::denoise_plan::{DenoisePlan, Placement};
use super::jobs::Jobs;
use super::latent_size::request_size;
use super::plan::RequestPlan;
use super::request::{Output, Request};
use super::residency::EncoderResidency;
use super::running::{Job, RunningImage, RunningRequest};
use crate::cancel;
use crate::device::ImageInFlight;
use crate::error::{Error, Result};
use std::sync::Arc;
use std::time::Instant;

/// The number by which a caller knows its request.
pub(super) type Ticket = usize;

/// A request that has left, with its result.
pub(super) struct Left<'a> {
    pub(super) ticket: Ticket,
    pub(super) result: Result<Output>,
    pub(super) job: Job<'a>,
}

/// Requests under way and their images in flight.
#[derive(Default)]
pub(super) struct Batch<'a> {
    requests: Vec<(Ticket, RunningRequest<'a>)>,
    /// In the order in which they began, each with its request.
    images: Vec<(Ticket, RunningImage)>,
    /// The results that were encoded for requests that wait.
    ahead: Held,
    left: Vec<Left<'a>>,
}

impl<'a> Batch<'a> {
    /// Takes a job in where there is one and room for it, or makes the next step of every image; `false` where there was nothing to do.
    pub(super) fn advance(
        &mut self,
        executables: &mut Executables<'_>,
        residency: EncoderResidency,
        jobs: &mut dyn Jobs<'a>,
    ) -> bool {
        while self.begin_image(executables) {}
        if self.has_room(executables)
            && let Some((ticket, request, callbacks)) = jobs.next()
        {
            let job = Job { request, callbacks };
            let to_come = self.to_come(executables, &job.request, jobs);
            self.join(executables, residency, (ticket, job), &to_come);
        } else if self.is_idle() {
            return false;
        } else {
            self.step(executables);
        }
        true
    }

    /// The requests that have left since the last call.
    pub(super) fn take_left(&mut self) -> Vec<Left<'a>> {
        std::mem::take(&mut self.left)
    }

    /// Whether the conditionings of all requests outlast other runs of the conditioner.
    pub(super) fn outlasts(&self) -> bool {
        self.requests.iter().all(|(_, request)| request.outlasts())
    }

    /// The most images like the last request's that are in flight where one begins at each step.
    pub(super) fn most_staggered(&self, executables: &Executables<'_>) -> Option<usize> {
        let (_, last) = self.requests.last()?;
        let most = executables.most_images(last.plan.latent).min(last.plan.table.steps.len());
        Some(if self.outlasts() { most } else { 1 })
    }

    /// The requests that there is room for beside one that begins, where what they encode can go through the encoders with its own.
    fn to_come(&self, executables: &Executables<'_>, request: &Request, jobs: &mut dyn Jobs<'a>) -> Vec<Arc<Request>> {
        let (compiler, joins) = (&executables.compiler, executables.joins);
        match request_size(compiler.models, compiler.compat, request) {
            Ok(latent) if joins && compiler.device.encoder_rows() > 1 => {
                let begun = self.images.len() + request.num_images;
                jobs.to_come(executables.most_images(latent).saturating_sub(begun))
            }
            _ => Vec::new(),
        }
    }

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether another request may join: no image waits, not as many are in flight as may share an evaluation, and those have no use for
    /// what the request's stages write over.
    fn has_room(&self, executables: &Executables<'_>) -> bool {
        let Some((_, last)) = self.requests.last() else { return true };
        self.outlasts()
            && self.requests.iter().all(|(_, request)| !request.has_more())
            && self.images.len() < executables.most_images(last.plan.latent)
    }

    /// Runs a request's stages up to the conditioning; its images may begin then.
    fn join(
        &mut self,
        executables: &mut Executables<'_>,
        residency: EncoderResidency,
        (ticket, job): (Ticket, Job<'a>),
        to_come: &[Arc<Request>],
    ) {
        executables.under_way = self.requests.iter().map(|(_, request)| request.plan.step_plans()).collect();
        match RunningRequest::prepare(executables, residency, job, to_come) {
            Ok((request, ahead)) => {
                self.requests.push((ticket, request));
                self.ahead = if to_come.is_empty() { Held::new() } else { ahead };
            }
            Err(failed) => {
                let (job, error) = *failed;
                self.left.push(Left { ticket, result: Err(error), job });
            }
        }
    }

    /// Begins the next image of the oldest request that has more, where there is room for it.
    fn begin_image(&mut self, executables: &Executables<'_>) -> bool {
        let waiting = self.requests.iter_mut().find(|(_, request)| request.has_more());
        let Some((ticket, request)) = waiting else { return false };
        if !self.images.is_empty() && self.images.len() >= executables.most_images(request.plan.latent) {
            return false;
        }
        let ticket = *ticket;
        match request.begin(executables) {
            Ok(image) => self.images.push((ticket, image)),
            Err(error) => self.fail(ticket, error),
        }
        true
    }

    /// Makes the next step of every image, of those that may in one evaluation; images that are done are decoded.
    fn step(&mut self, executables: &mut Executables<'_>) {
        for (ticket, request) in std::mem::take(&mut self.requests) {
            match request.check() {
                Ok(()) => self.requests.push((ticket, request)),
                Err(error) => self.leave(ticket, request, error),
            }
        }
        let mut rest = Vec::new();
        for (ticket, mut image) in std::mem::take(&mut self.images) {
            let Some(request) = self.request(ticket) else { continue };
            match request.begin_step(executables, &mut image) {
                Ok(()) => rest.push((ticket, image)),
                Err(error) => self.fail(ticket, error),
            }
        }
        while !rest.is_empty() {
            let group = self.take_group(executables, &mut rest);
            self.evaluate(executables, group);
        }
    }

    fn request(&mut self, ticket: Ticket) -> Option<&mut RunningRequest<'a>> {
        self.requests.iter_mut().find(|(t, _)| *t == ticket).map(|(_, request)| request)
    }

    /// Takes the first image and those after it that may share its evaluation.
    fn take_group(
        &mut self,
        executables: &Executables<'_>,
        rest: &mut Vec<(Ticket, RunningImage)>,
    ) -> Vec<(Ticket, RunningImage)> {
        let plan = |ticket: Ticket| self.requests.iter().find(|(t, _)| *t == ticket).map(|(_, request)| &request.plan);
        let first = plan(rest[0].0);
        let joins = |ticket: Ticket| match (first, plan(ticket)) {
            (Some(a), Some(b)) => std::ptr::eq(a, b) || a.shares_evaluations(b),
            _ => false,
        };
        let most = first.map_or(1, |plan| executables.most_images(plan.latent));
        let (mut group, mut others) = (vec![rest.remove(0)], Vec::new());
        for image in rest.drain(..) {
            if group.len() < most && joins(image.0) { group.push(image) } else { others.push(image) }
        }
        *rest = others;
        group
    }

    /// Evaluates the model for a group of images. Where that fails its halves are tried, so that short memory means a smaller group, and
    /// an error that of one image alone.
    fn evaluate(&mut self, executables: &mut Executables<'_>, mut group: Vec<(Ticket, RunningImage)>) {
        // A request may have failed since.
        group.retain(|(ticket, _)| self.request(*ticket).is_some());
        if group.is_empty() {
            return;
        }
        let begin = Instant::now();
        let tokens = group.iter().filter_map(|(ticket, _)| self.request(*ticket).map(|request| request.cancel()));
        let tokens = tokens.collect();
        // One that is cancelled among others goes when the evaluation is done.
        match cancel::scope(tokens, || self.try_evaluate(executables, &mut group)) {
            Ok((plan, pending)) => {
                let seconds = begin.elapsed().as_secs_f64() / group.len() as f64;
                for (ticket, mut image) in group {
                    let Some(request) = self.request(ticket) else { continue };
                    let result = request.advanced(executables, &mut image, (seconds, pending));
                    match result {
                        Ok(()) if image.in_flight.is_finished() => self.finish(executables, &plan, (ticket, image)),
                        Ok(()) => self.images.push((ticket, image)),
                        Err(error) => self.fail(ticket, error),
                    }
                }
            }
            // What the device has done by then is not known, so there is nothing to try again.
            Err(Error::Fault { device, call, what, lost }) => {
                for (ticket, _) in group {
                    let [device, call, what] = [&device, &call, &what].map(String::clone);
                    self.fail(ticket, Error::Fault { device, call, what, lost });
                }
            }
            Err(Error::Cancelled) => group.iter().for_each(|(ticket, _)| self.fail(*ticket, Error::Cancelled)),
            Err(error) if group.len() == 1 => self.fail(group[0].0, error),
            Err(error) => {
                let second = group.split_off(group.len().div_ceil(2));
                if let (Error::Memory { .. }, Some(request)) = (&error, self.request(group[0].0)) {
                    executables.cache.limit_images(request.plan.latent, group.len());
                }
                self.evaluate(executables, group);
                self.evaluate(executables, second);
            }
        }
    }

    /// One evaluation; also returns the plan of its loop and how many evaluations the device is still at work on.
    fn try_evaluate(
        &mut self,
        executables: &mut Executables<'_>,
        group: &mut [(Ticket, RunningImage)],
    ) -> Result<((DenoisePlan, Placement), usize)> {
        let plans: Vec<&RequestPlan> = group
            .iter()
            .filter_map(|(ticket, _)| self.requests.iter().find(|(t, _)| t == ticket).map(|(_, request)| &request.plan))
            .collect();
        let Some((first, others)) = plans.split_first() else {
            return Err(Error::Graph("a group of no images".into()));
        };
        let mut plan = first.denoise.shared(others.iter().map(|plan| &plan.denoise));
        plan.shape.batch = group.iter().map(|(_, image)| image.in_flight.rows()).sum();
        let placement = first.placement;
        let denoise_loop = executables.denoise_loop(&plan, placement)?;
        let inputs = denoise_loop.graph().inputs.len();
        for (ticket, image) in group.iter_mut() {
            let Some(request) = self.request(*ticket) else { continue };
            let bound = &mut image.in_flight.inputs.inputs;
            // The UNet may have no updates of the LoRAs.
            if bound.len() + 1 == inputs {
                bound.push(request.lora_scales.clone());
            }
        }
        let mut images: Vec<&mut ImageInFlight> = group.iter_mut().map(|(_, image)| &mut image.in_flight).collect();
        let pending = denoise_loop.evaluate(&mut images)?;
        Ok(((plan, placement), pending))
    }

    /// Waits for an image's steps and decodes it; its request leaves with its last one.
    fn finish(
        &mut self,
        executables: &mut Executables<'_>,
        (plan, placement): &(DenoisePlan, Placement),
        (ticket, image): (Ticket, RunningImage),
    ) {
        let begin = Instant::now();
        let RunningImage { in_flight, record } = image;
        let output = executables.denoise_loop(plan, *placement).and_then(|on| on.finish(in_flight));
        let Some(request) = self.request(ticket) else { return };
        let seconds = begin.elapsed().as_secs_f64();
        let finished = output.and_then(|output| request.finish(executables, record, (output, seconds)));
        match finished {
            Err(error) => self.fail(ticket, error),
            Ok(()) if request.is_done() => {
                if let Some(at) = self.requests.iter().position(|(t, _)| *t == ticket) {
                    let (_, request) = self.requests.remove(at);
                    let (output, job) = request.into_output();
                    self.left.push(Left { ticket, result: Ok(output), job });
                }
            }
            Ok(()) => {}
        }
    }

    /// Ends a request with an error; its other images go with it.
    fn fail(&mut self, ticket: Ticket, error: Error) {
        self.images.retain(|(t, _)| *t != ticket);
        if let Some(at) = self.requests.iter().position(|(t, _)| *t == ticket) {
            let (_, request) = self.requests.remove(at);
            self.leave(ticket, request, error);
        }
    }

    fn leave(&mut self, ticket: Ticket, request: RunningRequest<'a>, error: Error) {
        self.left.push(Left { ticket, result: Err(error), job: request.into_job() });
    }
}
