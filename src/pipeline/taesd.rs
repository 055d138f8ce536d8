//! TAESD in the place of the VAE.

use super::config_file::beside;
use super::model::Model;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::models;
use crate::models::taesd::{TaesdConfig, TaesdSide};
use crate::models::vae::VaeConfig;
use crate::weights::taesd_file::taesd;
use crate::weights::{OpenOptions, Scope, Weights, open};
use std::path::Path;

/// The halves that a file has; the VAE does the work of one that is missing.
#[derive(Default)]
pub(super) struct Taesd {
    pub(super) encoder: Option<Model<TaesdConfig>>,
    pub(super) decoder: Option<Model<TaesdConfig>>,
}

impl Taesd {
    /// Opens a file or a folder with one, for latents of that VAE.
    pub(super) fn open(path: &Path, vae: &VaeConfig, options: &OpenOptions) -> Result<Self> {
        let file = open(path, options)?;
        let scaling_factor = match beside(path, "AutoencoderTiny")? {
            Some((config, value)) => TaesdConfig::scaling_factor_of(&config, &value)?,
            None => 1.0,
        };
        Self::of(&file, vae, scaling_factor)
    }

    /// Takes the halves of tensors.
    pub(super) fn of(file: &Weights, vae: &VaeConfig, scaling_factor: f32) -> Result<Self> {
        let weights = taesd(file)?;
        let half = |side: TaesdSide| {
            let Some(config) = TaesdConfig::from_tensors(&weights, side)? else { return Ok(None) };
            fits(&config, file.path(), vae)?;
            let mut own = Weights::new(file.path());
            for (name, weight) in weights.iter().filter(|(name, _)| name.starts_with(side.prefix())) {
                own.insert(name, weight.clone())?;
            }
            let table = config.tensors();
            Model::new(TaesdConfig { scaling_factor, ..config }, own, side.name(), table, &[]).map(Some)
        };
        Ok(Self { encoder: half(TaesdSide::Encoder)?, decoder: half(TaesdSide::Decoder)? })
    }

    pub(super) fn halves(&self) -> impl Iterator<Item = &Model<TaesdConfig>> {
        self.encoder.iter().chain(&self.decoder)
    }
}

impl Model<TaesdConfig> {
    /// The graph of a half for latents of that height and width.
    pub(super) fn graph(&self, [height, width]: [usize; 2]) -> Result<Graph> {
        let scope = Scope::new(self.weights.clone());
        let graph = models::taesd::taesd(&self.config, &scope, height, width)?;
        scope.finish(self.config.side.name())?;
        Ok(graph)
    }
}

/// Refuses a half for other latents than the VAE's.
fn fits(config: &TaesdConfig, path: &Path, vae: &VaeConfig) -> Result<()> {
    let (have, need) = ((config.latent_channels, config.scale_factor()), (vae.latent_channels, vae.scale_factor()));
    if have == need {
        return Ok(());
    }
    let like = if have.0 == 16 { ", as that of Stable Diffusion 3 or Flux" } else { "" };
    let what = format!(
        "the {} is for latents of {} channels with {} pixels to a latent{like}; the model's have {} and {}: taesdxl is needed",
        config.side.name(),
        have.0,
        have.1,
        need.0,
        need.1
    );
    Err(Error::mismatch(path, what))
}
