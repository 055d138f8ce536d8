//! From latents to an image.

use super::upcast::no_room;
use crate::device::{DecodedImage, TensorRef, denormalize};
use crate::error::{Error, Result};
use crate::inputs::image::Image;
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::plan::RequestPlan;

const STAGE: &str = "the VAE";

/// Decodes latents, `[h, w, C]`; also says whether that was done in f32, as the values of the VAE's own type were not finite.
pub(in crate::pipeline) fn run(
    executables: &mut Executables<'_>,
    plan: &RequestPlan,
    latents: &TensorRef<'_>,
    captures: &mut Captures,
) -> Result<(Image, bool)> {
    let config = &executables.compiler.models.vae.config;
    let [h, w] = plan.latent.map(|side| side * config.scale_factor());
    let own = executables.image_decoder(plan.latent)?.decode(latents, captures.enabled())?;
    let upcast = if own.finite { None } else { upcast(executables, plan, latents, captures)? };
    let is_upcast = upcast.is_some();
    let decoded = upcast.unwrap_or(own);
    if !decoded.finite {
        let hint = "the latents are out of its range; check the model file".into();
        return Err(Error::NotFinite { stage: STAGE.into(), hint });
    }
    let image = || decoded.image.into_iter().map(denormalize).collect();
    captures.add("image", &[1, h, w, config.out_channels], image);
    Ok((Image::new(w, h, decoded.rgb)?, is_upcast))
}

/// Decodes latents in f32; `None` where that is the VAE's type.
fn upcast(
    executables: &mut Executables<'_>,
    plan: &RequestPlan,
    latents: &TensorRef<'_>,
    captures: &Captures,
) -> Result<Option<DecodedImage>> {
    let decoder = executables.upcast_image_decoder(plan.latent).map_err(|error| no_room(STAGE, error))?;
    decoder.map(|decoder| decoder.decode(latents, captures.enabled())).transpose()
}
