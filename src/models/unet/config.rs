//! Sizes and switches of SDXL's UNet, in diffusers' terms.

use super::pruned::PrunedBlocks;
use crate::config_json::Fields;
use crate::error::Result;
use serde_json::{Value, json};
use std::path::Path;

/// The most resnets of a block (SDXL has 2).
const MAX_RESNETS: usize = 16;

/// The SDXL UNet (diffusers' `UNet2DConditionModel` with `addition_embed_type` `text_time`).
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// `in_channels`.
    pub in_channels: usize,
    /// `out_channels`.
    pub out_channels: usize,
    /// `block_out_channels`, one for each level.
    pub block_out_channels: Vec<usize>,
    /// `layers_per_block`: resnets of each down block; up blocks have one more.
    pub layers_per_block: usize,
    /// `transformer_layers_per_block` for each level; 0 where the level's block has no cross-attention.
    pub transformer_layers_per_block: Vec<usize>,
    /// The layers of each block, where `transformer_layers_per_block` does not say them all: it has the most of a down block then.
    pub pruned: Option<PrunedBlocks>,
    /// Attention heads of each level (diffusers' `attention_head_dim`, which holds their number in SDXL).
    pub num_attention_heads: Vec<usize>,
    /// `cross_attention_dim`, the width of a text token.
    pub cross_attention_dim: usize,
    /// `norm_num_groups`.
    pub norm_num_groups: usize,
    /// `norm_eps` of the resnets and of `conv_norm_out`.
    pub norm_eps: f32,
    /// `addition_time_embed_dim`.
    pub addition_time_embed_dim: usize,
    /// `projection_class_embeddings_input_dim`: pooled text and six time ids' embeddings.
    pub projection_class_embeddings_input_dim: usize,
    /// `flip_sin_to_cos` of the timestep embedding.
    pub flip_sin_to_cos: bool,
    /// `freq_shift` of the timestep embedding.
    pub freq_shift: f32,
    /// `sample_size`: the latents' side that the model was trained for.
    pub sample_size: usize,
}

impl UnetConfig {
    /// Whether the sample has, after the latents, a mask and a masked image's latents: a UNet for inpainting.
    pub fn is_inpainting(&self) -> bool {
        self.in_channels == 2 * self.out_channels + 1
    }

    /// Reads `unet/config.json`.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a value that is not supported; [`crate::Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let f = Fields::of_value(path, value)?;
        refuse_other_structures(&f)?;
        let has_attention = levels_with_attention(&f)?;
        let levels = has_attention.len();
        let channels = f.sizes("block_out_channels", &[320, 640, 1280, 1280])?;
        if channels.len() != levels {
            let expected = format!("one entry for each of the {levels} down_block_types is needed");
            return Err(f.refuse("block_out_channels", expected));
        }
        let layers_per_block = f.num_layers("layers_per_block", 2, MAX_RESNETS)?;
        let blocks = PrunedBlocks::from_json(&f, &has_attention, layers_per_block)?;
        let (transformer_layers_per_block, pruned) = blocks.by_level();
        let heads = f.sizes_per_level("attention_head_dim", 8, levels)?;
        if let Some((c, h)) = channels.iter().zip(&heads).find(|(c, h)| *c % *h != 0) {
            let expected = format!("a divisor of the level's {c} channels is needed, not {h}");
            return Err(f.refuse("attention_head_dim", expected));
        }
        let groups = f.size("norm_num_groups", Some(32))?;
        f.divisor("norm_num_groups", groups, "block_out_channels", &channels)?;
        // Half of an embedding is sines, half cosines.
        if channels[0] % 2 != 0 {
            return Err(f.refuse("block_out_channels", "an even first number is needed"));
        }
        let addition_time = f.size("addition_time_embed_dim", None)?;
        if addition_time % 2 != 0 {
            return Err(f.refuse("addition_time_embed_dim", "an even number is needed"));
        }
        let freq_shift = f.float("freq_shift", 0.0)?;
        let half = channels[0].min(addition_time) / 2;
        if freq_shift < 0.0 || freq_shift >= half as f32 {
            return Err(f.refuse("freq_shift", format!("a number from 0 to below {half} is needed")));
        }
        Ok(Self {
            in_channels: f.size("in_channels", Some(4))?,
            out_channels: f.size("out_channels", Some(4))?,
            block_out_channels: channels,
            layers_per_block,
            transformer_layers_per_block,
            pruned,
            num_attention_heads: heads,
            cross_attention_dim: f.uniform_size("cross_attention_dim", 1280)?,
            norm_num_groups: groups,
            norm_eps: f.positive_float("norm_eps", 1e-5)?,
            addition_time_embed_dim: addition_time,
            projection_class_embeddings_input_dim: f.size("projection_class_embeddings_input_dim", None)?,
            flip_sin_to_cos: f.optional_flag("flip_sin_to_cos")?.unwrap_or(true),
            freq_shift,
            // diffusers' pipeline takes 128 where the model has none.
            sample_size: f.uniform_size("sample_size", 128)?,
        })
    }
}

/// Refuses fields that select another structure than SDXL's.
fn refuse_other_structures(f: &Fields<'_>) -> Result<()> {
    f.only("_class_name", &[json!("UNet2DConditionModel")])?;
    if f.present("addition_embed_type") != Some(&json!("text_time")) {
        return Err(f.refuse("addition_embed_type", "\"text_time\" is needed: this is not SDXL's UNet"));
    }
    for (field, allowed) in [
        ("act_fn", &[json!("silu"), json!("swish")][..]),
        ("mid_block_type", &[json!("UNetMidBlock2DCrossAttn"), json!("UNetMidBlock2D")]),
        ("center_input_sample", &[json!(false)]),
        ("only_cross_attention", &[json!(false)]),
        ("mid_block_only_cross_attention", &[json!(false)]),
        ("dual_cross_attention", &[json!(false)]),
        ("class_embeddings_concat", &[json!(false)]),
        ("resnet_skip_time_act", &[json!(false)]),
        ("resnet_time_scale_shift", &[json!("default")]),
        ("time_embedding_type", &[json!("positional")]),
        ("attention_type", &[json!("default")]),
        ("downsample_padding", &[json!(1)]),
        ("mid_block_scale_factor", &[json!(1)]),
        ("resnet_out_scale_factor", &[json!(1)]),
        ("conv_in_kernel", &[json!(3)]),
        ("conv_out_kernel", &[json!(3)]),
        ("class_embed_type", &[]),
        ("num_class_embeds", &[]),
        ("encoder_hid_dim", &[]),
        ("encoder_hid_dim_type", &[]),
        ("num_attention_heads", &[]),
        ("time_embedding_dim", &[]),
        ("time_embedding_act_fn", &[]),
        ("timestep_post_act", &[]),
        ("time_cond_proj_dim", &[]),
        ("cross_attention_norm", &[]),
    ] {
        f.only(field, allowed)?;
    }
    // Null means something else than the default here: a norm without groups.
    for field in ["norm_num_groups", "attention_head_dim"] {
        if f.get(field).is_some_and(Value::is_null) {
            return Err(f.refuse(field, "null is not supported"));
        }
    }
    Ok(())
}

/// Whether each level has cross-attention, of `down_block_types` and `up_block_types`.
fn levels_with_attention(f: &Fields<'_>) -> Result<Vec<bool>> {
    let down = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"];
    let up = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"];
    let down = f.either("down_block_types", &down, "CrossAttnDownBlock2D", "DownBlock2D")?;
    let up = f.either("up_block_types", &up, "CrossAttnUpBlock2D", "UpBlock2D")?;
    if !down.iter().eq(up.iter().rev()) {
        return Err(f.refuse("up_block_types", "the mirror image of down_block_types is supported"));
    }
    if down.last() != Some(&true) {
        // The layers of the middle are the last level's.
        return Err(f.refuse("down_block_types", "a CrossAttnDownBlock2D at the end is supported, as in SDXL"));
    }
    Ok(down)
}
