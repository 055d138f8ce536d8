//! The shapes of requests, and work done ahead of the first one.

use super::compile::{Compiler, EncoderPlan, Executables, sizes};
use super::denoise_plan::{DenoisePlan, Placement};
use super::image_branches::{MAX_IMAGE_BRANCHES, PromptBranches, too_many};
use super::image_prompt::ImagePrompt;
use super::latent_size::{RequestedSides, latent_size};
use super::load::Models;
use super::memory_budget::{self, MemoryDemand};
use super::model::Model;
use super::planned_loops::PlannedLoops;
use super::prompt::tokens_of;
use super::prompt_options::PromptWeights;
use super::request::Request;
use super::residency::{EncoderResidency, MemoryEstimate};
use crate::error::{Error, Field, Message, Result};
use crate::models::ip_adapter::AdapterConfig;
use crate::models::unet::UnetShape;
use crate::names::counted;

/// The sizes shared by requests that run the same executables. Prompts, images, scales, seeds and schedulers may differ, and
/// fewer tokens, images and steps than given here run the same executables too.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkloadShape {
    /// Width in pixels; the model's own where absent.
    pub width: Option<usize>,
    /// Height in pixels; the model's own where absent.
    pub height: Option<usize>,
    /// Whether there is guidance, which takes a second row.
    pub do_cfg: bool,
    /// Whether some steps of requests with guidance have none, [`Request::guidance_interval`], or requests without guidance share evaluations
    /// with them ([`crate::Pipeline::generate_batch`], [`crate::Engine`]): evaluations have any number of rows then.
    pub unguided: bool,
    /// The most model evaluations; some schedulers take two in a step.
    pub steps: usize,
    /// The most rows of 77 tokens of a prompt: more than 1 in the DiffSynth profile alone.
    pub text_rows: usize,
    /// For each adapter the most references of its image prompt, 1 where they are averaged; 0 or nothing leaves it unused.
    pub num_references: Vec<usize>,
    /// For each adapter whether its references have a softmax each: exactly so many then, as with [`crate::Combine::Add`] or masks.
    pub separate: Vec<bool>,
    /// For each adapter whether its references have masks.
    pub masked: Vec<bool>,
    /// For each adapter whether there is a [`crate::ImagePrompt::negative_image`], or an encoded reference, which brings that of the
    /// negative row.
    pub negative_images: Vec<bool>,
    /// Whether references are images, which the image encoder takes, and not all of them embeddings.
    pub encodes_images: bool,
    /// The most such images of a request, negative ones included, and at least 1: a GPU encodes several at once.
    pub encoded_images: usize,
    /// The most images of a request.
    pub num_images: usize,
    /// [`Request::clip_skip`].
    pub clip_skip: usize,
    /// Whether the prompts have compel's weights, [`crate::PromptWeights::Compel`].
    pub compel: bool,
    /// Whether requests have a [`Request::init_image`], which the VAE's encoder takes.
    pub init_image: bool,
    /// Whether requests ask for [`Request::attribution`].
    pub attribution: bool,
    /// Hidden states of an image, as embeddings for an IP-Adapter Plus have them; for pipelines without an image encoder.
    pub(super) positions: Option<usize>,
}

/// Hidden states of an image where neither an encoder nor an embedding tells: 16 x 16 patches and the class token.
const POSITIONS: usize = 257;

impl WorkloadShape {
    /// The shape of a request of so many model evaluations whose longest prompt has that many rows.
    pub(super) fn new(
        models: &Models,
        request: &Request,
        steps: usize,
        sides: RequestedSides,
        do_cfg: bool,
        text_rows: usize,
    ) -> Self {
        let prompts: Vec<_> = request.image_prompts.iter().map(PromptBranches::new).collect();
        Self {
            width: sides.width,
            height: sides.height,
            do_cfg,
            unguided: do_cfg && request.guidance_interval.is_some(),
            steps,
            text_rows,
            num_references: prompts.iter().map(|prompt| prompt.num_references).collect(),
            separate: prompts.iter().map(|prompt| prompt.separate).collect(),
            masked: prompts.iter().map(|prompt| prompt.masked).collect(),
            negative_images: request.image_prompts.iter().map(has_negative).collect(),
            encodes_images: request.image_prompts.iter().any(|prompt| prompt.images(do_cfg).next().is_some()),
            encoded_images: request.image_prompts.iter().map(|prompt| prompt.images(do_cfg).count()).sum(),
            num_images: request.num_images,
            clip_skip: request.clip_skip,
            compel: request.prompt_weights == PromptWeights::Compel,
            init_image: request.init_image.is_some(),
            attribution: request.attribution,
            positions: positions(models, request),
        }
    }

    /// The plan by which conditioner and denoise loop are compiled.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a shape that cannot be.
    pub(super) fn denoise_plan(&self, compiler: &Compiler<'_>) -> Result<DenoisePlan> {
        let models = compiler.models;
        if self.steps == 0 || self.text_rows == 0 {
            return Err(Error::parameter(Field::Steps, "0 steps or rows of text to prepare; at least 1 is needed"));
        }
        let (given, known) = (self.num_references.len(), models.adapters.len());
        if given > known {
            let what = format!("{} for {}", counted(given, "image prompt"), counted(known, "adapter"));
            return Err(Error::parameter(Field::ImagePrompts, what));
        }
        let sides = RequestedSides { width: self.width, height: self.height, init_image: self.init_image };
        let [height, width] = latent_size(models, compiler.compat, sides)?;
        let adapters: Vec<usize> = (0..given).filter(|&a| self.num_references[a] > 0).collect();
        let (mut branches, mut attribution) = (Vec::new(), Vec::new());
        for (adapter, &a) in adapters.iter().enumerate() {
            let is = |flags: &[bool]| flags.get(a).copied().unwrap_or_default();
            let (separate, masked) = (is(&self.separate), is(&self.masked));
            let prompt = PromptBranches { num_references: self.num_references[a], separate, masked };
            let each = models.adapters[a].config.num_tokens;
            let own = prompt.shapes(adapter, each)?;
            if self.attribution {
                attribution.extend(own.iter().map(|branch| branch.tokens / each));
            }
            branches.extend(own);
        }
        if branches.len() > MAX_IMAGE_BRANCHES {
            return Err(too_many(branches.len()));
        }
        if self.attribution {
            check_attribution(compiler, branches.len())?;
        }
        let batch = if self.do_cfg { 2 } else { 1 };
        let tokens = tokens_of(models, self.text_rows)?;
        let shape = UnetShape { batch, height, width, tokens, branches, attribution };
        let hidden = adapters.iter().any(|&a| models.adapters[a].config.takes_hidden_states());
        let known = models.vision.as_ref().map(|vision| vision.config.positions()).or(self.positions);
        let positions = if hidden { known.unwrap_or(POSITIONS) } else { 0 };
        Ok(DenoisePlan { shape, max_steps: compiler.device.reserved_steps(self.steps), adapters, positions })
    }

    /// Whether requests of this shape need the encoder's hidden states of a zero image: those of the negative row for an IP-Adapter
    /// Plus, where no image is given for it.
    fn needs_zero_image(&self, models: &Models) -> bool {
        let needs = |(a, adapter): (usize, &Model<AdapterConfig>)| {
            let is_used = self.num_references.get(a).is_some_and(|count| *count > 0);
            let has_negative = self.negative_images.get(a).copied().unwrap_or_default();
            is_used && !has_negative && adapter.config.takes_hidden_states()
        };
        self.do_cfg && models.adapters.iter().enumerate().any(needs)
    }

    /// The encoders that requests of this shape may run.
    ///
    /// # Errors
    /// [`Error::Parameter`] where more layers are skipped than there are.
    pub(super) fn encoders(&self, compiler: &Compiler<'_>) -> Result<EncoderPlan> {
        let mut rows = Vec::new();
        for encoder in 0..2 {
            rows.push((compiler.text_encoder_key(encoder, self.clip_skip, self.compel)?, self.text_rows));
            if self.do_cfg {
                // The negative prompt skips nothing.
                rows.push((compiler.text_encoder_key(encoder, 0, self.compel)?, self.text_rows));
            }
        }
        let images = if self.encodes_images { self.encoded_images.max(1) } else { 0 };
        let zero = usize::from(self.needs_zero_image(compiler.models));
        Ok(EncoderPlan::new(compiler, rows, images.max(zero), self.init_image))
    }

    /// The plans of the requests of this shape, of which the first has the most rows, and their loops.
    fn plans(&self, plan: &DenoisePlan) -> (Vec<DenoisePlan>, PlannedLoops) {
        let unguided = (self.unguided && self.do_cfg).then(|| plan.with_rows(1));
        let loops = PlannedLoops::new(plan, &unguided);
        (std::iter::once(plan.clone()).chain(unguided).collect(), loops)
    }

    /// The bytes of the device's own memory that requests of this shape take; `None` where it has none of its own.
    ///
    /// # Errors
    /// As [`WorkloadShape::prepare`], but for memory.
    pub(super) fn estimate(&self, compiler: &Compiler<'_>) -> Result<Option<MemoryEstimate>> {
        let plan = self.denoise_plan(compiler)?;
        let most = compiler.most_images([plan.shape.height, plan.shape.width]).min(self.num_images);
        let (plans, loops) = self.plans(&plan);
        let each = loops.plans(most, self.num_images, true);
        compiler.estimate(&plans, (&each, loops.image_rows()), Placement::Device, &self.encoders(compiler)?)
    }

    /// Compiles and warms up everything that requests of this shape run. Encoders that are freed after use are left to the request.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a shape that cannot be, [`Error::Memory`].
    pub(super) fn prepare(&self, executables: &mut Executables<'_>, residency: EncoderResidency) -> Result<()> {
        let (plan, placement) = (self.denoise_plan(&executables.compiler)?, Placement::Device);
        let encoders = self.encoders(&executables.compiler)?;
        executables.cache.begin_request();
        let (plans, loops) = self.plans(&plan);
        let demand = MemoryDemand {
            plan: &plan,
            unguided: plans.get(1),
            placement,
            encoders: &encoders,
            images: self.num_images,
            every: true,
        };
        memory_budget::require(executables, residency, &demand)?;
        executables.image_decoder([plan.shape.height, plan.shape.width])?.warmup()?;
        if !executables.cache.free_encoders {
            for (key, most) in encoders.text {
                sizes(most).try_for_each(|rows| executables.text_encoder(key, rows)?.warmup())?;
            }
            sizes(encoders.images).try_for_each(|images| executables.image_encoder(images)?.warmup())?;
            if encoders.vae {
                executables.vae_encoder([plan.shape.height, plan.shape.width])?.warmup()?;
            }
        }
        for plan in &plans {
            for part in plan.conditioning_parts() {
                executables.conditioner(*part, plan, placement)?.warmup()?;
            }
        }
        executables.denoise_loops(&plan, placement, self.num_images)?;
        // Requests of fewer images have executables of their own.
        let most = executables.most_images([plan.shape.height, plan.shape.width]).min(self.num_images);
        let loops = loops.plans(most, self.num_images, true);
        loops.iter().try_for_each(|plan| executables.denoise_loop(plan, placement)?.warmup())?;
        // The newest one comes first.
        plans.into_iter().rev().for_each(|plan| executables.cache.prepared(plan));
        Ok(())
    }
}

/// Checks that the maps of [`Request::attribution`] can be made.
fn check_attribution(compiler: &Compiler<'_>, branches: usize) -> Result<()> {
    let what = if branches == 0 {
        Message::from("there is no reference that could act; give ").field(Field::ImagePrompts).text(" or leave it out")
    } else if !compiler.device.averages_outputs() {
        let device = compiler.device.name();
        Message::from(format!("{device} makes no maps; set ")).setting(Field::Device, "cpu").text(" or leave it out")
    } else {
        return Ok(());
    };
    Err(Error::parameter(Field::Attribution, what))
}

/// Whether the negative row's image comes with the prompt.
fn has_negative(prompt: &ImagePrompt) -> bool {
    prompt.negative_image.is_some() || prompt.zero_image().is_some()
}

/// The hidden states of an image by the length of the request's first embedding of them.
fn positions(models: &Models, request: &Request) -> Option<usize> {
    let prompts = request.image_prompts.iter().zip(&models.adapters);
    let mut embeddings =
        prompts.filter(|(_, adapter)| adapter.config.takes_hidden_states()).flat_map(|(prompt, adapter)| {
            let given = prompt.references.iter().filter_map(|reference| reference.image.embedding());
            given.map(|values| values.len() / adapter.config.embedding_dim)
        });
    embeddings.next().filter(|positions| *positions > 0)
}
