//! From image prompts to what the adapters' projections take.

use crate::error::{Error, Result};
use crate::inputs::clip_image_processor;
use crate::inputs::image::Image;
use crate::inputs::resize::{Resampling, resize};
use crate::models::ip_adapter::AdapterConfig;
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::image_prompt::{ImagePrompt, ReferenceImage};
use crate::pipeline::plan::{RequestPlan, check_embedding};
use crate::pipeline::request::{CancelToken, Request};
use std::sync::Arc;

/// The images of one adapter in use: embeddings `[E]`, or hidden states `[T, E]`.
pub(in crate::pipeline) struct AdapterImages {
    /// All of the positive row.
    pub(in crate::pipeline) positive: Vec<f32>,
    /// One of the negative row, which stands there in the place of each; zeros where it is absent.
    pub(in crate::pipeline) negative: Option<Arc<[f32]>>,
}

/// The images of each adapter in use.
pub(in crate::pipeline) fn run(
    executables: &mut Executables<'_>,
    request: &Request,
    plan: &RequestPlan,
    cancel: &CancelToken,
    captures: &mut Captures,
) -> Result<Vec<AdapterImages>> {
    let mut all = Vec::new();
    for &a in &plan.denoise.adapters {
        let ImagePrompt { references, resize: stretch, .. } = &request.image_prompts[a];
        let (adapter, positions) = (&executables.compiler.models.adapters[a].config, plan.denoise.positions);
        let mut positive = Vec::new();
        for reference in references {
            cancel.check()?;
            let embedding = match &reference.image {
                ReferenceImage::Embedding(values) => values.clone(),
                ReferenceImage::Image(image) => match stretch {
                    Some((w, h)) => encode(executables, &resize(image, *w, *h, Resampling::Bicubic)?)?.of(adapter),
                    None => encode(executables, image)?.of(adapter),
                },
            };
            check_embedding(&embedding, adapter, positions)?;
            finite(&embedding)?;
            positive.extend(embedding);
        }
        let (count, width) = (references.len(), adapter.embedding_dim);
        let mut negative = None;
        if adapter.takes_hidden_states() {
            captures.add("image_hidden", &[count, positions, width], || positive.clone());
            if plan.denoise.shape.batch == 2 {
                cancel.check()?;
                negative = Some(zero_image(executables)?);
            }
        } else {
            captures.add("image_embeds", &[count, width], || positive.clone());
        }
        all.push(AdapterImages { positive, negative });
    }
    Ok(all)
}

fn finite(values: &[f32]) -> Result<()> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    let hint = "the image or the encoder's weights are damaged".into();
    Err(Error::NotFinite { stage: "the image encoder".into(), hint })
}

/// The encoder's results for an image; those that no adapter takes are empty.
pub(in crate::pipeline) struct Encoded {
    /// `image_embeds`, `[P]`.
    embeds: Vec<f32>,
    /// `image_hidden`, `[T, C]`.
    hidden: Vec<f32>,
}

impl Encoded {
    /// The result that an adapter takes.
    pub(in crate::pipeline) fn of(self, adapter: &AdapterConfig) -> Vec<f32> {
        if adapter.takes_hidden_states() { self.hidden } else { self.embeds }
    }
}

/// Encodes an image.
pub(in crate::pipeline) fn encode(executables: &mut Executables<'_>, image: &Image) -> Result<Encoded> {
    let models = executables.compiler.models;
    let size = models.image_encoder()?.config.image_size;
    let pixels = match &models.image_processor {
        Some(processor) => processor.preprocess(image),
        None => clip_image_processor::preprocess(image, size),
    };
    encode_pixels(executables, &pixels)
}

/// The hidden states of an image whose normalised pixels are 0, made once.
fn zero_image(executables: &mut Executables<'_>) -> Result<Arc<[f32]>> {
    if let Some(known) = &executables.cache.zero_image {
        return Ok(known.clone());
    }
    let size = executables.compiler.models.image_encoder()?.config.image_size;
    let Encoded { hidden, .. } = encode_pixels(executables, &vec![0.0; size * size * 3])?;
    finite(&hidden)?;
    let hidden: Arc<[f32]> = hidden.into();
    executables.cache.zero_image = Some(hidden.clone());
    Ok(hidden)
}

fn encode_pixels(executables: &mut Executables<'_>, pixels: &[f32]) -> Result<Encoded> {
    let models = executables.compiler.models;
    let outputs = models.vision_outputs();
    let config = &models.image_encoder()?.config;
    let mut encoded = Encoded { embeds: Vec::new(), hidden: Vec::new() };
    let mut bound: Vec<&mut [f32]> = Vec::new();
    if outputs.embeds {
        encoded.embeds.resize(config.projection_dim, 0.0);
        bound.push(&mut encoded.embeds);
    }
    if outputs.hidden {
        encoded.hidden.resize(config.positions() * config.hidden_size, 0.0);
        bound.push(&mut encoded.hidden);
    }
    executables.image_encoder()?.run(&[pixels.into()], &mut bound)?;
    Ok(encoded)
}
