//! Sizes of the published models: SDXL base 1.0, the image encoder ViT-bigG/14, `ip-adapter_sdxl` and `taesdxl`.

use super::clip::{Activation, ClipTextConfig, ClipVisionConfig};
use super::ip_adapter::AdapterConfig;
use super::taesd::{TaesdConfig, TaesdSide};
use super::unet::UnetConfig;
use super::vae::VaeConfig;

/// SDXL base's UNet.
pub fn unet() -> UnetConfig {
    UnetConfig {
        in_channels: 4,
        out_channels: 4,
        block_out_channels: vec![320, 640, 1280],
        layers_per_block: 2,
        transformer_layers_per_block: vec![0, 2, 10],
        pruned: None,
        num_attention_heads: vec![5, 10, 20],
        cross_attention_dim: 2048,
        norm_num_groups: 32,
        norm_eps: 1e-5,
        addition_time_embed_dim: 256,
        projection_class_embeddings_input_dim: 2816,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        sample_size: 128,
    }
}

/// SDXL's first text encoder, CLIP ViT-L.
pub fn text() -> ClipTextConfig {
    ClipTextConfig {
        hidden_size: 768,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        intermediate_size: 3072,
        activation: Activation::QuickGelu,
        eps: 1e-5,
        vocab_size: 49408,
        added_tokens: 0,
        max_position_embeddings: 77,
        projection_dim: None,
        eos_token_id: 2,
    }
}

/// SDXL's second text encoder, OpenCLIP ViT-bigG.
pub fn text_2() -> ClipTextConfig {
    ClipTextConfig {
        hidden_size: 1280,
        num_hidden_layers: 32,
        num_attention_heads: 20,
        intermediate_size: 5120,
        activation: Activation::Gelu,
        projection_dim: Some(1280),
        ..text()
    }
}

/// SDXL's VAE.
pub fn vae() -> VaeConfig {
    VaeConfig {
        out_channels: 3,
        latent_channels: 4,
        block_out_channels: vec![128, 256, 512, 512],
        layers_per_block: 2,
        norm_num_groups: 32,
        scaling_factor: 0.13025,
        quant_conv: true,
        post_quant_conv: true,
        force_upcast: true,
        mid_attention: true,
    }
}

/// The image encoder of `ip-adapter_sdxl`, OpenCLIP ViT-bigG/14.
pub fn vision() -> ClipVisionConfig {
    ClipVisionConfig {
        hidden_size: 1664,
        num_hidden_layers: 48,
        num_attention_heads: 16,
        intermediate_size: 8192,
        activation: Activation::Gelu,
        eps: 1e-5,
        image_size: 224,
        patch_size: 14,
        projection_dim: 1280,
    }
}

/// `ip-adapter_sdxl`.
pub fn adapter() -> AdapterConfig {
    AdapterConfig {
        embedding_dim: 1280,
        num_tokens: 4,
        cross_attention_dim: 2048,
        widths: unet().cross_attention_widths(),
        resampler: None,
    }
}

/// A half of `taesdxl`.
pub fn taesd(side: TaesdSide) -> TaesdConfig {
    let num_blocks = match side {
        TaesdSide::Encoder => vec![1, 3, 3, 3],
        TaesdSide::Decoder => vec![3, 3, 3, 1],
    };
    TaesdConfig { side, channels: 64, latent_channels: 4, num_blocks, scaling_factor: 1.0 }
}
