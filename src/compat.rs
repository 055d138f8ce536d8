//! Whose arithmetic is followed: every difference between the peers is a field here.

/// A compatibility profile. All code that differs between the peers reads from one of these and asks nothing else.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Compat {
    /// Its name on the command line.
    pub name: &'static str,
    /// `eps` of the group norm in front of the UNet's transformers.
    pub transformer_norm_eps: f32,
    /// `eps` of the VAE decoder's last norm.
    pub vae_out_norm_eps: f32,
    /// The scale of the image strand in the negative row, where it does not follow the request's.
    pub negative_image_scale: Option<f32>,
    /// Whether guidance is skipped only at exactly 1 (DiffSynth) or at all scales up to 1 (diffusers).
    pub guides_below_one: bool,
    /// Whether prompts of more than one row of 77 tokens are encoded row by row (DiffSynth) or truncated (diffusers).
    pub long_prompts: bool,
    /// Sides are rounded up to a multiple of this; where absent they must be divisible by the VAE's factor.
    pub round_sides: Option<usize>,
    /// Whether 0..1 becomes 0..255 by cutting off (DiffSynth) or by rounding (diffusers).
    pub truncate_pixels: bool,
    /// Whether the sampler defaults to DiffSynth's DDIM or to the model's own.
    pub ddim_default: bool,
    /// Whether text is cleaned as transformers 4 does with ftfy.
    pub clean_text: bool,
    /// Whether a hidden state is chosen as DiffSynth counts layers: `clip_skip` layers from the end, 1 and 2 by default.
    pub separate_clip_skip: bool,
    /// Whether the style preset removes the image strand everywhere else in both rows (DiffSynth's instant style keeps the
    /// negative row's scale of 1 in the kept block).
    pub pooled_at_argmax: bool,
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
            long_prompts: false,
            round_sides: None,
            truncate_pixels: false,
            ddim_default: false,
            clean_text: false,
            separate_clip_skip: false,
            pooled_at_argmax: false,
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
            long_prompts: true,
            round_sides: Some(64),
            truncate_pixels: true,
            ddim_default: true,
            clean_text: true,
            separate_clip_skip: true,
            pooled_at_argmax: true,
        }
    }
}

impl Default for Compat {
    fn default() -> Self {
        Self::diffusers()
    }
}
