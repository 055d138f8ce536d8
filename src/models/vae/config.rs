//! Sizes and switches of the VAE, in diffusers' terms.

use crate::config_json::Fields;
use crate::error::Result;
use serde_json::{Value, json};
use std::path::Path;

/// The most resnets of a block (SDXL has 2).
const MAX_RESNETS: usize = 16;

/// The VAE (diffusers' `AutoencoderKL`).
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// `out_channels`, of the image.
    pub out_channels: usize,
    /// `latent_channels`.
    pub latent_channels: usize,
    /// `block_out_channels`, encoder order.
    pub block_out_channels: Vec<usize>,
    /// `layers_per_block`; the decoder's blocks have one more.
    pub layers_per_block: usize,
    /// `norm_num_groups`.
    pub norm_num_groups: usize,
    /// `scaling_factor`.
    pub scaling_factor: f32,
    /// `use_quant_conv`.
    pub quant_conv: bool,
    /// `use_post_quant_conv`.
    pub post_quant_conv: bool,
    /// `force_upcast`: the encoder's distribution is sampled in f32, whatever type noise is drawn in.
    pub force_upcast: bool,
    /// `mid_block_add_attention`.
    pub mid_attention: bool,
}

impl VaeConfig {
    /// The scaling factor of SDXL's VAE.
    pub const SDXL_SCALING_FACTOR: f32 = 0.13025;

    /// Channels of the deepest level.
    pub(super) fn deepest_channels(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or(0)
    }

    /// Pixels to a latent on each side.
    pub fn scale_factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }
}

impl VaeConfig {
    /// Reads `vae/config.json`.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a value that is not supported; [`crate::Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let f = Fields::of_value(path, value)?;
        f.only("_class_name", &[json!("AutoencoderKL")])?;
        f.only("act_fn", &[json!("silu"), json!("swish")])?;
        f.only("out_channels", &[json!(3)])?;
        for field in ["latents_mean", "latents_std", "shift_factor"] {
            f.only(field, &[])?;
        }
        let ups = f.either("up_block_types", &["UpDecoderBlock2D"], "UpDecoderBlock2D", "UpDecoderBlock2D")?;
        f.either("down_block_types", &["DownEncoderBlock2D"], "DownEncoderBlock2D", "DownEncoderBlock2D")?;
        let channels = f.sizes("block_out_channels", &[64])?;
        if channels.len() != ups.len() || channels.len() > 8 {
            return Err(f.refuse(
                "block_out_channels",
                format!("one entry for each of the {} up_block_types, at most 8, is needed", ups.len()),
            ));
        }
        let groups = f.size("norm_num_groups", Some(32))?;
        f.divisor("norm_num_groups", groups, "block_out_channels", &channels)?;
        Ok(Self {
            out_channels: 3,
            latent_channels: f.size("latent_channels", Some(4))?,
            block_out_channels: channels,
            layers_per_block: f.num_layers("layers_per_block", 1, MAX_RESNETS)?,
            norm_num_groups: groups,
            scaling_factor: f.positive_float("scaling_factor", 0.18215)?,
            quant_conv: f.optional_flag("use_quant_conv")?.unwrap_or(true),
            force_upcast: f.optional_flag("force_upcast")?.unwrap_or(true),
            post_quant_conv: f.optional_flag("use_post_quant_conv")?.unwrap_or(true),
            mid_attention: f.optional_flag("mid_block_add_attention")?.unwrap_or(true),
        })
    }
}
