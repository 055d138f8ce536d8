//! Sizes and switches of the CLIP encoders, in transformers' terms.

use crate::config_json::Fields;
use crate::error::Result;
pub use crate::graph::Activation;
use serde_json::{Value, json};
use std::path::Path;

/// The most layers of a CLIP encoder (bigG's image encoder has 48).
const MAX_LAYERS: usize = 256;
/// The longest side of an image encoder's image, in pixels; the published ones take 224 or 336.
pub(super) const MAX_IMAGE: usize = 4096;
/// The longest side of a patch, in pixels; the published ones take 14 to 32.
pub(super) const MAX_PATCH: usize = 128;

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
    /// Tokens behind the vocabulary, whose embeddings are a tensor of their own: vectors of textual inversions.
    pub added_tokens: usize,
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

/// The activation of a CLIP encoder.
fn activation(f: &Fields<'_>) -> Result<Activation> {
    match f.present("hidden_act").map_or(Some("quick_gelu"), Value::as_str) {
        Some("gelu") => Ok(Activation::Gelu),
        Some("quick_gelu") => Ok(Activation::QuickGelu),
        _ => Err(f.refuse("hidden_act", "gelu and quick_gelu are supported")),
    }
}

/// The sizes that both CLIP encoders have: width, layers, heads, width of the perceptron.
fn encoder_sizes(f: &Fields<'_>, defaults: [usize; 4]) -> Result<[usize; 4]> {
    let names = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"];
    let mut out = [0; 4];
    for ((out, name), default) in out.iter_mut().zip(names).zip(defaults) {
        *out = f.size(name, Some(default))?;
    }
    f.num_layers(names[1], defaults[1], MAX_LAYERS)?;
    if out[0] % out[2] != 0 {
        return Err(f.refuse(names[2], format!("a divisor of hidden_size, {}, is needed", out[0])));
    }
    Ok(out)
}

/// The part of a `CLIPConfig` that the model's own class takes from it.
fn nested<'a>(value: &'a Value, part: &str) -> &'a Value {
    match value.get(part) {
        Some(inner) if value.get("model_type").and_then(Value::as_str) == Some("clip") => inner,
        _ => value,
    }
}

impl ClipTextConfig {
    /// Reads `text_encoder/config.json` or `text_encoder_2/config.json`. [`Self::projection_dim`] is set where
    /// `architectures` says `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a value that is not supported; [`crate::Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let projected =
            value["architectures"].as_array().is_some_and(|a| a.contains(&json!("CLIPTextModelWithProjection")));
        let f = Fields::of_value(path, nested(value, "text_config"))?;
        f.only("model_type", &[json!("clip_text_model"), json!("clip")])?;
        let [hidden_size, layers, heads, intermediate] = encoder_sizes(&f, [512, 12, 8, 2048])?;
        Ok(Self {
            hidden_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            intermediate_size: intermediate,
            activation: activation(&f)?,
            eps: f.positive_float("layer_norm_eps", 1e-5)?,
            vocab_size: f.size("vocab_size", Some(49408))?,
            added_tokens: 0,
            max_position_embeddings: f.size("max_position_embeddings", Some(77))?,
            projection_dim: if projected { Some(f.size("projection_dim", Some(512))?) } else { None },
            eos_token_id: match f
                .get("eos_token_id")
                .map_or(Some(49407), Value::as_u64)
                .and_then(|v| u32::try_from(v).ok())
            {
                Some(eos) => eos,
                None => return Err(f.refuse("eos_token_id", "one token's number is supported")),
            },
        })
    }
}

impl ClipVisionConfig {
    /// Reads `image_encoder/config.json`.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a value that is not supported; [`crate::Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let f = Fields::of_value(path, nested(value, "vision_config"))?;
        f.only("model_type", &[json!("clip_vision_model"), json!("clip")])?;
        f.only("num_channels", &[json!(3)])?;
        let [hidden_size, layers, heads, intermediate] = encoder_sizes(&f, [768, 12, 12, 3072])?;
        let (image, patch) = (f.uniform_size("image_size", 224)?, f.uniform_size("patch_size", 32)?);
        if image > MAX_IMAGE {
            return Err(f.refuse("image_size", format!("at most {MAX_IMAGE} is supported")));
        }
        if image < patch || patch > MAX_PATCH {
            return Err(
                f.refuse("patch_size", format!("a size within the image's {image} and up to {MAX_PATCH} is needed"))
            );
        }
        Ok(Self {
            hidden_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            intermediate_size: intermediate,
            activation: activation(&f)?,
            eps: f.positive_float("layer_norm_eps", 1e-5)?,
            image_size: image,
            patch_size: patch,
            projection_dim: f.size("projection_dim", Some(512))?,
        })
    }
}
