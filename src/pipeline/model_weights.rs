//! The weights of a pipeline, one model after the other.

use super::load::Models;
use crate::cancel;
use crate::error::Result;
use crate::weights::Weights;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

/// A hash of a model's weights.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightsHash {
    /// The model: `unet`, `vae`, `ip_adapter`, the second LoRA `lora_2`.
    pub model: String,
    /// The file that it came from.
    pub path: PathBuf,
    /// The hash.
    pub hash: u128,
}

impl Models {
    /// The weights of all models, by the models' names.
    fn weights(&self) -> Vec<(String, &Arc<Weights>)> {
        let [text, text_2] = &self.text;
        let mut all = vec![("text_encoder".into(), &text.weights), ("text_encoder_2".into(), &text_2.weights)];
        all.extend([("unet".into(), &self.unet.weights), ("vae".into(), &self.vae.weights)]);
        all.push(("vae_encoder".into(), &self.vae_encoder));
        let number = |i: usize, name: &str| if i == 0 { name.to_owned() } else { format!("{name}_{}", i + 1) };
        all.extend(self.taesd.halves().enumerate().map(|(i, model)| (number(i, "taesd"), &model.weights)));
        all.extend(self.vision.iter().map(|model| ("image_encoder".into(), &model.weights)));
        all.extend(self.adapters.iter().enumerate().map(|(i, model)| (number(i, "ip_adapter"), &model.weights)));
        all.extend(self.loras.files.iter().enumerate().map(|(i, file)| (number(i, "lora"), file)));
        all
    }

    /// A hash of each model's weights.
    pub(super) fn hashes(&self, hash: impl Fn(&Weights) -> u128) -> Vec<WeightsHash> {
        let one = |(model, weights): (String, &Arc<Weights>)| WeightsHash {
            model,
            path: weights.path().to_owned(),
            hash: hash(weights),
        };
        self.weights().into_iter().map(one).collect()
    }

    /// Checks that the files that are mapped are as they were when they were opened, LoRAs' and image encoders' among them.
    ///
    /// # Errors
    /// [`crate::Error::Changed`].
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let all = self.weights();
        let mut seen = HashSet::new();
        let storages = all.iter().flat_map(|(_, weights)| weights.iter()).map(|(_, weight)| weight.location().0);
        storages.filter(|storage| seen.insert(Arc::as_ptr(storage))).try_for_each(|storage| storage.check_unchanged())
    }

    /// Weights that are NaN or infinite, as `FILE: NAME`. Reads every byte, so it is for explaining an error, not for loading.
    /// A cancelled search ends after the model that it is at.
    pub(super) fn not_finite(&self) -> Vec<String> {
        let named = |(_, w): (String, &Arc<Weights>)| {
            let path = w.path().display().to_string();
            w.not_finite().into_iter().map(move |name| format!("{path}: {name}"))
        };
        self.weights().into_iter().take_while(|_| !cancel::is_cancelled()).flat_map(named).collect()
    }
}
