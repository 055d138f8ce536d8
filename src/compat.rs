//! Compatibility profiles: every difference between diffusers and DiffSynth-Studio is a field here.

use crate::error::{Error, Field, Result};
use crate::inputs::image::AlphaMode;
use crate::inputs::tokenizer::TokenizerProfile;
use std::str::FromStr;

/// A compatibility profile. All code that differs between the two libraries reads a field of one of these
/// and asks nothing else.
///
/// docs/compatibility.md lists the differences and how each was verified.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Compat {
    /// The name on the command line.
    pub name: &'static str,
    /// The `eps` of the group norm in front of the UNet's transformers.
    pub transformer_norm_eps: f32,
    /// The `eps` of the VAE decoder's last norm.
    pub vae_out_norm_eps: f32,
    /// The scale of the image branch in the negative row, where it does not follow the request's.
    pub negative_image_scale: Option<f32>,
    /// Whether guidance at scales below 1 is computed (DiffSynth: skipped only at exactly 1) or skipped (diffusers).
    pub guides_below_one: bool,
    /// The cleaning and cutting of text: truncated at 77 tokens (diffusers), or rows of 77 that are joined (DiffSynth).
    pub tokenizer: TokenizerProfile,
    /// The treatment of an image prompt's transparency; for [`crate::Image::open`].
    pub alpha: AlphaMode,
    /// Whether an absent negative prompt gives zero embeddings where the model asks for it; else it is the empty text.
    pub zero_negative: bool,
    /// Whether the pooled token is always the first greatest id (DiffSynth) or what `eos_token_id` says (diffusers).
    pub pools_at_greatest: bool,
    /// The number whose multiple sides are rounded up to; where absent they must be divisible by the VAE's factor and
    /// by 8.
    pub round_sides: Option<usize>,
    /// Whether the latents of an image to begin with are drawn from the distribution that the VAE gives, or are its mean
    /// (DiffSynth).
    pub samples_image_latents: bool,
    /// Whether the peer has inpainting for SDXL.
    pub inpaints: bool,
    /// Whether 0..1 becomes 0..255 by cutting off (DiffSynth) or by rounding (diffusers).
    pub truncates_pixels: bool,
    /// Whether there are adapters on the encoder's hidden states (IP-Adapter Plus); DiffSynth has the base adapter alone.
    pub plus_adapters: bool,
    /// Whether there are textual inversions.
    pub textual_inversions: bool,
    /// Whether the scheduler, where neither the request nor the model names one, is DiffSynth's DDIM or SDXL's Euler.
    pub diffsynth_scheduler: bool,
}

impl Compat {
    /// diffusers 0.42, the default.
    pub const fn diffusers() -> Self {
        Self {
            name: "diffusers",
            transformer_norm_eps: 1e-6,
            vae_out_norm_eps: 1e-6,
            negative_image_scale: None,
            guides_below_one: false,
            tokenizer: TokenizerProfile::Diffusers,
            alpha: AlphaMode::CompositeOnWhite,
            zero_negative: true,
            pools_at_greatest: false,
            round_sides: None,
            samples_image_latents: true,
            inpaints: true,
            truncates_pixels: false,
            plus_adapters: true,
            textual_inversions: true,
            diffsynth_scheduler: false,
        }
    }

    /// DiffSynth-Studio 1.1.9.
    pub const fn diffsynth() -> Self {
        Self {
            name: "diffsynth",
            transformer_norm_eps: 1e-5,
            vae_out_norm_eps: 1e-5,
            negative_image_scale: Some(1.0),
            guides_below_one: true,
            tokenizer: TokenizerProfile::DiffSynth,
            alpha: AlphaMode::Ignore,
            zero_negative: false,
            pools_at_greatest: true,
            round_sides: Some(64),
            samples_image_latents: false,
            inpaints: false,
            truncates_pixels: true,
            plus_adapters: false,
            textual_inversions: false,
            diffsynth_scheduler: true,
        }
    }

    /// Whether a guidance scale takes classifier-free guidance: two rows an image.
    pub fn do_classifier_free_guidance(&self, scale: f32) -> bool {
        if self.guides_below_one { scale != 1.0 } else { scale > 1.0 }
    }
}

impl Default for Compat {
    fn default() -> Self {
        Self::diffusers()
    }
}

impl FromStr for Compat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "diffusers" => Ok(Self::diffusers()),
            "diffsynth" => Ok(Self::diffsynth()),
            _ => Err(Error::parameter(
                Field::Compat,
                format!("unknown value `{name}` (expected diffusers or diffsynth)"),
            )),
        }
    }
}
