//! From latents to an image.

use crate::device::{TensorRef, denormalize};
use crate::error::{Error, Result};
use crate::inputs::image::Image;
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::plan::RequestPlan;

/// Decodes latents, `[h, w, C]`.
pub(in crate::pipeline) fn run(
    executables: &mut Executables<'_>,
    plan: &RequestPlan,
    latents: &TensorRef<'_>,
    captures: &mut Captures,
) -> Result<Image> {
    let config = &executables.compiler.models.vae.config;
    let [h, w] = plan.latent.map(|side| side * config.scale_factor());
    let decoded = executables.image_decoder(plan.latent)?.decode(latents, captures.enabled())?;
    if !decoded.finite {
        let hint = "the latents are out of its range; check the model file".into();
        return Err(Error::NotFinite { stage: "the VAE".into(), hint });
    }
    let image = || decoded.image.into_iter().map(denormalize).collect();
    captures.add("image", &[1, h, w, config.out_channels], image);
    Image::new(w, h, decoded.rgb)
}
