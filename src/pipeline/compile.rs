//! The programs of a request, each built where it is not there yet.

use super::Pipeline;
use super::executable_cache::{ExecutableCache, ExecutableKey};
use super::memory_budget::MemoryEstimate;
use crate::device::{Executable, LoopSteps, Role};
use crate::error::{Error, Field, Result};
use crate::graph::Graph;
use crate::models::clip::{ClipTextShape, clip_text, clip_vision};
use crate::models::ip_adapter::Adapter;
use crate::models::unet::{self, DenoiserInterface, UnetShape, conditioning};
use crate::models::vae::vae_decoder;
use crate::weights::Scope;

/// Steps for which a device's sampler has room come in multiples of this, so that most numbers of steps share a program.
const STEPS: usize = 64;

/// For what the programs from condition to latents are built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestPlan {
    pub(super) shape: UnetShape,
    /// The most steps.
    pub(super) max_steps: usize,
    /// The adapters in use.
    pub(super) adapters: Vec<usize>,
}

impl RequestPlan {
    /// As many steps as are asked for, or as a device's sampler rather has room for.
    pub(super) fn new(p: &Pipeline, shape: UnetShape, steps: usize, adapters: Vec<usize>) -> Self {
        let most = if p.device.has_denoise_loop() { steps.next_multiple_of(STEPS) } else { steps };
        Self { shape, max_steps: most, adapters }
    }

    /// Whether these programs run what another plan asks for.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let (a, b) = (&self.shape, &other.shape);
        let same = (a.batch, a.height, a.width, &self.adapters) == (b.batch, b.height, b.width, &other.adapters);
        same && a.tokens >= b.tokens
            && a.image_tokens.iter().zip(&b.image_tokens).all(|(a, b)| a >= b)
            && self.max_steps >= other.max_steps
    }

    /// The device's sampler; none where it has none.
    pub(super) fn sampler(&self, p: &Pipeline) -> Option<LoopSteps> {
        let config = &p.models.unet.config;
        let bytes = self.max_steps * self.shape.height * self.shape.width * config.in_channels * 4;
        let varying = DenoiserInterface::new(config, &self.shape).varying();
        p.device.has_denoise_loop().then_some(LoopSteps {
            max_steps: self.max_steps,
            varying,
            noise: bytes as u64 <= p.noise_room,
        })
    }
}

/// A text encoder for one row of tokens; `skip` layers from the end, beyond the last one, are left out.
pub(super) fn text<'a>(
    p: &Pipeline,
    programs: &'a mut ExecutableCache,
    encoder: usize,
    skip: usize,
) -> Result<&'a mut dyn Executable> {
    let depth = depth(p, encoder, skip)?;
    programs.get(ExecutableKey::Text { encoder, depth }, || p.device.compile(text_graph(p, encoder, depth)?))
}

/// The layers that run.
fn depth(p: &Pipeline, encoder: usize, skip: usize) -> Result<usize> {
    let layers = p.models.text[encoder].config.num_hidden_layers;
    layers
        .checked_sub(skip.saturating_add(1))
        .filter(|d| *d > 0)
        .ok_or_else(|| Error::parameter(Field::ClipSkip, format!("{skip} given; the text encoder has {layers} layers")))
}

fn text_graph(p: &Pipeline, encoder: usize, depth: usize) -> Result<Graph> {
    let model = &p.models.text[encoder];
    let tokens = p.models.tokenizers[encoder].max_length();
    let scope = Scope::new(model.weights.clone());
    let graph = clip_text(&model.config, &scope, ClipTextShape { rows: 1, tokens, depth, pooled: encoder == 1 })?;
    scope.finish("text encoder")?;
    Ok(graph)
}

/// The image encoder.
pub(super) fn image<'a>(p: &Pipeline, programs: &'a mut ExecutableCache) -> Result<&'a mut dyn Executable> {
    programs.get(ExecutableKey::Image, || p.device.compile(image_graph(p)?))
}

fn image_graph(p: &Pipeline) -> Result<Graph> {
    let vision = p.models.vision.as_ref().ok_or_else(|| {
        Error::parameter(Field::ClipVision, "an image encoder is needed for images; give its file or folder")
    })?;
    let scope = Scope::new(vision.weights.clone());
    let graph = clip_vision(&vision.config, &scope, 1)?;
    scope.finish("image encoder")?;
    Ok(graph)
}

/// What does not depend on the latents.
pub(super) fn conditioner<'a>(
    p: &Pipeline,
    programs: &'a mut ExecutableCache,
    plan: &RequestPlan,
) -> Result<&'a mut dyn Executable> {
    // The picture's size makes no difference here.
    let shape = UnetShape { height: 0, width: 0, ..plan.shape.clone() };
    let key = ExecutableKey::Condition(RequestPlan { shape, ..plan.clone() });
    programs.get(key, || p.device.compile_as(condition_graph(p, plan)?, Role::Condition))
}

fn condition_graph(p: &Pipeline, plan: &RequestPlan) -> Result<Graph> {
    let scope = Scope::new(p.models.unet.weights.clone());
    let used: Vec<_> = plan.adapters.iter().map(|&a| &p.models.adapters[a]).collect();
    let scopes: Vec<Scope> = used.iter().map(|a| Scope::new(a.weights.clone())).collect();
    let adapters: Vec<Adapter<'_>> =
        used.iter().zip(&scopes).map(|(a, scope)| Adapter { config: &a.config, scope }).collect();
    let graph = conditioning(&p.models.unet.config, &scope, &plan.shape, plan.max_steps, &adapters)?;
    scope.finish("UNet")?;
    scopes.iter().try_for_each(|s| s.finish("IP-Adapter").map(drop))?;
    Ok(graph)
}

/// The denoiser, as a sampler where there are `steps`.
pub(super) fn denoiser<'a>(
    p: &Pipeline,
    programs: &'a mut ExecutableCache,
    shape: &UnetShape,
    steps: Option<LoopSteps>,
) -> Result<&'a mut dyn Executable> {
    let key = ExecutableKey::Denoise { shape: shape.clone(), steps: steps.clone() };
    programs.get(key, || {
        let role = steps.clone().map_or(Role::Plain, Role::Denoise);
        short_of("denoise", p, [shape.height, shape.width], p.device.compile_as(unet_graph(p, shape)?, role))
    })
}

fn unet_graph(p: &Pipeline, shape: &UnetShape) -> Result<Graph> {
    let scope = Scope::new(p.models.unet.weights.clone());
    let graph = unet::denoiser(&p.models.unet.config, &scope, shape, &p.compat)?;
    scope.finish("UNet")?;
    Ok(graph)
}

/// The decoder of latents of that height and width.
pub(super) fn decoder<'a>(
    p: &Pipeline,
    programs: &'a mut ExecutableCache,
    latent: [usize; 2],
) -> Result<&'a mut dyn Executable> {
    let [height, width] = latent;
    programs.get(ExecutableKey::Decode { height, width }, || {
        short_of("decode", p, latent, p.device.compile_as(decoder_graph(p, latent)?, decode(p)))
    })
}

fn decode(p: &Pipeline) -> Role {
    Role::Decode { truncate: p.compat.truncates_pixels }
}

fn decoder_graph(p: &Pipeline, [height, width]: [usize; 2]) -> Result<Graph> {
    let scope = Scope::new(p.models.vae.weights.clone());
    let graph = vae_decoder(&p.models.vae.config, &scope, height, width, &p.compat)?;
    scope.finish("VAE decoder")?;
    Ok(graph)
}

/// What the programs of a plan take of the device's own memory; `None` where it has none of its own.
pub(super) fn estimate(
    p: &Pipeline,
    plan: &RequestPlan,
    skip: usize,
    pictures: bool,
) -> Result<Option<MemoryEstimate>> {
    if p.device.free_memory()?.is_none() {
        return Ok(None);
    }
    let mut estimate = MemoryEstimate::default();
    let mut of = |graphs: Vec<(Graph, Role)>| {
        let need = p.device.estimate(graphs)?.unwrap_or_default();
        estimate.staging = estimate.staging.max(need.staging);
        Ok::<u64, Error>(need.bytes)
    };
    let mut texts = Vec::new();
    for encoder in 0..2 {
        let (depth, negative) = (depth(p, encoder, skip)?, depth(p, encoder, 0)?);
        texts.push((text_graph(p, encoder, depth)?, Role::Plain));
        if plan.shape.batch > 1 && negative != depth {
            texts.push((text_graph(p, encoder, negative)?, Role::Plain));
        }
    }
    let text = of(texts)?;
    let image = if pictures { of(vec![(image_graph(p)?, Role::Plain)])? } else { 0 };
    let condition = of(vec![(condition_graph(p, plan)?, Role::Condition)])?;
    let role = plan.sampler(p).map_or(Role::Plain, Role::Denoise);
    let denoise = of(vec![(unet_graph(p, &plan.shape)?, role)])?;
    let decode = of(vec![(decoder_graph(p, [plan.shape.height, plan.shape.width])?, decode(p))])?;
    let estimate = MemoryEstimate { text, image, condition, denoise, decode, ..estimate };
    Ok(Some(estimate))
}

/// Says which size would fit where a program for this one does not: what it takes grows with the number of pixels.
fn short_of(
    stage: &'static str,
    p: &Pipeline,
    latent: [usize; 2],
    program: Result<Box<dyn Executable>>,
) -> Result<Box<dyn Executable>> {
    program.map_err(|error| {
        let Error::Memory { need, have, .. } = error else { return error };
        let factor = p.models.vae.config.scale_factor();
        // A little less, for what does not shrink.
        let ratio = (0.9 * have as f64 / need as f64).sqrt();
        let [h, w] = latent.map(|side| ((side * factor) as f64 * ratio) as usize / 64 * 64);
        let hint = match h.min(w) {
            0 => "free memory or ask for a smaller image".into(),
            _ => format!("about {w}x{h} (width x height) would fit").into(),
        };
        Error::Memory { stage, need, have, hint }
    })
}
