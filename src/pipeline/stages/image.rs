//! From image prompts to embeddings.

use crate::error::{Error, Result};
use crate::inputs::clip_image_processor;
use crate::inputs::image::Image;
use crate::inputs::resize::{Resampling, resize};
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::image_prompt::{ImagePrompt, ReferenceImage};
use crate::pipeline::plan::{RequestPlan, check_embedding};
use crate::pipeline::request::{CancelToken, Request};

/// The image embeddings of each adapter in use, `[n, E]`.
pub(in crate::pipeline) fn run(
    executables: &mut Executables<'_>,
    request: &Request,
    plan: &RequestPlan,
    cancel: &CancelToken,
    captures: &mut Captures,
) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::new();
    for &a in &plan.denoise.adapters {
        let ImagePrompt { references, resize: stretch, .. } = &request.image_prompts[a];
        let width = executables.compiler.models.adapters[a].config.embedding_dim;
        let mut embeds = Vec::new();
        for reference in references {
            cancel.check()?;
            let embedding = match &reference.image {
                ReferenceImage::Embedding(values) => values.clone(),
                ReferenceImage::Image(image) => match stretch {
                    Some((w, h)) => encode(executables, &resize(image, *w, *h, Resampling::Bicubic)?)?,
                    None => encode(executables, image)?,
                },
            };
            check_embedding(&embedding, width)?;
            if !embedding.iter().all(|v| v.is_finite()) {
                let hint = "the image or the encoder's weights are damaged".into();
                return Err(Error::NotFinite { stage: "the image encoder".into(), hint });
            }
            embeds.extend(embedding);
        }
        captures.add("image_embeds", &[references.len(), width], || embeds.clone());
        all.push(embeds);
    }
    Ok(all)
}

/// `image_embeds` of an image, `[E]`.
pub(in crate::pipeline) fn encode(executables: &mut Executables<'_>, image: &Image) -> Result<Vec<f32>> {
    let models = executables.compiler.models;
    let executable = executables.image_encoder()?;
    let Some(config) = models.vision.as_ref().map(|vision| &vision.config) else { return Ok(Vec::new()) };
    let pixels = match &models.image_processor {
        Some(processor) => processor.preprocess(image),
        None => clip_image_processor::preprocess(image, config.image_size),
    };
    let mut embeds = vec![0.0; config.projection_dim];
    executable.run(&[pixels.into()], &mut [&mut embeds])?;
    Ok(embeds)
}
