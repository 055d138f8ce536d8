//! Configurations of the CLIP encoders, read off their tensors.

use super::config::{Activation, ClipTextConfig, ClipVisionConfig, MAX_IMAGE, MAX_PATCH};
use crate::error::Result;
use crate::models::probe::Probe;
use crate::weights::{Weights, detect::detect};

impl ClipTextConfig {
    /// Reads a text encoder's sizes off its tensors. None of them tells the activation: it is [`Activation::QuickGelu`]
    /// for SDXL's first encoder (CLIP-L), [`Activation::Gelu`] for its second (OpenCLIP bigG).
    ///
    /// # Errors
    /// [`crate::Error::Tensors`] where tensors that tell sizes are missing.
    pub fn from_tensors(weights: &Weights, activation: Activation) -> Result<Self> {
        let p = Probe::new(weights, "text encoder");
        let hidden_size = p.dim("text_model.embeddings.token_embedding.weight", 2, 1)?;
        let projection = p.has("text_projection.weight").then(|| p.dim("text_projection.weight", 2, 0)).transpose()?;
        Ok(Self {
            hidden_size,
            num_hidden_layers: p.count("text_model.encoder.layers."),
            num_attention_heads: (hidden_size / 64).max(1),
            intermediate_size: p.dim("text_model.encoder.layers.0.mlp.fc1.weight", 2, 0)?,
            activation,
            eps: 1e-5,
            vocab_size: p.dim("text_model.embeddings.token_embedding.weight", 2, 0)?,
            added_tokens: 0,
            max_position_embeddings: p.dim("text_model.embeddings.position_embedding.weight", 2, 0)?,
            projection_dim: projection,
            // What SDXL's published configurations of both encoders say.
            eos_token_id: 2,
        })
    }
}

impl ClipVisionConfig {
    /// Reads an image encoder's sizes off its tensors. Heads: 16 for widths 1280 (ViT-H) and 1664 (ViT-bigG), else
    /// width / 64.
    ///
    /// # Errors
    /// [`crate::Error::Tensors`] where tensors that tell sizes are missing; [`crate::Error::Mismatch`] where the file
    /// is another kind.
    pub fn from_tensors(weights: &Weights) -> Result<Self> {
        let p = Probe::new(weights, "image encoder");
        let embedding = "vision_model.embeddings.patch_embedding.weight";
        if !p.has(embedding) {
            let advice = "the image encoder of the IP-Adapter release is needed (image_encoder/model.safetensors)";
            return p.mismatch(format!("this is {}; {advice}", detect(weights)));
        }
        let (hidden_size, patch) = (p.dim(embedding, 4, 0)?, p.dim(embedding, 4, 2)?);
        let positions = p.dim("vision_model.embeddings.position_embedding.weight", 2, 0)?;
        let side = (positions - 1).isqrt();
        if patch > MAX_PATCH || side * patch > MAX_IMAGE {
            return p.mismatch(format!("images of {side} patches of {patch} pixels on a side are too large"));
        }
        if side == 0 || side * side + 1 != positions {
            return p.mismatch(format!("{positions} positions are not a class token and a square of patches"));
        }
        if !p.has("visual_projection.weight") {
            return p.mismatch(
                "this image encoder has no visual_projection; IP-Adapters need CLIPVisionModelWithProjection, the image \
                 encoder of their own release",
            );
        }
        Ok(Self {
            hidden_size,
            num_hidden_layers: p.count("vision_model.encoder.layers."),
            num_attention_heads: if matches!(hidden_size, 1280 | 1664) { 16 } else { (hidden_size / 64).max(1) },
            intermediate_size: p.dim("vision_model.encoder.layers.0.mlp.fc1.weight", 2, 0)?,
            activation: Activation::Gelu,
            eps: 1e-5,
            image_size: side * patch,
            patch_size: patch,
            projection_dim: p.dim("visual_projection.weight", 2, 0)?,
        })
    }
}
