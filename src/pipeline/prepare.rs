//! Work done ahead of the first request.

use super::compile::{self, RequestPlan};
use super::executable_cache::ExecutableCache;
use super::generate;
use super::request::Request;
use super::{Pipeline, encode, memory_budget};
use crate::error::{Error, Field, Result};
use crate::models::unet::UnetShape;

/// What requests have in common that run the same programs. Prompts, pictures, scales, seeds and samplers differ freely, and
/// fewer tokens, pictures and steps than given here run the same programs, too.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkloadShape {
    /// Width in pixels; the model's own where absent.
    pub width: Option<usize>,
    /// Height in pixels; the model's own where absent.
    pub height: Option<usize>,
    /// Whether there is guidance, which takes a second row.
    pub do_cfg: bool,
    /// The most steps.
    pub steps: usize,
    /// The most rows of 77 tokens of a prompt: more than 1 in the DiffSynth profile alone.
    pub text_rows: usize,
    /// For each adapter the most references of its image prompt; 0 or nothing leaves it unused.
    pub num_references: Vec<usize>,
    /// Whether references are pictures, which the image encoder takes, and not all of them embeddings.
    pub encodes_images: bool,
    /// [`Request::clip_skip`].
    pub clip_skip: usize,
}

impl WorkloadShape {
    /// The shape of that very request.
    pub(super) fn of(p: &Pipeline, request: &Request) -> Result<Self> {
        let rows = |field: Field, prompt: &str| Ok(encode::rows(p, field, prompt)?.0[0].len());
        let guided = p.compat.do_classifier_free_guidance(request.guidance_scale);
        let mut text_rows = rows(Field::Prompt, &request.prompt)?;
        if guided {
            text_rows = text_rows.max(rows(Field::NegativePrompt, request.negative_prompt.as_deref().unwrap_or(""))?);
        }
        Ok(Self {
            width: request.width,
            height: request.height,
            do_cfg: guided,
            steps: request.steps,
            text_rows,
            num_references: request.image_prompts.iter().map(|image| image.references.len()).collect(),
            encodes_images: request.image_prompts.iter().any(|image| image.has_images()),
            clip_skip: request.clip_skip,
        })
    }
}

/// The plan of a shape.
pub(super) fn plan(p: &Pipeline, shape: &WorkloadShape) -> Result<RequestPlan> {
    if shape.steps == 0 || shape.text_rows == 0 {
        return Err(Error::parameter(Field::Steps, "0 steps or rows of text to prepare; at least 1 is needed"));
    }
    if shape.num_references.len() > p.num_adapters() {
        let what = format!("{} image prompts for {} adapters", shape.num_references.len(), p.num_adapters());
        return Err(Error::parameter(Field::ImagePrompts, what));
    }
    let [height, width] = generate::latent_size(p, shape.width, shape.height)?;
    let adapters: Vec<usize> = (0..shape.num_references.len()).filter(|&a| shape.num_references[a] > 0).collect();
    let tokens = |a: &usize| shape.num_references[*a].checked_mul(p.models.adapters[*a].config.num_tokens);
    let Some(image_tokens) = adapters.iter().map(tokens).collect() else {
        return Err(Error::parameter(Field::ImagePrompts, "more references than can be counted"));
    };
    let batch = if shape.do_cfg { 2 } else { 1 };
    let tokens = encode::tokens(p, shape.text_rows)?;
    Ok(RequestPlan::new(p, UnetShape { batch, height, width, tokens, image_tokens }, shape.steps, adapters))
}

/// Builds and warms every program of a request of that shape. Encoders that go after use are left to the request.
pub(super) fn prepare(p: &Pipeline, programs: &mut ExecutableCache, shape: &WorkloadShape) -> Result<()> {
    let plan = plan(p, shape)?;
    memory_budget::require(p, programs, &plan, shape)?;
    compile::decoder(p, programs, [plan.shape.height, plan.shape.width])?.warmup()?;
    let encoders = if programs.free_encoders { 0 } else { 2 };
    for encoder in 0..encoders {
        compile::text(p, programs, encoder, shape.clip_skip)?.warmup()?;
        if shape.do_cfg && shape.clip_skip > 0 {
            // The negative prompt skips nothing.
            compile::text(p, programs, encoder, 0)?.warmup()?;
        }
    }
    if shape.encodes_images && encoders > 0 {
        compile::image(p, programs)?.warmup()?;
    }
    compile::conditioner(p, programs, &plan)?.warmup()?;
    compile::denoiser(p, programs, &plan.shape, plan.sampler(p))?.warmup()?;
    programs.prepared(plan);
    Ok(())
}
