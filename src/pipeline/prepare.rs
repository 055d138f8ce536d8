//! Work done ahead of the first request.

use super::build::{self, Plan};
use super::generate;
use super::programs::Programs;
use super::request::Request;
use super::{Pipeline, encode, room};
use crate::error::{Error, Result};
use crate::models::unet::UnetShape;

/// What requests have in common that run the same programs. Prompts, pictures, scales, seeds and samplers differ freely, and
/// fewer tokens, pictures and steps than given here run the same programs, too.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shape {
    /// Width in pixels; the model's own where absent.
    pub width: Option<usize>,
    /// Height in pixels; the model's own where absent.
    pub height: Option<usize>,
    /// Whether there is guidance, which takes a second row.
    pub guided: bool,
    /// The most steps.
    pub steps: usize,
    /// The most rows of 77 tokens of a prompt: more than 1 in the DiffSynth profile alone.
    pub text_rows: usize,
    /// For each adapter the most references of its image prompt; 0 or nothing leaves it unused.
    pub references: Vec<usize>,
    /// Whether references are pictures, which the image encoder takes, and not all of them embeddings.
    pub pictures: bool,
    /// [`Request::clip_skip`].
    pub clip_skip: usize,
}

impl Shape {
    /// The shape of that very request.
    pub(super) fn of(p: &Pipeline, request: &Request) -> Result<Self> {
        let rows = |flag: &str, prompt: &str| Ok(encode::rows(p, flag, prompt)?.0[0].len());
        let guided = p.compat.guides(request.guidance);
        let mut text_rows = rows("--prompt", &request.prompt)?;
        if guided {
            text_rows = text_rows.max(rows("--negative-prompt", request.negative_prompt.as_deref().unwrap_or(""))?);
        }
        Ok(Self {
            width: request.width,
            height: request.height,
            guided,
            steps: request.steps,
            text_rows,
            references: request.images.iter().map(|image| image.references.len()).collect(),
            pictures: request.images.iter().any(|image| image.has_pictures()),
            clip_skip: request.clip_skip,
        })
    }
}

/// The plan of a shape.
pub(super) fn plan(p: &Pipeline, shape: &Shape) -> Result<Plan> {
    if shape.steps == 0 || shape.text_rows == 0 {
        return Err(Error::parameter("--steps", "0 steps or rows of text to prepare; at least 1 is needed"));
    }
    if shape.references.len() > p.adapters() {
        let what = format!("{} image prompts for {} adapters", shape.references.len(), p.adapters());
        return Err(Error::parameter("--ip-adapter-image", what));
    }
    let [height, width] = generate::latent_size(p, shape.width, shape.height)?;
    let adapters: Vec<usize> = (0..shape.references.len()).filter(|&a| shape.references[a] > 0).collect();
    let tokens = |a: &usize| shape.references[*a].checked_mul(p.models.adapters[*a].config.tokens);
    let Some(image_tokens) = adapters.iter().map(tokens).collect() else {
        return Err(Error::parameter("--ip-adapter-image", "more references than can be counted"));
    };
    let batch = if shape.guided { 2 } else { 1 };
    let tokens = encode::tokens(p, shape.text_rows)?;
    Ok(Plan::new(p, UnetShape { batch, height, width, tokens, image_tokens }, shape.steps, adapters))
}

/// Builds and warms every program of a request of that shape. Encoders that go after use are left to the request.
pub(super) fn prepare(p: &Pipeline, programs: &mut Programs, shape: &Shape) -> Result<()> {
    let plan = plan(p, shape)?;
    room::demand(p, programs, &plan, shape)?;
    build::decoder(p, programs, [plan.shape.height, plan.shape.width])?.warm()?;
    let encoders = if programs.free_encoders { 0 } else { 2 };
    for encoder in 0..encoders {
        build::text(p, programs, encoder, shape.clip_skip)?.warm()?;
        if shape.guided && shape.clip_skip > 0 {
            // The negative prompt skips nothing.
            build::text(p, programs, encoder, 0)?.warm()?;
        }
    }
    if shape.pictures && encoders > 0 {
        build::image(p, programs)?.warm()?;
    }
    build::conditioner(p, programs, &plan)?.warm()?;
    build::denoiser(p, programs, &plan.shape, plan.sampler(p))?.warm()?;
    programs.prepared(plan);
    Ok(())
}
