//! The size of the latents.

use super::load::Models;
use super::request::MAX_SIDE;
use crate::compat::Compat;
use crate::error::{Error, Field, Result};

/// Width and height in pixels that a request without sizes gets.
pub(super) fn default_size(models: &Models) -> (usize, usize) {
    let side = models.unet.config.sample_size * models.vae.config.scale_factor();
    (side, side)
}

/// Height and width of the latents of an image of that width and height in pixels.
///
/// # Errors
/// [`Error::Parameter`] for a side that cannot be.
pub(super) fn latent_size(
    models: &Models,
    compat: &Compat,
    asked_width: Option<usize>,
    asked_height: Option<usize>,
) -> Result<[usize; 2]> {
    let (width, height) = default_size(models);
    let factor = models.vae.config.scale_factor();
    let side = |field: Field, asked: Option<usize>, default: usize| {
        let side = asked.unwrap_or(default);
        let bad = |what: String| Err(Error::parameter(field, what));
        if side == 0 || side > MAX_SIDE {
            return bad(format!("{side} given; 1 to {MAX_SIDE} is allowed"));
        }
        match compat.round_sides {
            Some(multiple) => Ok(side.next_multiple_of(multiple.max(factor)) / factor),
            // diffusers asks for 8 whatever the VAE.
            None if !side.is_multiple_of(factor.max(8)) => {
                let step = factor.max(8);
                let near = (side / step * step).max(step);
                bad(format!("{side} is not divisible by {step}; {near} or {} is", near + step))
            }
            None => Ok(side / factor),
        }
    };
    Ok([side(Field::Height, asked_height, height)?, side(Field::Width, asked_width, width)?])
}
