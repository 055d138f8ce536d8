//! Sizes and switches of each model, in diffusers' terms.

pub use crate::graph::Activation;

/// A CLIP text encoder (transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`).
#[derive(Debug, Clone, PartialEq)]
pub struct ClipTextConfig {
    /// `hidden_size`.
    pub hidden_size: usize,
    /// `num_hidden_layers`.
    pub num_hidden_layers: usize,
    /// `num_attention_heads`.
    pub num_attention_heads: usize,
    /// `intermediate_size`.
    pub intermediate_size: usize,
    /// `hidden_act`.
    pub activation: Activation,
    /// `layer_norm_eps`.
    pub eps: f32,
    /// `vocab_size`.
    pub vocab_size: usize,
    /// `max_position_embeddings`.
    pub max_position_embeddings: usize,
    /// `projection_dim` where the checkpoint has a `text_projection`.
    pub projection_dim: Option<usize>,
    /// `eos_token_id` as the configuration says it; 2 selects transformers' legacy pooling at argmax(ids).
    pub eos_token_id: u32,
}

/// A CLIP image encoder (transformers' `CLIPVisionModelWithProjection`).
#[derive(Debug, Clone, PartialEq)]
pub struct ClipVisionConfig {
    /// `hidden_size`.
    pub hidden_size: usize,
    /// `num_hidden_layers`.
    pub num_hidden_layers: usize,
    /// `num_attention_heads`.
    pub num_attention_heads: usize,
    /// `intermediate_size`.
    pub intermediate_size: usize,
    /// `hidden_act`.
    pub activation: Activation,
    /// `layer_norm_eps`.
    pub eps: f32,
    /// `image_size`, pixels on a side.
    pub image_size: usize,
    /// `patch_size`.
    pub patch_size: usize,
    /// `projection_dim`.
    pub projection_dim: usize,
}

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

/// The decoder of the VAE (diffusers' `AutoencoderKL`).
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// `out_channels`, of the picture.
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
    /// `use_post_quant_conv`.
    pub post_quant_conv: bool,
    /// `mid_block_add_attention`.
    pub mid_attention: bool,
}

impl VaeConfig {
    /// Pixels to a latent on each side.
    pub fn scale_factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }
}

/// A base IP-Adapter: its projection and one pair of matrices for each cross-attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Width of the image embedding that the projection takes (1280 for ViT-bigG, 1024 for ViT-H).
    pub embedding_dim: usize,
    /// Image tokens to a picture (4).
    pub num_tokens: usize,
    /// Width of an image token, equal to [`UnetConfig::cross_attention_dim`].
    pub cross_attention_dim: usize,
    /// Widths of the cross-attentions in the order of the file's keys.
    pub widths: Vec<usize>,
}
