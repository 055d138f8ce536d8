//! Sizes of TAESD, read off its tensors.

use crate::config_json::{Fields, MAX_SIZE};
use crate::error::{Error, Result};
use crate::weights::Weights;
use serde_json::{Value, json};
use std::path::Path;

/// The half of an autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaesdSide {
    /// From images to latents.
    Encoder,
    /// From latents to images.
    Decoder,
}

impl TaesdSide {
    /// The beginning of its tensors' names.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Encoder => "encoder.layers.",
            Self::Decoder => "decoder.layers.",
        }
    }

    /// Its name in errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encoder => "TAESD encoder",
            Self::Decoder => "TAESD decoder",
        }
    }
}

/// One half of TAESD.
#[derive(Debug, Clone, PartialEq)]
pub struct TaesdConfig {
    /// The half.
    pub side: TaesdSide,
    /// Channels between the first and the last convolution.
    pub channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// The residual blocks of each level, in the order in which they run.
    pub num_blocks: Vec<usize>,
    /// `scaling_factor`, 1 in the published files.
    pub scaling_factor: f32,
}

/// The most levels, and blocks of a level (TAESD has 4 of at most 3).
const MOST: usize = 16;

impl TaesdConfig {
    /// Pixels to a latent on each side.
    pub fn scale_factor(&self) -> usize {
        1 << self.num_blocks.len().saturating_sub(1)
    }

    /// Reads one half off the tensors with diffusers' names; `None` where there is none of it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the tensors are those of another autoencoder.
    pub fn from_tensors(weights: &Weights, side: TaesdSide) -> Result<Option<Self>> {
        let prefix = side.prefix();
        if !weights.names().any(|name| name.starts_with(prefix)) {
            return Ok(None);
        }
        let has = |layer: usize, rest: &str| weights.contains(&format!("{prefix}{layer}.{rest}"));
        // The decoder has an activation after its first convolution and an upsampling before that of each further level.
        let (first, between) = match side {
            TaesdSide::Encoder => (1, 0),
            TaesdSide::Decoder => (2, 1),
        };
        let (mut layer, mut num_blocks) = (first, Vec::new());
        loop {
            let blocks = (0..=MOST).take_while(|i| has(layer + i, "conv.0.weight")).count();
            num_blocks.push(blocks);
            layer += blocks + between;
            // The last convolution alone has a bias; the decoder's has no upsampling before it.
            let last = layer - between;
            if has(last, "bias") {
                layer = last;
                break;
            }
            if !has(layer, "weight") || num_blocks.len() > MOST || blocks > MOST {
                return Err(unknown(weights, side, layer));
            }
            layer += 1;
        }
        let shape = |layer: usize| match weights.get(&format!("{prefix}{layer}.weight")).map(|weight| weight.shape()) {
            Some(&[outputs, inputs, 3, 3]) if (1..=MAX_SIZE).contains(&outputs) && (1..=MAX_SIZE).contains(&inputs) => {
                Ok([outputs, inputs])
            }
            _ => Err(unknown(weights, side, layer)),
        };
        let ([channels, inputs], [outputs, _]) = (shape(0)?, shape(layer)?);
        let (image, latent_channels) = match side {
            TaesdSide::Encoder => (inputs, outputs),
            TaesdSide::Decoder => (outputs, inputs),
        };
        if image != 3 {
            let what = format!("the {} is for images of {image} channels; those of 3 are supported", side.name());
            return Err(Error::mismatch(weights.path(), what));
        }
        Ok(Some(Self { side, channels, latent_channels, num_blocks, scaling_factor: 1.0 }))
    }

    /// Reads the `scaling_factor` of a `config.json`, and refuses what the graphs do not have.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is not supported; [`Error::Malformed`] for what is no object.
    pub fn scaling_factor_of(path: &Path, value: &Value) -> Result<f32> {
        let f = Fields::of_value(path, value)?;
        f.only("_class_name", &[json!("AutoencoderTiny")])?;
        f.only("act_fn", &[json!("relu")])?;
        f.only("upsample_fn", &[json!("nearest")])?;
        f.only("upsampling_scaling_factor", &[json!(2)])?;
        f.positive_float("scaling_factor", 1.0)
    }
}

fn unknown(weights: &Weights, side: TaesdSide, layer: usize) -> Error {
    let what = format!(
        "the {} is not TAESD's: layer {layer} ({}{layer}.*) is no 3x3 convolution; taesdxl is needed",
        side.name(),
        side.prefix()
    );
    Error::mismatch(weights.path(), what)
}
