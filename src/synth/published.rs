//! Sizes of the published models: SDXL base 1.0, the image encoder ViT-bigG/14 and `ip-adapter_sdxl`.

use crate::models::config::{Activation, AdapterConfig, ClipTextConfig, ClipVisionConfig, UnetConfig, VaeConfig};
use crate::models::fit::cross_attention_widths;

/// SDXL base's UNet.
pub fn unet() -> UnetConfig {
    UnetConfig {
        in_channels: 4,
        out_channels: 4,
        channels: vec![320, 640, 1280],
        layers: 2,
        transformer_layers: vec![0, 2, 10],
        heads: vec![5, 10, 20],
        context: 2048,
        groups: 32,
        eps: 1e-5,
        addition_time: 256,
        addition_input: 2816,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        sample_size: 128,
    }
}

/// SDXL's first text encoder, CLIP ViT-L.
pub fn text() -> ClipTextConfig {
    ClipTextConfig {
        hidden: 768,
        layers: 12,
        heads: 12,
        intermediate: 3072,
        activation: Activation::QuickGelu,
        eps: 1e-5,
        vocab: 49408,
        positions: 77,
        projection: None,
        eos: 2,
    }
}

/// SDXL's second text encoder, OpenCLIP ViT-bigG.
pub fn text_2() -> ClipTextConfig {
    ClipTextConfig {
        hidden: 1280,
        layers: 32,
        heads: 20,
        intermediate: 5120,
        activation: Activation::Gelu,
        projection: Some(1280),
        ..text()
    }
}

/// SDXL's VAE.
pub fn vae() -> VaeConfig {
    VaeConfig {
        out_channels: 3,
        latent_channels: 4,
        channels: vec![128, 256, 512, 512],
        layers: 2,
        groups: 32,
        scaling_factor: 0.13025,
        post_quant_conv: true,
        mid_attention: true,
    }
}

/// The image encoder of `ip-adapter_sdxl`, OpenCLIP ViT-bigG/14.
pub fn vision() -> ClipVisionConfig {
    ClipVisionConfig {
        hidden: 1664,
        layers: 48,
        heads: 16,
        intermediate: 8192,
        activation: Activation::Gelu,
        eps: 1e-5,
        image: 224,
        patch: 14,
        projection: 1280,
    }
}

/// `ip-adapter_sdxl`.
pub fn adapter() -> AdapterConfig {
    AdapterConfig { embedding: 1280, tokens: 4, context: 2048, widths: cross_attention_widths(&unet()) }
}
