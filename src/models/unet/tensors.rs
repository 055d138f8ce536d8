//! The UNet's tensors, by building its graphs over a recording scope.

use super::conditioning::{ConditioningPart, conditioning};
use super::config::UnetConfig;
use super::denoiser::denoiser;
use super::interface::UnetShape;
use crate::compat::Compat;
use crate::weights::{Scope, TensorTable};

impl UnetConfig {
    /// Names and shapes of the UNet's tensors: those of the conditioning, then those of the denoiser.
    pub fn tensors(&self) -> TensorTable {
        let scope = Scope::recording();
        let shape =
            UnetShape { batch: 1, height: 1, width: 1, tokens: 1, branches: Vec::new(), attribution: Vec::new() };
        // The graphs are thrown away, so whether their sizes fit together is a question for those who run them.
        let _ = conditioning(self, &scope, &shape, 1, &[], ConditioningPart::ALL);
        let _ = denoiser(self, &scope, &shape, &Compat::diffusers());
        scope.declared()
    }
}
