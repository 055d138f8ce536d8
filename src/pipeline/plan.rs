//! A request planned whole, before its first stage runs.

use super::begin::Begin;
use super::compile::{Compiler, EncoderPlan, Executables, sizes};
use super::denoise_plan::{DenoisePlan, Placement};
use super::executable_cache::TextEncoderKey;
use super::image_branches::ImageBranches;
use super::image_scales;
use super::latent_size::{RequestedSides, latent_size};
use super::load::Models;
use super::lora::LoraScales;
use super::memory_budget::{self, MemoryDemand};
use super::prompt::{Prompt, tell_unused_words};
use super::prompt_options::{PromptWeights, time_ids};
use super::reference_check::{check_references, check_texts};
use super::request::{DEFAULT_STRENGTH, Request};
use super::residency::EncoderResidency;
use super::token_row::TokenRow;
use super::workload::WorkloadShape;
use crate::cancel;
use crate::compat::Compat;
use crate::error::{Error, Field, Message, Result};
use crate::names::counted;
use crate::schedulers::{SchedulerConfig, StepTable};

/// A prompt with the encoders that it goes through.
pub(super) struct EncodedPrompt {
    pub(super) prompt: Prompt,
    pub(super) encoders: [TextEncoderKey; 2],
}

/// The negative row.
pub(super) enum NegativePrompt {
    /// There is no guidance.
    Absent,
    /// Zeros in place of embeddings.
    Zeros,
    /// A text, which may be empty.
    Encoded(EncodedPrompt),
}

/// Everything about a request that is decided before its first stage runs.
pub(super) struct RequestPlan {
    pub(super) table: StepTable,
    /// Height and width of the latents.
    pub(super) latent: [usize; 2],
    /// The sizes that the positive and the negative row are conditioned on.
    pub(super) time_ids: [[f32; 6]; 2],
    pub(super) prompt: EncodedPrompt,
    pub(super) negative_prompt: NegativePrompt,
    pub(super) lora_scales: LoraScales,
    /// The inputs of the image branches.
    pub(super) branches: ImageBranches,
    /// The plan by which conditioner and denoise loop are compiled, which may have room for more.
    pub(super) denoise: DenoisePlan,
    pub(super) placement: Placement,
    /// The same for steps without guidance, where there are such.
    unguided: Option<DenoisePlan>,
    /// The images that the image encoder takes; 0 where it does not run.
    encoded_images: usize,
    /// The start of the steps.
    pub(super) begin: Begin,
    num_images: usize,
}

/// The scheduler of a request: the model's own or the profile's, with what the request sets.
pub(super) fn scheduler_config(models: &Models, compat: &Compat, request: &Request) -> Result<SchedulerConfig> {
    let mut config = models.scheduler(request.scheduler, compat)?;
    if let Some(prediction) = request.prediction_type {
        config = config.with_prediction_type(prediction)?;
    }
    if let Some(spacing) = request.timestep_spacing {
        config = config.with_timestep_spacing(spacing)?;
    }
    if let Some(schedule) = request.sigma_schedule {
        config = config.with_sigma_schedule(schedule)?;
    }
    if let Some(eta) = request.eta {
        config = config.with_eta(eta)?;
    }
    Ok(config)
}

/// The coefficients of the steps that are run.
fn step_table(scheduler: &SchedulerConfig, request: &Request) -> Result<StepTable> {
    match request.init_image {
        Some(_) => scheduler.image_to_image_table(request.steps, request.strength.unwrap_or(DEFAULT_STRENGTH)),
        None => scheduler.table(request.steps),
    }
}

/// The timestep of each model evaluation of an image of the request.
pub(super) fn timesteps(models: &Models, compat: &Compat, request: &Request) -> Result<Vec<f32>> {
    let table = step_table(&scheduler_config(models, compat, request)?, request)?;
    Ok(table.steps.iter().map(|row| row.timestep).collect())
}

/// The model evaluations for which executables have room: those of all steps, so that another strength compiles nothing.
fn most_evaluations(scheduler: &SchedulerConfig, request: &Request) -> Result<usize> {
    Ok(scheduler.table(request.steps)?.steps.len())
}

/// The shape of a request.
pub(super) fn workload_shape(models: &Models, compat: &Compat, request: &Request) -> Result<WorkloadShape> {
    let do_cfg = compat.do_classifier_free_guidance(request.guidance_scale);
    let (prompt, negative) = Prompt::both(models, compat, request, do_cfg)?;
    let rows = negative.as_ref().map_or(0, Prompt::num_rows).max(prompt.num_rows());
    let sides = RequestedSides::new(models, compat, request)?;
    let steps = most_evaluations(&scheduler_config(models, compat, request)?, request)?;
    Ok(WorkloadShape::new(models, request, steps, sides, do_cfg, rows))
}

/// The executables that a request is planned for.
#[derive(Clone, Copy)]
pub(super) enum Room<'a> {
    /// Those that there are or that memory has room for.
    Memory(EncoderResidency),
    /// The same, without a look at the memory.
    Unchecked,
    /// Those of a request under way, by its plan.
    Of(&'a DenoisePlan),
}

impl RequestPlan {
    /// Plans a request: shapes, steps, scales, placement. Nothing is compiled.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a request that cannot be, or not in that room; [`Error::Memory`] where its images do not fit the host's
    /// memory, or its executables the device's.
    pub(super) fn new(executables: &mut Executables<'_>, room: Room<'_>, request: &Request) -> Result<Self> {
        let compiler = executables.compiler;
        let (models, compat) = (compiler.models, compiler.compat);
        let scheduler = scheduler_config(models, compat, request)?;
        let table = step_table(&scheduler, request)?;
        let begin = Begin::new(models, compat, request)?;
        let (given, known) = (request.image_prompts.len(), models.adapters.len());
        if given > known {
            let what = format!("{} for {}", counted(given, "image prompt"), counted(known, "adapter"));
            return Err(Error::parameter(Field::ImagePrompts, what));
        }
        image_scales::check_changes(request, &models.unet.config, table.steps.len())?;
        check_prompt_changes(request, table.steps.len())?;
        let lora_scales = models.loras.scales(request)?;
        let sides = RequestedSides::new(models, compat, request)?;
        let latent = latent_size(models, compat, sides)?;
        let time_ids = conditioned_sizes(models, request, latent)?;
        check_noise(request, [models.unet.config.out_channels, latent[0], latent[1]])?;
        let pixels = latent.iter().map(|side| side * models.vae.config.scale_factor()).product();
        memory_budget::require_images(pixels, request.num_images, request.capture_intermediates)?;
        let do_cfg = compat.do_classifier_free_guidance(request.guidance_scale);
        let (prompt, negative) = Prompt::both(models, compat, request, do_cfg)?;
        let rows = negative.as_ref().map_or(0, Prompt::num_rows).max(prompt.num_rows());
        let prompts: Vec<_> = std::iter::once(&prompt).chain(&negative).collect();
        tell_unused_words(models, &prompts);
        let steps = if begin == Begin::Noise { table.steps.len() } else { most_evaluations(&scheduler, request)? };
        let shape = WorkloadShape::new(models, request, steps, sides, do_cfg, rows);
        let own = shape.denoise_plan(&compiler)?;
        let own_branches = own.shape.branches.clone();
        let denoise = match room {
            Room::Memory(_) | Room::Unchecked => executables.cache.covering_plan(own),
            Room::Of(running) => running.room_for(&own)?,
        };
        let adds_noise = table.steps.iter().any(|row| row.adds_noise());
        let fits = compiler.loop_spec(&denoise).noise;
        let placement = if adds_noise && !fits { Placement::Host } else { Placement::Device };
        check_texts(models, request, &denoise)?;
        check_references(&compiler, request, &denoise)?;
        let branches = ImageBranches::new(&compiler, request, &own_branches, &denoise, table.steps.len())?;
        let encoders = needed_encoders(executables, &shape)?;
        let unguided = unguided(request, &denoise);
        if let Room::Memory(residency) = room {
            let demand = MemoryDemand {
                plan: &denoise,
                unguided: unguided.as_ref(),
                placement,
                encoders: &encoders,
                images: request.num_images,
                every: executables.joins,
            };
            memory_budget::require(executables, residency, &demand)?;
        }
        let (prompt, negative_prompt) = encoded_prompts(&compiler, request, prompt, negative)?;
        Ok(Self {
            table,
            latent,
            time_ids,
            prompt,
            negative_prompt,
            branches,
            lora_scales,
            denoise,
            placement,
            unguided,
            encoded_images: if shape.encodes_images { shape.encoded_images } else { encoders.images.min(1) },
            begin,
            num_images: request.num_images,
        })
    }

    /// The rows of all prompts, each once, by the encoder that they go through.
    pub(super) fn token_rows(&self) -> Vec<(TextEncoderKey, Vec<&TokenRow>)> {
        let mut all: Vec<(TextEncoderKey, Vec<&TokenRow>)> = Vec::new();
        let negative =
            if let NegativePrompt::Encoded(negative) = &self.negative_prompt { Some(negative) } else { None };
        for EncodedPrompt { prompt, encoders } in std::iter::once(&self.prompt).chain(negative) {
            for (key, rows) in encoders.iter().zip(&prompt.rows) {
                let known = all.iter().position(|(known, _)| known == key);
                let at = known.unwrap_or(all.len());
                if known.is_none() {
                    all.push((*key, Vec::new()));
                }
                for (_, row) in rows.iter().flat_map(|row| &row.terms) {
                    let same = |other: &&TokenRow| (&other.ids, &other.masked) == (&row.ids, &row.masked);
                    if !all[at].1.iter().any(same) {
                        all[at].1.push(row);
                    }
                }
            }
        }
        all
    }

    /// The encoders that the request runs.
    fn encoders(&self, compiler: &Compiler<'_>) -> EncoderPlan {
        let rows = self.token_rows().into_iter().map(|(key, rows)| (key, rows.len()));
        EncoderPlan::new(compiler, rows, self.encoded_images, self.begin != Begin::Noise)
    }

    /// The plans of its steps: its own and, where some have no guidance, theirs.
    pub(super) fn step_plans(&self) -> Vec<DenoisePlan> {
        std::iter::once(&self.denoise).chain(&self.unguided).cloned().collect()
    }

    /// Compiles what the stages run. Where the encoders are freed after use, all but the decoder is compiled by its stage, when
    /// the ones before have made room for it: [`RequestPlan::new`] has found that this fits.
    ///
    /// # Errors
    /// [`Error::Memory`]; [`Error::Cancelled`] between two of them.
    pub(super) fn compile(&self, executables: &mut Executables<'_>) -> Result<()> {
        cancel::check()?;
        executables.image_decoder(self.latent)?;
        if executables.cache.free_encoders {
            return Ok(());
        }
        let EncoderPlan { text, images, vae } = self.encoders(&executables.compiler);
        for (key, most) in text {
            for rows in sizes(most) {
                cancel::check()?;
                executables.text_encoder(key, rows)?;
            }
        }
        for images in sizes(images) {
            cancel::check()?;
            executables.image_encoder(images)?;
        }
        if vae {
            cancel::check()?;
            executables.vae_encoder(self.latent)?;
        }
        cancel::check()?;
        memory_budget::require_conditioning(executables, &self.denoise, self.placement)?;
        for part in self.denoise.conditioning_parts() {
            executables.conditioner(*part, &self.denoise, self.placement)?;
            cancel::check()?;
        }
        if let Some(unguided) = &self.unguided {
            executables.denoise_loops(unguided, self.placement, self.num_images)?;
        }
        executables.denoise_loops(&self.denoise, self.placement, self.num_images)
    }

    /// The references of all branches in their order, each with the number of its adapter.
    pub(super) fn references(&self) -> Vec<(usize, usize)> {
        let branches = self.denoise.shape.branches.iter().zip(&self.branches.references);
        let of = |adapter: usize| move |reference: usize| (adapter, reference);
        branches.flat_map(|(branch, own)| own.clone().map(of(self.denoise.adapters[branch.adapter]))).collect()
    }

    /// Whether images of both requests can share an evaluation: what all of its rows share must be the same.
    pub(super) fn shares_evaluations(&self, other: &Self) -> bool {
        self.placement == other.placement
            && self.denoise.joins(&other.denoise)
            && self.lora_scales.unet == other.lora_scales.unet
            && self.branches.masks == other.branches.masks
    }
}

/// Checks the steps of a request's changes of prompts for images of so many model evaluations.
fn check_prompt_changes(request: &Request, evaluations: usize) -> Result<()> {
    let Some(late) = request.prompt_changes.iter().find(|change| change.step >= evaluations) else { return Ok(()) };
    let what = format!("a change at step {}, from 0, of an image of {evaluations}", late.step);
    Err(Error::parameter(Field::PromptChanges, what))
}

/// The prompts of a request with their encoders.
fn encoded_prompts(
    compiler: &Compiler<'_>,
    request: &Request,
    prompt: Prompt,
    negative: Option<Prompt>,
) -> Result<(EncodedPrompt, NegativePrompt)> {
    let masked = request.prompt_weights == PromptWeights::Compel;
    let encoded = |prompt, skip| {
        let key = |encoder| compiler.text_encoder_key(encoder, skip, masked);
        let encoders = [key(0)?, key(1)?];
        Ok::<_, Error>(EncodedPrompt { prompt, encoders })
    };
    let (models, compat) = (compiler.models, compiler.compat);
    let zero = compat.zero_negative && models.zero_negative && request.negative_prompt.is_none();
    warn_of_second_prompt(request, zero && negative.is_some());
    let negative_prompt = match negative {
        None => NegativePrompt::Absent,
        Some(_) if zero => NegativePrompt::Zeros,
        // clip_skip is the prompt's alone, as in diffusers.
        Some(negative) => NegativePrompt::Encoded(encoded(negative, 0)?),
    };
    Ok((encoded(prompt, request.clip_skip)?, negative_prompt))
}

/// The encoders that a request of that shape runs.
fn needed_encoders(executables: &Executables<'_>, shape: &WorkloadShape) -> Result<EncoderPlan> {
    let mut encoders = shape.encoders(&executables.compiler)?;
    if executables.compiler.models.vision.is_none() && !shape.encodes_images && encoders.images > 0 {
        return Err(no_zero_image());
    }
    if !shape.encodes_images && executables.cache.zero_image.is_some() {
        encoders.images = 0;
    }
    Ok(if executables.joins { encoders.of_more(&executables.compiler) } else { encoders })
}

/// The plan of steps that have no guidance, in a request that has some.
fn unguided(request: &Request, plan: &DenoisePlan) -> Option<DenoisePlan> {
    let mut plan = plan.clone();
    let has_both = request.guidance_interval.is_some() && plan.shape.batch > 1;
    plan.shape.batch = 1;
    has_both.then_some(plan)
}

/// Tells of a second negative prompt that has no effect, as in diffusers.
fn warn_of_second_prompt(request: &Request, zeros: bool) {
    if zeros && request.negative_prompt_2.is_some() {
        tracing::warn!(
            "negative_prompt_2 has no effect without negative_prompt: this model takes zeros then, as in diffusers"
        );
    }
}

/// The numbers that the positive and the negative row are conditioned on.
fn conditioned_sizes(models: &Models, request: &Request, latent: [usize; 2]) -> Result<[[f32; 6]; 2]> {
    let [height, width] = latent.map(|side| side * models.vae.config.scale_factor());
    let (positive, negative) = (&request.size_conditioning, &request.negative_size_conditioning);
    time_ids(positive, negative, (width, height), request.init_image.is_some())
}

/// Checks the noise that a request brings for latents of that shape.
fn check_noise(request: &Request, [c, h, w]: [usize; 3]) -> Result<()> {
    let Some(noise) = &request.noise else { return Ok(()) };
    let (count, need) = (request.num_images, request.num_images * c * h * w);
    if noise.len() != need {
        let what = format!("`noise` has {} values; {count} images of [{c}, {h}, {w}] need {need}", noise.len());
        return Err(Error::parameter(Field::Noise, what));
    }
    if !noise.iter().all(|v| v.is_finite()) {
        return Err(Error::parameter(Field::Noise, "`noise` holds values that are not finite"));
    }
    Ok(())
}

fn no_zero_image() -> Error {
    let what = Message::from(
        "an image encoder is needed with an IP-Adapter Plus, also where embeddings are given: without a negative image the \
         negative row has its hidden states of a zero image; give its file or folder or a negative image's embedding, or set ",
    );
    Error::parameter(Field::ClipVision, what.setting(Field::GuidanceScale, "1"))
}
