//! The start of a request's steps: noise, an image, or a masked image.

use super::load::Models;
use super::request::Request;
use crate::compat::Compat;
use crate::error::{Error, Field, Message, Result};

/// The start of a request's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Begin {
    /// Noise.
    Noise,
    /// An image with noise.
    Image,
    /// An image of which a mask's part is drawn anew.
    Inpaint {
        /// The model takes the mask and the masked image's latents as channels of its sample; else the image's latents take the place of
        /// what the mask keeps after each step.
        joins_channels: bool,
        /// The strength is 1: noise, without the image.
        from_noise: bool,
    },
}

impl Begin {
    /// Finds out what a request begins with, and refuses what the model cannot do.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub(super) fn new(models: &Models, compat: &Compat, request: &Request) -> Result<Self> {
        let joins_channels = models.unet.config.is_inpainting();
        if joins_channels && request.mask.is_none() {
            let what = format!(
                "the model of {} is for inpainting: its UNet takes {} channels, which are latents, a mask and a masked image; give ",
                models.unet.path().display(),
                models.unet.config.in_channels
            );
            let what = Message::from(what).field(Field::InitImage).text(" and ").field(Field::Mask);
            return Err(Error::parameter(Field::Mask, what.text(", or another model")));
        }
        if request.init_image.is_none() {
            return Ok(Self::Noise);
        }
        // Tensors of an encoder that is there are checked when it is compiled.
        let encodes = models.vae_encoder.names().any(|name| name.starts_with("encoder."));
        if models.taesd.encoder.is_none() && !encodes {
            let path = models.vae_encoder.path().display();
            let what = format!(
                "the VAE of {path} has no encoder (encoder.*), only a decoder; a model with a whole VAE is needed, or "
            );
            let what = Message::from(what).field(Field::Vae).text(" of another file");
            return Err(Error::parameter(Field::InitImage, what));
        }
        if request.mask.is_none() {
            return Ok(Self::Image);
        }
        if !compat.inpaints {
            let what = Message::from(format!("{}'s SDXL has no inpainting that could be followed; ", compat.name));
            let what = what.text("leave it out, or use ").setting(Field::Compat, "diffusers");
            return Err(Error::parameter(Field::Mask, what));
        }
        Ok(Self::Inpaint { joins_channels, from_noise: request.strength == Some(1.0) })
    }

    /// Whether the image's own latents are needed.
    pub(super) fn encodes_image(self) -> bool {
        match self {
            Self::Noise => false,
            Self::Image => true,
            Self::Inpaint { joins_channels, from_noise } => !joins_channels || !from_noise,
        }
    }
}
