//! A request under way: what its images share, and what they have become.

use super::attribution::{self, AttributionMap};
use super::captures::Captures;
use super::compile::{Compiler, Executables};
use super::image_scales::ImageScales;
use super::live_scales::ScaleChange;
use super::plan::RequestPlan;
use super::request::{Callbacks, Output, Progress, Request, Stage};
use super::residency::EncoderResidency;
use super::stages::condition::{self, Conditioning};
use super::stages::denoise::{self, Beginning, Denoise};
use super::stages::init_image::{self, InitImage};
use super::stages::{decode, image, text};
use crate::device::{DenoiseOutput, ImageInFlight, TensorRef};
use crate::error::{Error, Result};
use crate::inputs::image::Image;
use crate::models::unet::{DenoiserInterface, InputRole};
use crate::schedulers::StepCoefficients;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

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
    step_seconds: Vec<f64>,
    scale_changes: Vec<ScaleChange>,
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
        let result = work(&self.request)?;
        *seconds.entry(stage).or_default() += begin.elapsed().as_secs_f64();
        self.report(stage, image, [1, 1]);
        Ok(result)
    }

    fn report(&mut self, stage: Stage, image: usize, [done, steps]: [usize; 2]) {
        self.callbacks.report(Progress { stage, image, num_images: self.request.num_images, done, steps });
    }
}

impl<'a> RunningRequest<'a> {
    /// Plans the request, compiles what it runs, and runs its stages up to the conditioning.
    ///
    /// # Errors
    /// See [`super::Pipeline::generate_with`]; with the job.
    pub(super) fn prepare(
        executables: &mut Executables<'_>,
        residency: EncoderResidency,
        mut job: Job<'a>,
    ) -> Result<Self, Box<(Job<'a>, Error)>> {
        let mut captures = Captures::new(job.request.capture_intermediates);
        let mut seconds = BTreeMap::new();
        let prepared = prepare(executables, residency, &mut job, (&mut captures, &mut seconds));
        let (plan, conditioning, init_image) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err(Box::new((job, error))),
        };
        Ok(Self {
            table: plan.table.steps.as_slice().into(),
            lora_scales: Arc::new(plan.lora_scales.unet.clone().into()),
            plan,
            conditioning,
            init_image,
            captures,
            attributions: Vec::new(),
            seconds,
            job,
            begun: 0,
            images: Vec::new(),
        })
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
            conditioning: &self.conditioning,
            init_image: self.init_image.as_deref(),
            preview_every: self.job.callbacks.on_preview.as_ref().map(|on| on.every),
        };
        let begin = Instant::now();
        let (in_flight, beginning) = denoise.begin(&executables.compiler, index);
        self.begun += 1;
        *self.seconds.entry(Stage::Denoise).or_default() += begin.elapsed().as_secs_f64();
        let scales = ImageScales::new(&self.job.request);
        let record = ImageRecord { index, beginning, scales, step_seconds: Vec::new(), unreported: 0.0 };
        Ok(RunningImage { in_flight, record })
    }

    /// Stops the request where that is asked for.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub(super) fn check(&self) -> Result<()> {
        self.job.callbacks.cancel.check()
    }

    /// Sets whether an image's next step has guidance, and makes the changes of scales that are due before it.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a change that cannot be.
    pub(super) fn begin_step(&self, compiler: &Compiler<'_>, image: &mut RunningImage) -> Result<()> {
        let (request, in_flight) = (&self.job.request, &mut image.in_flight);
        let guided = request.is_guided(in_flight.done(), self.table.len());
        if compiler.device.varies_rows() {
            in_flight.guided = guided;
        } else {
            let guidance = [request.guidance_scale, request.guidance_rescale];
            [in_flight.inputs.guidance_scale, in_flight.inputs.guidance_rescale] =
                if guided { guidance } else { [1.0, 0.0] };
        }
        self.change_scales(compiler, image)
    }

    fn change_scales(&self, compiler: &Compiler<'_>, image: &mut RunningImage) -> Result<()> {
        let (request, plan, in_flight) = (&self.job.request, &self.plan, &mut image.in_flight);
        let live = self.job.callbacks.live_scales.as_ref();
        let Some(given) = image.record.scales.advance(request, live, in_flight.done())? else { return Ok(()) };
        let scales = plan.branches.scales_of(compiler, (request, given), &plan.denoise, self.table.len())?;
        let interface = DenoiserInterface::new(&compiler.models.unet.config, &plan.denoise.shape);
        let inputs = interface.inputs.iter().zip(&mut in_flight.inputs.inputs);
        for (_, values) in inputs.filter(|(input, _)| input.role == InputRole::Scales) {
            *values = Arc::new(scales.clone().into());
        }
        Ok(())
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
            let preview = denoise::preview(executables, &self.plan, (record.index, done), &clean)?;
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
    /// [`Error::NotFinite`]; those of the decoder; [`Error::Cancelled`].
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
        let decoded = job.stage((Stage::Decode, image.index), &mut self.seconds, |_| {
            decode::run(executables, plan, &latents, captures)
        })?;
        let ImageRecord { step_seconds, scales, .. } = image;
        self.images.push(DoneImage { image: decoded, step_seconds, scale_changes: scales.into_changes() });
        Ok(())
    }

    /// Whether all images are done.
    pub(super) fn is_done(&self) -> bool {
        self.images.len() == self.job.request.num_images
    }

    /// The output of a request that is done.
    pub(super) fn into_output(self) -> Output {
        let request = &self.job.request;
        let seeds = (0..request.num_images as u64).map(|i| request.seed.wrapping_add(i)).collect();
        let (mut images, mut step_seconds, mut scale_changes) = (Vec::new(), Vec::new(), Vec::new());
        for mut done in self.images {
            images.push(done.image);
            step_seconds.append(&mut done.step_seconds);
            scale_changes.push(done.scale_changes);
        }
        Output {
            images,
            seeds,
            seconds: self.seconds,
            step_seconds,
            scale_changes,
            intermediates: self.captures.into_tensors(),
            attributions: self.attributions,
            truncated_tokens: self.plan.prompt.prompt.truncated_tokens,
        }
    }

    /// The job of a request that has failed.
    pub(super) fn into_job(self) -> Job<'a> {
        self.job
    }
}

/// Runs the stages of a request that all of its images share.
fn prepare(
    executables: &mut Executables<'_>,
    residency: EncoderResidency,
    job: &mut Job<'_>,
    (captures, seconds): (&mut Captures, &mut BTreeMap<Stage, f64>),
) -> Result<(RequestPlan, Conditioning, Option<Arc<InitImage>>)> {
    job.request.check()?;
    executables.cache.begin_request();
    let plan = RequestPlan::new(executables, residency, &job.request)?;
    let cancel = job.callbacks.cancel.clone();
    plan.compile(executables, &cancel)?;
    let (texts, concepts) = job.stage((Stage::Text, 0), seconds, |request| {
        Ok((text::run(executables, &plan, captures)?, text::concepts(executables, request, &plan)?))
    })?;
    executables.cache.release_encoders();
    let images = job.stage((Stage::Image, 0), seconds, |request| {
        image::run(executables, (request, &plan), &concepts, &cancel, captures)
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
    let conditioning =
        job.stage((Stage::Condition, 0), seconds, |_| condition::run(executables, &plan, &texts, &images, captures))?;
    Ok((plan, conditioning, init_image))
}
