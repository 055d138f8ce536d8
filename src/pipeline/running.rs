//! A request under way: what its images share, and what they have become.

use super::attribution::{self, AttributionMap};
use super::callbacks::{Callbacks, FinishedImage};
use super::captures::Captures;
use super::compile::Executables;
use super::content_cache::Held;
use super::image_scales::ImageScales;
use super::live_prompts::{PreparedPrompts, PromptChange};
use super::live_scales::ScaleChange;
use super::plan::{RequestPlan, Room};
use super::prompt_changes::{ChangedPrompts, ImagePrompts, note};
use super::request::{Output, Progress, Request, Stage};
use super::residency::EncoderResidency;
use super::stages::condition::{self, Conditioning};
use super::stages::denoise::{self, Beginning, Denoise};
use super::stages::init_image::{self, InitImage};
use super::stages::{decode, image, text};
use crate::cancel::CancelToken;
use crate::device::{DenoiseOutput, ImageInFlight, TensorRef};
use crate::error::{Error, Result};
use crate::inputs::image::Image;
use crate::models::unet::{DenoiserInterface, InputRole};
use crate::schedulers::StepCoefficients;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tracing::subscriber::{NoSubscriber, with_default};

/// A request with its callbacks.
pub(super) struct Job<'a> {
    pub(super) request: Request,
    pub(super) callbacks: Callbacks<'a>,
}

/// A request whose stages up to the conditioning are done.
pub(super) struct RunningRequest<'a> {
    job: Job<'a>,
    pub(super) plan: RequestPlan,
    table: Arc<[StepCoefficients]>,
    conditioning: Conditioning,
    /// The prompts of its changes, and the latest live ones.
    changed: Vec<Arc<ChangedPrompts>>,
    init_image: Option<Arc<InitImage>>,
    /// The factors of the LoRAs' updates of the UNet, an input of its graph where it has updates.
    pub(super) lora_scales: Arc<TensorRef<'static>>,
    captures: Captures,
    attributions: Vec<AttributionMap>,
    seconds: BTreeMap<Stage, f64>,
    /// The images that have begun.
    begun: usize,
    /// The images that are done.
    images: Vec<DoneImage>,
}

/// An image that is done.
struct DoneImage {
    image: Image,
    upcast_vae: bool,
    step_seconds: Vec<f64>,
    scale_changes: Vec<ScaleChange>,
    prompt_changes: Vec<PromptChange>,
}

/// An image of a running request.
pub(super) struct RunningImage {
    pub(super) in_flight: ImageInFlight,
    pub(super) record: ImageRecord,
}

/// The part of a running image that the loop does not need.
pub(super) struct ImageRecord {
    /// From 0.
    index: usize,
    beginning: Beginning,
    scales: ImageScales,
    prompts: ImagePrompts,
    /// Seconds of each step that has been reported.
    step_seconds: Vec<f64>,
    /// Seconds since the last of them.
    unreported: f64,
}

impl Job<'_> {
    /// Runs a stage of one step of an image, and adds its seconds.
    fn stage<T>(
        &mut self,
        (stage, image): (Stage, usize),
        seconds: &mut BTreeMap<Stage, f64>,
        work: impl FnOnce(&Request) -> Result<T>,
    ) -> Result<T> {
        self.callbacks.cancel.check()?;
        self.report(stage, image, [0, 1]);
        let begin = Instant::now();
        let result = self.callbacks.cancel.scope(|| work(&self.request))?;
        *seconds.entry(stage).or_default() += begin.elapsed().as_secs_f64();
        self.report(stage, image, [1, 1]);
        Ok(result)
    }

    fn report(&mut self, stage: Stage, image: usize, [done, steps]: [usize; 2]) {
        self.callbacks.report(Progress { stage, image, num_images: self.request.num_images, done, steps });
    }
}

impl<'a> RunningRequest<'a> {
    /// Plans the request, compiles what it runs, and runs its stages up to the conditioning. Where its own rows leave an encoder room, what
    /// `to_come` encode, which may begin after it, goes through with them; those find it for as long as anyone has what is given beside
    /// the request.
    ///
    /// # Errors
    /// See [`super::Pipeline::generate_with`]; with the job.
    pub(super) fn prepare(
        executables: &mut Executables<'_>,
        residency: EncoderResidency,
        mut job: Job<'a>,
        to_come: &[Arc<Request>],
    ) -> Result<(Self, Held), Box<(Job<'a>, Error)>> {
        let mut captures = Captures::new(job.request.capture_intermediates);
        let mut seconds = BTreeMap::new();
        let prepared = prepare(executables, residency, (&mut job, to_come), (&mut captures, &mut seconds));
        let Prepared { plan, conditioning, changed, init_image, ahead } = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err(Box::new((job, error))),
        };
        let request = Self {
            table: plan.table.steps.as_slice().into(),
            lora_scales: Arc::new(plan.lora_scales.unet.clone().into()),
            plan,
            conditioning,
            changed,
            init_image,
            captures,
            attributions: Vec::new(),
            seconds,
            job,
            begun: 0,
            images: Vec::new(),
        };
        Ok((request, ahead))
    }

    /// Whether an image is still to begin.
    pub(super) fn has_more(&self) -> bool {
        self.begun < self.job.request.num_images
    }

    /// Begins the next image.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub(super) fn begin(&mut self, executables: &Executables<'_>) -> Result<RunningImage> {
        self.job.callbacks.cancel.check()?;
        let index = self.begun;
        self.job.report(Stage::Denoise, index, [0, self.table.len()]);
        let denoise = Denoise {
            request: &self.job.request,
            plan: &self.plan,
            table: &self.table,
            conditioning: &self.conditioning.inputs,
            init_image: self.init_image.as_deref(),
            preview_every: self.job.callbacks.on_preview.as_ref().map(|on| on.every),
        };
        let begin = Instant::now();
        let (in_flight, beginning) = denoise.begin(&executables.compiler, index);
        self.begun += 1;
        *self.seconds.entry(Stage::Denoise).or_default() += begin.elapsed().as_secs_f64();
        let (scales, prompts) = (ImageScales::new(&self.job.request), ImagePrompts::default());
        let record = ImageRecord { index, beginning, scales, prompts, step_seconds: Vec::new(), unreported: 0.0 };
        Ok(RunningImage { in_flight, record })
    }

    /// Stops the request where that is asked for.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub(super) fn check(&self) -> Result<()> {
        self.job.callbacks.cancel.check()
    }

    /// The token that stops it.
    pub(super) fn cancel(&self) -> CancelToken {
        self.job.callbacks.cancel.clone()
    }

    /// Whether its conditioning outlasts other runs of the conditioner.
    pub(super) fn outlasts(&self) -> bool {
        self.conditioning.outlasts && self.changed.iter().all(|changed| changed.conditioning.outlasts)
    }

    /// Sets whether an image's next step has guidance, and makes the changes of prompts and scales that are due before it.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a change that cannot be; those of the stages for prompts that were not prepared.
    pub(super) fn begin_step(&mut self, executables: &mut Executables<'_>, image: &mut RunningImage) -> Result<()> {
        let (request, in_flight) = (&self.job.request, &mut image.in_flight);
        in_flight.guided = request.is_guided(in_flight.done(), self.table.len());
        let cancel = self.job.callbacks.cancel.clone();
        cancel.scope(|| self.change_inputs(executables, image))
    }

    fn change_inputs(&mut self, executables: &mut Executables<'_>, image: &mut RunningImage) -> Result<()> {
        let RunningImage { in_flight, record } = image;
        let (callbacks, step) = (&self.job.callbacks, in_flight.done());
        let rescaled = record.scales.advance(&self.job.request, callbacks.live_scales.as_ref(), step)?;
        let prompts = record.prompts.advance(&self.job.request, callbacks.live_prompts.as_ref(), step);
        if !rescaled && prompts.is_none() {
            return Ok(());
        }
        if let Some(prompts) = prompts {
            let changed = self.changed_prompts(executables, &prompts)?;
            in_flight.inputs.inputs.clone_from(&changed.conditioning.inputs);
            record.prompts.current = Some(changed);
        }
        let (compiler, plan) = (&executables.compiler, &self.plan);
        let branches = record.prompts.current.as_ref().map_or(&plan.branches, |changed| &changed.branches);
        let given = (&self.job.request, record.scales.current());
        let scales = branches.scales_of(compiler, given, &plan.denoise, self.table.len())?;
        let interface = DenoiserInterface::new(&compiler.models.unet.config, &plan.denoise.shape);
        let inputs = interface.inputs.iter().zip(&mut in_flight.inputs.inputs);
        for (_, values) in inputs.filter(|(input, _)| input.role == InputRole::Scales) {
            *values = Arc::new(scales.clone().into());
        }
        Ok(())
    }

    /// Prompts that take the place of the request's own, encoded once for all images.
    fn changed_prompts(
        &mut self,
        executables: &mut Executables<'_>,
        prompts: &PreparedPrompts,
    ) -> Result<Arc<ChangedPrompts>> {
        let known = self.changed.iter().find(|changed| Arc::ptr_eq(&changed.prompts, &prompts.prompts));
        if let Some(known) = known {
            return Ok(known.clone());
        }
        let request = &self.job.request;
        let (changed, _) = ChangedPrompts::new(executables, (request, &self.plan), &prompts.prompts)?;
        let changed = Arc::new(changed);
        // An image that has earlier ones holds them itself.
        self.changed.truncate(request.prompt_changes.len());
        self.changed.push(changed.clone());
        Ok(changed)
    }

    /// Tells of an evaluation in which an image took part, whose share of the time is `seconds`; the device is still at work on
    /// `pending` of the image's steps.
    ///
    /// # Errors
    /// Those of what a preview runs; [`Error::Cancelled`].
    pub(super) fn advanced(
        &mut self,
        executables: &mut Executables<'_>,
        RunningImage { in_flight, record }: &mut RunningImage,
        (seconds, pending): (f64, usize),
    ) -> Result<()> {
        // Another image's report may have asked for it.
        self.check()?;
        *self.seconds.entry(Stage::Denoise).or_default() += seconds;
        record.unreported += seconds;
        let done = in_flight.done();
        if let Some(clean) = in_flight.take_preview() {
            let cancel = &self.job.callbacks.cancel;
            let preview = cancel.scope(|| denoise::preview(executables, &self.plan, (record.index, done), &clean))?;
            if let Some(on) = &mut self.job.callbacks.on_preview {
                (on.show)(preview);
            }
        }
        self.report_steps(record, done.saturating_sub(pending));
        self.check()
    }

    /// Reports an image's steps up to `done`.
    fn report_steps(&mut self, image: &mut ImageRecord, done: usize) {
        let told = image.step_seconds.len();
        if done <= told {
            return;
        }
        let each = std::mem::take(&mut image.unreported) / (done - told) as f64;
        for step in told..done {
            image.step_seconds.push(each);
            self.job.report(Stage::Denoise, image.index, [step + 1, self.table.len()]);
        }
    }

    /// Decodes an image that has made its steps; `seconds` is what waiting for them took.
    ///
    /// # Errors
    /// [`Error::NotFinite`]; [`Error::Changed`]; those of the decoder; [`Error::Cancelled`].
    pub(super) fn finish(
        &mut self,
        executables: &mut Executables<'_>,
        mut image: ImageRecord,
        (output, seconds): (DenoiseOutput, f64),
    ) -> Result<()> {
        *self.seconds.entry(Stage::Denoise).or_default() += seconds;
        image.unreported += seconds;
        let done = output.not_finite.map_or(self.table.len(), |step| step + 1);
        self.report_steps(&mut image, done);
        let Self { job, plan, captures, attributions, .. } = self;
        job.callbacks.cancel.check()?;
        let unet = (&executables.compiler.models.unet.config, &plan.denoise.shape);
        attributions.extend(attribution::maps(unet, &plan.references(), image.index, &output.means));
        let latents = image.beginning.finish(&executables.compiler, plan, output, captures)?;
        let (decoded, upcast_vae) = job.stage((Stage::Decode, image.index), &mut self.seconds, |_| {
            decode::run(executables, plan, &latents, captures)
        })?;
        if upcast_vae {
            tracing::warn!(
                "image {} was decoded in f32: in its own type the VAE gave values that are not finite",
                image.index
            );
        }
        let upcast_vae = upcast_vae || self.init_image.as_ref().is_some_and(|init| init.is_upcast());
        // After the last of the weights was read: an image of two versions of a file is none.
        executables.compiler.models.check_unchanged()?;
        if let Some(take) = &mut job.callbacks.on_image {
            let (number, seed) = (image.index, job.request.seed.wrapping_add(image.index as u64));
            take(FinishedImage { image: &decoded, number, seed, upcast_vae });
        }
        let ImageRecord { step_seconds, scales, prompts, .. } = image;
        let (scale_changes, prompt_changes) = (scales.into_changes(), prompts.into_changes());
        self.images.push(DoneImage { image: decoded, upcast_vae, step_seconds, scale_changes, prompt_changes });
        Ok(())
    }

    /// Whether all images are done.
    pub(super) fn is_done(&self) -> bool {
        self.images.len() == self.job.request.num_images
    }

    /// The output of a request that is done, and its job.
    pub(super) fn into_output(self) -> (Output, Job<'a>) {
        let request = &self.job.request;
        let seeds = (0..request.num_images as u64).map(|i| request.seed.wrapping_add(i)).collect();
        let (mut images, mut step_seconds) = (Vec::new(), Vec::new());
        let (mut scale_changes, mut prompt_changes) = (Vec::new(), Vec::new());
        let upcast_vae = self.images.iter().map(|done| done.upcast_vae).collect();
        for mut done in self.images {
            images.push(done.image);
            step_seconds.append(&mut done.step_seconds);
            scale_changes.push(done.scale_changes);
            prompt_changes.push(done.prompt_changes);
        }
        let output = Output {
            images,
            seeds,
            upcast_vae,
            seconds: self.seconds,
            step_seconds,
            scale_changes,
            prompt_changes,
            intermediates: self.captures.into_tensors(),
            attributions: self.attributions,
            truncated_tokens: self.plan.prompt.prompt.truncated_tokens,
        };
        (output, self.job)
    }

    /// The job of a request that has failed.
    pub(super) fn into_job(self) -> Job<'a> {
        self.job
    }
}

/// The parts of a request that all of its images share.
struct Prepared {
    plan: RequestPlan,
    conditioning: Conditioning,
    changed: Vec<Arc<ChangedPrompts>>,
    init_image: Option<Arc<InitImage>>,
    /// The results of encoders, for those that come after it.
    ahead: Held,
}

/// The requests whose prompts and references can be encoded, with their plans; what is wrong with the others they tell themselves.
fn planned<'a>(executables: &mut Executables<'_>, requests: &'a [Arc<Request>]) -> Vec<(&'a Request, RequestPlan)> {
    let mut plan = |request: &Request| {
        request.check()?;
        RequestPlan::new(executables, Room::Unchecked, request)
    };
    // They are planned again, and warnings come then.
    let mut quietly = |request: &'a Request| {
        let plan = with_default(NoSubscriber::new(), || plan(request)).ok()?;
        Some((request, plan))
    };
    requests.iter().filter_map(|request| quietly(request)).collect()
}

/// Runs the stages of a request that all of its images share.
fn prepare(
    executables: &mut Executables<'_>,
    residency: EncoderResidency,
    (job, to_come): (&mut Job<'_>, &[Arc<Request>]),
    (captures, seconds): (&mut Captures, &mut BTreeMap<Stage, f64>),
) -> Result<Prepared> {
    if job.callbacks.is_late() {
        return Err(Error::Late);
    }
    job.request.check()?;
    executables.compiler.device.check()?;
    executables.cache.begin_request();
    let plan = RequestPlan::new(executables, Room::Memory(residency), &job.request)?;
    job.callbacks.cancel.scope(|| plan.compile(executables))?;
    let next = planned(executables, to_come);
    let (texts, concepts, mut ahead) = job.stage((Stage::Text, 0), seconds, |request| {
        let ahead = text::ahead(executables, &plan, next.iter().map(|(_, plan)| plan))?;
        Ok((text::run(executables, &plan, captures)?, text::concepts(executables, request, &plan)?, ahead))
    })?;
    executables.cache.release_encoders();
    let images = job.stage((Stage::Image, 0), seconds, |request| {
        let next = next.iter().map(|(request, plan)| (*request, plan));
        ahead.append(&mut image::ahead(executables, (request, &plan), next)?);
        image::run(executables, (request, &plan), &concepts, captures)
    })?;
    executables.cache.release_encoders();
    let init_image = if job.request.init_image.is_some() {
        let encode = |request: &Request| match &request.init_image {
            Some(image) => init_image::run(executables, request, image, &plan).map(Some),
            None => Ok(None),
        };
        job.stage((Stage::Encode, 0), seconds, encode)?
    } else {
        None
    };
    executables.cache.release_encoders();
    let (conditioning, changed) = job.stage((Stage::Condition, 0), seconds, |request| {
        if request.prompt_changes.is_empty() {
            return Ok((condition::run(executables, &plan, &texts, &images, captures)?, Vec::new()));
        }
        // Each runs the conditioner again, so on a GPU all are copied to places of their own.
        let (conditioning, _) =
            note(executables, |executables| condition::run(executables, &plan, &texts, &images, captures))?;
        let encode = |change: &PromptChange| -> Result<_> {
            let (changed, _) = ChangedPrompts::new(executables, (request, &plan), &change.prompts)?;
            Ok(Arc::new(changed))
        };
        Ok((conditioning, request.prompt_changes.iter().map(encode).collect::<Result<_>>()?))
    })?;
    Ok(Prepared { plan, conditioning, changed, init_image, ahead })
}
