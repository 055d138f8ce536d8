//! The UNet's configuration, read off its tensors.

use super::config::UnetConfig;
use super::pruned::PrunedBlocks;
use crate::error::Result;
use crate::models::probe::Probe;
use crate::weights::Weights;

impl UnetConfig {
    /// Reads the UNet's sizes off its tensors. `pooled` is the width of the pooled text (`projection_dim` of the second
    /// text encoder), from which the width of the time ids' embedding follows; 256 where it is not given or does not
    /// fit.
    ///
    /// # Errors
    /// [`crate::Error::Tensors`] where tensors that tell sizes are missing; [`crate::Error::Mismatch`] where this is
    /// not a UNet of SDXL's structure.
    pub fn from_tensors(weights: &Weights, pooled: Option<usize>) -> Result<Self> {
        let p = Probe::new(weights, "UNet");
        let in_channels = p.dim("conv_in.weight", 4, 1)?;
        if !p.has("add_embedding.linear_1.weight") {
            return p
                .mismatch("this UNet takes no pooled text and time ids, so it is not SDXL's; an SDXL UNet is needed");
        }
        let levels = p.count("down_blocks.");
        if levels == 0 {
            return p.mismatch("this UNet has no down blocks; an SDXL UNet is needed");
        }
        let mut channels = Vec::new();
        for i in 0..levels {
            channels.push(p.dim(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 4, 0)?);
        }
        let layers = p.count("down_blocks.0.resnets.");
        let (transformer_layers_per_block, pruned) = PrunedBlocks::from_tensors(&p, levels, layers)?.by_level();
        let key = p.names.iter().find(|n| n.ends_with(".attn2.to_k.weight"));
        let Some(key) = key else {
            return p.mismatch("this UNet has no cross-attention; an SDXL UNet is needed");
        };
        let cross_attention_dim = p.dim(key, 2, 1)?;
        let addition_input = p.dim("add_embedding.linear_1.weight", 2, 1)?;
        let rest =
            addition_input.checked_sub(pooled.unwrap_or(0)).filter(|r| pooled.is_some() && *r > 0 && r % 12 == 0);
        let config = Self {
            in_channels,
            out_channels: p.dim("conv_out.weight", 4, 0)?,
            num_attention_heads: channels.iter().map(|c| (c / 64).max(1)).collect(),
            block_out_channels: channels,
            layers_per_block: layers,
            transformer_layers_per_block,
            pruned,
            cross_attention_dim,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            addition_time_embed_dim: rest.map_or(256, |r| r / 6),
            projection_class_embeddings_input_dim: addition_input,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            sample_size: 128,
        };
        match config
            .block_out_channels
            .iter()
            .zip(&config.num_attention_heads)
            .find(|&(c, heads)| c % 32 != 0 || c % heads != 0)
        {
            Some((c, heads)) => p.mismatch(format!(
                "a level of this UNet is {c} channels wide: not a multiple of 32 groups and {heads} heads"
            )),
            None => Ok(config),
        }
    }
}
