//! The size of the latents.

use super::load::Models;
use super::request::{MAX_SIDE, Request};
use crate::compat::Compat;
use crate::error::{Error, Field, Result};

/// Width and height in pixels that a request without sizes gets.
pub(super) fn default_size(models: &Models) -> (usize, usize) {
    let side = models.unet.config.sample_size * models.vae.config.scale_factor();
    (side, side)
}

/// The sides that are asked for, in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestedSides {
    /// The model's own where absent.
    pub(super) width: Option<usize>,
    /// The model's own where absent.
    pub(super) height: Option<usize>,
    /// Whether there is an image to begin with: diffusers then takes what the VAE does.
    pub(super) init_image: bool,
}

impl RequestedSides {
    /// The request's, else those of the image to begin with; each is rounded down to what the VAE takes where the profile does
    /// not round up. With a mask the image's sides do not count, as in diffusers.
    ///
    /// # Errors
    /// [`Error::Parameter`] for an image that is too small.
    pub(super) fn new(models: &Models, compat: &Compat, request: &Request) -> Result<Self> {
        let factor = if compat.round_sides.is_some() { 1 } else { models.vae.config.scale_factor() };
        let init_image = request.init_image.is_some();
        let Some(image) = request.init_image.as_ref().filter(|_| request.mask.is_none()) else {
            return Ok(Self { width: request.width, height: request.height, init_image });
        };
        let own = [image.width(), image.height()].map(|side| side / factor * factor);
        if own.contains(&0) && (request.width.is_none() || request.height.is_none()) {
            let what = format!("{image:?} is too small: sides of at least {factor} are needed");
            return Err(Error::parameter(Field::InitImage, what));
        }
        let [width, height] = own;
        Ok(Self {
            width: Some(request.width.unwrap_or(width)),
            height: Some(request.height.unwrap_or(height)),
            init_image,
        })
    }
}

/// Height and width of the latents of an image with those sides.
///
/// # Errors
/// [`Error::Parameter`] for a side that cannot be.
pub(super) fn latent_size(models: &Models, compat: &Compat, sides: RequestedSides) -> Result<[usize; 2]> {
    let (width, height) = default_size(models);
    let factor = models.vae.config.scale_factor();
    // diffusers asks for 8 whatever the VAE.
    let step = if sides.init_image { factor } else { factor.max(8) };
    let side = |field: Field, asked: Option<usize>, default: usize| {
        let side = asked.unwrap_or(default);
        let bad = |what: String| Err(Error::parameter(field, what));
        if side == 0 || side > MAX_SIDE {
            return bad(format!("{side} given; 1 to {MAX_SIDE} is allowed"));
        }
        match compat.round_sides {
            Some(multiple) => Ok(side.next_multiple_of(multiple.max(factor)) / factor),
            None if !side.is_multiple_of(step) => {
                let near = (side / step * step).max(step);
                bad(format!("{side} is not divisible by {step}; {near} or {} is", near + step))
            }
            None => Ok(side / factor),
        }
    };
    Ok([side(Field::Height, sides.height, height)?, side(Field::Width, sides.width, width)?])
}

/// Height and width of the latents of a request.
///
/// # Errors
/// [`Error::Parameter`] for a side that cannot be.
pub(super) fn request_size(models: &Models, compat: &Compat, request: &Request) -> Result<[usize; 2]> {
    latent_size(models, compat, RequestedSides::new(models, compat, request)?)
}
