//! The VAE's configuration, read off its tensors.

use super::config::VaeConfig;
use crate::error::Result;
use crate::models::probe::Probe;
use crate::weights::Weights;

impl VaeConfig {
    /// Reads the decoder's sizes off its tensors; the scaling factor is SDXL's.
    ///
    /// # Errors
    /// As [`VaeConfig::from_tensors_like`].
    pub fn from_tensors(weights: &Weights) -> Result<Self> {
        Self::from_tensors_like(weights, None)
    }

    /// Reads the decoder's sizes off its tensors; what they do not tell is `like`'s, or SDXL's: the number of groups, the scaling factor
    /// and whether the encoder's distribution is sampled in f32.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where there are no tensors; [`crate::Error::Tensors`] where tensors that tell sizes
    /// are missing.
    pub fn from_tensors_like(weights: &Weights, like: Option<&Self>) -> Result<Self> {
        let groups = like.map_or(32, |like| like.norm_num_groups);
        let p = Probe::new(weights, "VAE");
        if weights.is_empty() {
            return p.mismatch("the file holds no VAE (first_stage_model.*); a checkpoint with its VAE, or one of another file, is needed");
        }
        let levels = p.count("decoder.up_blocks.");
        let width = |i: usize| p.dim(&format!("decoder.up_blocks.{i}.resnets.0.conv2.weight"), 4, 0);
        let channels = (0..levels).rev().map(width).collect::<Result<Vec<_>>>()?;
        if let Some(c) = channels.iter().find(|&&c| c % groups != 0) {
            return p.mismatch(format!("a level of this VAE is {c} channels wide: not a multiple of {groups}"));
        }
        if channels.is_empty() || channels.len() > 8 {
            return p.mismatch(format!("{levels} levels in the decoder, expected 1 to 8 (SDXL's VAE has 4)"));
        }
        let out_channels = p.dim("decoder.conv_out.weight", 4, 0)?;
        if out_channels != 3 {
            return p.mismatch(format!("this VAE makes images of {out_channels} channels; SDXL's makes 3"));
        }
        Ok(Self {
            out_channels,
            latent_channels: p.dim("decoder.conv_in.weight", 4, 1)?,
            block_out_channels: channels,
            layers_per_block: p.count("decoder.up_blocks.0.resnets.").saturating_sub(1),
            norm_num_groups: groups,
            scaling_factor: like.map_or(Self::SDXL_SCALING_FACTOR, |like| like.scaling_factor),
            // A VAE without its encoder has neither.
            quant_conv: p.has("quant_conv.weight") || !p.has("encoder.conv_in.weight"),
            force_upcast: like.is_none_or(|like| like.force_upcast),
            post_quant_conv: p.has("post_quant_conv.weight"),
            mid_attention: p.count("decoder.mid_block.attentions.") > 0,
        })
    }
}
