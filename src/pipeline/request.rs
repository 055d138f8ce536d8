//! Requests, and their output.

use super::attribution::AttributionMap;
use super::image_prompt::{ImagePrompt, is_within};
use super::live_prompts::{PromptChange, Prompts};
use super::live_scales::ScaleChange;
use super::prompt_options::{LongPrompts, PromptWeights, SizeConditioning};
use crate::error::{Error, Field, Message, Result};
use crate::inputs::image::Image;
use crate::inputs::noise::RngKind;
use crate::models::ip_adapter::Scales;
use crate::schedulers::{PredictionType, SchedulerKind, SigmaSchedule, TimestepSpacing};
use crate::setters::setters;
use crate::tensor::DType;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The greatest number of images of one request: all are returned at once.
pub const MAX_NUM_IMAGES: usize = 1000;
/// The [`Request::strength`] where none is given.
pub const DEFAULT_STRENGTH: f64 = 0.75;
/// The greatest side of an image, in pixels.
pub const MAX_SIDE: usize = 16_384;

/// The most images that share an evaluation of the UNet.
pub const MAX_BATCH: usize = 64;

/// The most threads of a pipeline.
pub const MAX_THREADS: usize = 1024;

/// A request for images. Start from [`Request::new`] and set what differs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Request {
    /// The description of the image.
    pub prompt: String,
    /// The description of everything that the image should not show. Absent is not the same as empty where the model has `force_zeros_for_empty_prompt`.
    pub negative_prompt: Option<String>,
    /// The prompt of the second text encoder; that of the first where it is absent or empty.
    pub prompt_2: Option<String>,
    /// The negative prompt of the second text encoder, likewise.
    pub negative_prompt_2: Option<String>,
    /// The treatment of prompts of more than 75 tokens.
    pub long_prompts: LongPrompts,
    /// The syntax of weights in all prompts.
    pub prompt_weights: PromptWeights,
    /// The sizes that the positive row is conditioned on.
    pub size_conditioning: SizeConditioning,
    /// The sizes that the negative row is conditioned on; those of the positive one where nothing is given.
    pub negative_size_conditioning: SizeConditioning,
    /// The number of steps; some schedulers evaluate the model twice in each.
    pub steps: usize,
    /// The scale of classifier-free guidance.
    pub guidance_scale: f32,
    /// diffusers' `guidance_rescale`, 0 to 1.
    pub guidance_rescale: f32,
    /// The part of the steps, 0 to 1, in which there is guidance, everywhere where absent: model evaluation i of N has it where
    /// `start <= i / N` and `(i + 1) / N <= end`. The others have the positive row alone, as with a [`Self::guidance_scale`] of 1, and cost
    /// half. Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and
    /// Distribution Quality in Diffusion Models", by steps in place of noise levels.
    pub guidance_interval: Option<(f64, f64)>,
    /// Width in pixels; the model's own where absent.
    pub width: Option<usize>,
    /// Height in pixels; the model's own where absent.
    pub height: Option<usize>,
    /// Seed of the first image; image i has seed + i.
    pub seed: u64,
    /// The number of images.
    pub num_images: usize,
    /// One image prompt for each adapter of the pipeline, in their order; missing ones leave their adapter unused.
    pub image_prompts: Vec<ImagePrompt>,
    /// Scales of image prompts that change between two steps, those of one step in their order.
    pub scale_changes: Vec<ScaleChange>,
    /// Prompts and references that change between two steps; the last ones of a step count.
    pub prompt_changes: Vec<PromptChange>,
    /// The scale of each LoRA of the pipeline, in their order, of either sign; 1 for those that are missing.
    pub lora_scales: Vec<f32>,
    /// The scheduler; the model's own where absent.
    pub scheduler: Option<SchedulerKind>,
    /// The schedule of noise levels; the scheduler's own where absent.
    pub sigma_schedule: Option<SigmaSchedule>,
    /// The meaning of the model's output; as configured where absent.
    pub prediction_type: Option<PredictionType>,
    /// The spacing of timesteps; as configured where absent.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// DDIM's eta, 0 to 1.
    pub eta: Option<f32>,
    /// Layers that the prompt's embedding skips from the end, beyond the last one.
    pub clip_skip: usize,
    /// The generator whose random numbers the noise follows.
    pub rng: RngKind,
    /// The type in which noise is drawn.
    pub noise_dtype: DType,
    /// Noise to use instead of drawing: for each image `[4, h, w]`, before the scheduler's scale.
    pub noise: Option<Vec<f32>>,
    /// The image to begin with, instead of noise alone. It is stretched to the request's size, which is by default its own, each side
    /// rounded down to what the VAE takes.
    pub init_image: Option<Image>,
    /// The part of the steps that is run on [`Self::init_image`], 0 to 1; 0.75 where absent. f64, for the number of steps is its
    /// product with [`Self::steps`], rounded down.
    pub strength: Option<f64>,
    /// The part of [`Self::init_image`] that is drawn anew: white, where the rest is kept. It is stretched to the request's size, which
    /// is by default the model's own, and so is the image; its grey values count from 128 on.
    pub mask: Option<Image>,
    /// Whether [`Output::intermediates`] is filled.
    pub capture_intermediates: bool,
    /// Whether [`Output::attributions`] is filled: the steps take longer and the images are the same. The CPU alone does it.
    pub attribution: bool,
}

impl Request {
    /// 50 steps at guidance 5, seed 0, one image of the model's own size.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            negative_prompt: None,
            prompt_2: None,
            negative_prompt_2: None,
            long_prompts: LongPrompts::default(),
            prompt_weights: PromptWeights::default(),
            size_conditioning: SizeConditioning::default(),
            negative_size_conditioning: SizeConditioning::default(),
            steps: 50,
            guidance_scale: 5.0,
            guidance_rescale: 0.0,
            guidance_interval: None,
            width: None,
            height: None,
            seed: 0,
            num_images: 1,
            image_prompts: Vec::new(),
            scale_changes: Vec::new(),
            prompt_changes: Vec::new(),
            lora_scales: Vec::new(),
            scheduler: None,
            sigma_schedule: None,
            prediction_type: None,
            timestep_spacing: None,
            eta: None,
            clip_skip: 0,
            rng: RngKind::Cpu,
            noise_dtype: DType::F32,
            noise: None,
            init_image: None,
            strength: None,
            mask: None,
            capture_intermediates: false,
            attribution: false,
        }
    }

    setters! {
        /// Sets the negative prompt.
        with_negative_prompt(negative_prompt: impl Into<String> => Some(negative_prompt.into()));
        /// Sets the prompt of the second text encoder.
        with_prompt_2(prompt_2: impl Into<String> => Some(prompt_2.into()));
        /// Sets the negative prompt of the second text encoder.
        with_negative_prompt_2(negative_prompt_2: impl Into<String> => Some(negative_prompt_2.into()));
        /// Sets the treatment of long prompts.
        with_long_prompts(long_prompts: LongPrompts);
        /// Sets the syntax of weights in prompts.
        with_prompt_weights(prompt_weights: PromptWeights);
        /// Sets the sizes that the positive row is conditioned on.
        with_size_conditioning(size_conditioning: SizeConditioning);
        /// Sets the sizes that the negative row is conditioned on.
        with_negative_size_conditioning(negative_size_conditioning: SizeConditioning);
        /// Sets the number of steps.
        with_steps(steps: usize);
        /// Sets the guidance scale.
        with_guidance_scale(guidance_scale: f32);
        /// Sets the guidance rescale, 0 to 1.
        with_guidance_rescale(guidance_rescale: f32);
        /// Sets the part of the steps, 0 to 1, in which there is guidance.
        with_guidance_interval(guidance_interval: (f64, f64) => Some(guidance_interval));
        /// Sets the width in pixels.
        with_width(width: usize => Some(width));
        /// Sets the height in pixels.
        with_height(height: usize => Some(height));
        /// Sets the seed of the first image.
        with_seed(seed: u64);
        /// Sets the number of images.
        with_num_images(num_images: usize);
        /// Sets the scale of each LoRA of the pipeline.
        with_lora_scales(lora_scales: impl Into<Vec<f32>> => lora_scales.into());
        /// Sets the scheduler.
        with_scheduler(scheduler: SchedulerKind => Some(scheduler));
        /// Sets the schedule of noise levels.
        with_sigma_schedule(sigma_schedule: SigmaSchedule => Some(sigma_schedule));
        /// Sets the meaning of the model's output.
        with_prediction_type(prediction_type: PredictionType => Some(prediction_type));
        /// Sets the spacing of timesteps.
        with_timestep_spacing(timestep_spacing: TimestepSpacing => Some(timestep_spacing));
        /// Sets DDIM's eta, 0 to 1.
        with_eta(eta: f32 => Some(eta));
        /// Sets the number of layers that the prompt's embedding skips from the end, beyond the last one.
        with_clip_skip(clip_skip: usize);
        /// Sets the generator whose random numbers the noise follows.
        with_rng(rng: RngKind);
        /// Sets the data type in which noise is drawn.
        with_noise_dtype(noise_dtype: DType);
        /// Sets the noise to use instead of drawing it: `[N, 4, h, w]`, before the scheduler's scale.
        with_noise(noise: Vec<f32> => Some(noise));
        /// Sets the image to begin with.
        with_init_image(init_image: Image => Some(init_image));
        /// Sets the part of the steps that is run on the image to begin with, 0 to 1.
        with_strength(strength: f64 => Some(strength));
        /// Sets the mask of what is drawn anew.
        with_mask(mask: Image => Some(mask));
        /// Sets whether [`Output::intermediates`] is filled.
        with_capture_intermediates(capture_intermediates: bool);
        /// Sets whether [`Output::attributions`] is filled.
        with_attribution(attribution: bool);
    }

    /// Adds the image prompt of the next adapter.
    #[must_use]
    pub fn with_image_prompt(mut self, prompt: ImagePrompt) -> Self {
        self.image_prompts.push(prompt);
        self
    }

    /// Sets the scales of an adapter, by its number, from a model evaluation on, which counts from 0.
    #[must_use]
    pub fn with_scale_change(mut self, step: usize, adapter: usize, scales: impl Into<Scales>) -> Self {
        self.scale_changes.push(ScaleChange { step, adapter, scales: scales.into() });
        self
    }

    /// Sets the prompts and references from a model evaluation on, which counts from 0.
    #[must_use]
    pub fn with_prompt_change(mut self, step: usize, prompts: impl Into<Arc<Prompts>>) -> Self {
        self.prompt_changes.push(PromptChange { step, prompts: prompts.into() });
        self
    }

    /// Its words and references.
    pub fn prompts(&self) -> Prompts {
        Prompts {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            prompt_2: self.prompt_2.clone(),
            negative_prompt_2: self.negative_prompt_2.clone(),
            references: self.image_prompts.iter().map(|prompt| prompt.references.clone()).collect(),
        }
    }

    /// The same request with other words and references.
    ///
    /// # Errors
    /// [`Error::Parameter`] where they are for another number of image prompts.
    pub(super) fn with_prompts(&self, prompts: &Prompts) -> Result<Self> {
        let (given, own) = (prompts.references.len(), self.image_prompts.len());
        if given != own {
            let what =
                format!("references for {given} adapters in place of those of {own} image prompts; give as many");
            return Err(Error::parameter(Field::ImagePrompts, what));
        }
        let mut request = self.clone();
        request.prompt.clone_from(&prompts.prompt);
        request.negative_prompt.clone_from(&prompts.negative_prompt);
        request.prompt_2.clone_from(&prompts.prompt_2);
        request.negative_prompt_2.clone_from(&prompts.negative_prompt_2);
        for (prompt, references) in request.image_prompts.iter_mut().zip(&prompts.references) {
            prompt.references.clone_from(references);
        }
        Ok(request)
    }

    /// Whether a model evaluation, from 0, of that many has guidance where the request has any.
    pub(super) fn is_guided(&self, step: usize, steps: usize) -> bool {
        self.guidance_interval.is_none_or(|(start, end)| is_within([start, end], step, steps))
    }

    /// Checks what can be checked without a model.
    pub(crate) fn check(&self) -> Result<()> {
        let finite = |field: Field, value: f32| match value.is_finite() {
            true => Ok(()),
            false => Err(Error::parameter(field, format!("{value} is not a finite number"))),
        };
        if self.steps == 0 {
            return Err(Error::parameter(Field::Steps, "0 given; at least 1 is needed"));
        }
        finite(Field::GuidanceScale, self.guidance_scale)?;
        finite(Field::GuidanceRescale, self.guidance_rescale)?;
        self.lora_scales.iter().try_for_each(|scale| finite(Field::LoraScales, *scale))?;
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            let what = format!("{} given; 0 to 1 is allowed", self.guidance_rescale);
            return Err(Error::parameter(Field::GuidanceRescale, what));
        }
        if let Some((start, end)) = self.guidance_interval
            && !(0.0 <= start && start <= end && end <= 1.0)
        {
            let what = format!(
                "{start} to {end} given; two numbers of 0 to 1 are allowed, the first no greater than the second"
            );
            return Err(Error::parameter(Field::GuidanceInterval, what));
        }
        if self.strength.is_some() && self.init_image.is_none() {
            let what = Message::from("it is the part of the steps that is run on an image; give ");
            return Err(Error::parameter(Field::Strength, what.field(Field::InitImage).text(" or leave it out")));
        }
        if self.mask.is_some() && self.init_image.is_none() {
            let what = Message::from("it masks an image; give ");
            return Err(Error::parameter(Field::Mask, what.field(Field::InitImage).text(" or leave it out")));
        }
        if self.num_images == 0 || self.num_images > MAX_NUM_IMAGES {
            let what = format!("{} given; 1 to {MAX_NUM_IMAGES} is allowed", self.num_images);
            return Err(Error::parameter(Field::NumImages, what));
        }
        self.image_prompts.iter().try_for_each(ImagePrompt::check)
    }
}

/// A part of a request's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Text encoders.
    Text,
    /// Image encoder.
    Image,
    /// The VAE's encoder, on the image to begin with.
    Encode,
    /// The step-invariant conditioning.
    Condition,
    /// Denoising.
    Denoise,
    /// VAE.
    Decode,
}

impl Stage {
    /// Its name, lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Encode => "encode",
            Self::Condition => "condition",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
        }
    }
}

/// The progress of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The stage under way.
    pub stage: Stage,
    /// The image under way, from 0.
    pub image: usize,
    /// The number of images of the request.
    pub num_images: usize,
    /// The steps of the stage that are done.
    pub done: usize,
    /// All steps of the stage.
    pub steps: usize,
}

/// A tensor of an intermediate result.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Row-major.
    pub data: Vec<f32>,
}

/// The result of a request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// The images.
    pub images: Vec<Image>,
    /// The seed of each.
    pub seeds: Vec<u64>,
    /// Whether the VAE decoded each, or encoded what it began with, in f32, as values of [`crate::PipelineOptions::vae_dtype`] were not finite.
    pub upcast_vae: Vec<bool>,
    /// Seconds of each stage, all images together.
    pub seconds: BTreeMap<Stage, f64>,
    /// Seconds of each step, image after image; images that share an evaluation share its seconds.
    pub step_seconds: Vec<f64>,
    /// The scales of image prompts that have changed between two steps of each image: those of [`Request::scale_changes`], and those that a
    /// [`crate::LiveScales`] has set.
    pub scale_changes: Vec<Vec<ScaleChange>>,
    /// The prompts that have changed between two steps of each image: those of [`Request::prompt_changes`], and those that a
    /// [`crate::LivePrompts`] has set.
    pub prompt_changes: Vec<Vec<PromptChange>>,
    /// Every stage's result under the names of `braid generate --dump`, if asked for.
    pub intermediates: BTreeMap<String, HostTensor>,
    /// The maps of where each reference acted, image by image, if asked for ([`Request::attribution`]).
    pub attributions: Vec<AttributionMap>,
    /// The prompt's tokens beyond the encoder's length, which had no effect.
    pub truncated_tokens: usize,
}
