//! A VAE of another file than the model's.

use super::config_file::beside;
use crate::error::{Error, Result};
use crate::models::vae::VaeConfig;
use crate::weights::vae_file::vae_file;
use crate::weights::{OpenOptions, Weights, open};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A VAE in place of the model's own.
pub(super) struct VaeFile {
    weights: Weights,
    /// The `config.json` beside it.
    config: Option<(PathBuf, Value)>,
}

impl VaeFile {
    /// Opens a file, or a folder with one.
    pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        if path.join("model_index.json").is_file() {
            let what = "this is the folder of a whole model; give its vae/";
            return Err(Error::mismatch(path, what));
        }
        let this = Self::of(&open(path, options)?)?;
        Ok(Self { config: beside(path, "AutoencoderKL")?, ..this })
    }

    /// Takes the VAE of tensors.
    pub(super) fn of(file: &Weights) -> Result<Self> {
        Ok(Self { weights: vae_file(file)?, config: None })
    }

    /// The configuration and the tensors. Where no configuration lies beside the file, what sizes do not tell is as the model's
    /// `own` VAE has it.
    pub(super) fn model(self, own: Option<&VaeConfig>) -> Result<(VaeConfig, Weights)> {
        let Some((path, value)) = self.config else {
            return Ok((VaeConfig::from_tensors_like(&self.weights, own)?, self.weights));
        };
        let config = VaeConfig::from_json(&path, &value)?;
        let (stated, expected) =
            (config.scaling_factor, own.map_or(VaeConfig::SDXL_SCALING_FACTOR, |own| own.scaling_factor));
        if stated != expected {
            let path = path.display();
            tracing::warn!(
                "{path}: the scaling factor {stated} counts, as in diffusers; that of the model's own VAE is {expected}"
            );
        }
        Ok((config, self.weights))
    }
}
