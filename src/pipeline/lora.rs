//! The LoRAs of a pipeline: their updates of each part of the model, and the scales that a request gives them.

use super::request::Request;
use crate::device::TensorData;
use crate::error::{Error, Field, Result};
use crate::graph::{Graph, LORA_SCALES};
use crate::names::counted;
use crate::weights::lora::{Lora, LoraComponent, LoraSet, LoraTargets};
use crate::weights::{Scope, TensorTable, Weights};
use std::sync::Arc;

/// The LoRAs of a pipeline. None of the model's weights is changed: graphs multiply the factors beside them.
#[derive(Default)]
pub(super) struct Loras {
    unet: Arc<LoraSet>,
    text: [Arc<LoraSet>; 2],
    /// The files, for the search of weights that are not finite.
    pub(super) files: Vec<Arc<Weights>>,
}

/// The factors of all rows of each part's updates, see [`LoraSet::scales`].
#[derive(Debug, Default)]
pub(super) struct LoraScales {
    pub(super) unet: Vec<f32>,
    pub(super) text: [Vec<f32>; 2],
}

impl Loras {
    /// Finds the modules of the files in the model's tables.
    ///
    /// # Errors
    /// As [`Lora::read`].
    pub(super) fn new(files: Vec<Weights>, unet: &TensorTable, text: [&TensorTable; 2]) -> Result<Self> {
        let targets = LoraTargets::new(unet, text.map(Vec::as_slice));
        let loras = files.iter().map(|file| Lora::read(file, &targets)).collect::<Result<Vec<_>>>()?;
        let set = |component| Arc::new(LoraSet::new(component, &loras));
        Ok(Self {
            unet: set(LoraComponent::Unet),
            text: [0, 1].map(|encoder| set(LoraComponent::Text(encoder))),
            files: files.into_iter().map(Arc::new).collect(),
        })
    }

    pub(super) fn count(&self) -> usize {
        self.files.len()
    }

    /// The UNet's weights with their updates.
    pub(super) fn unet(&self, scope: Scope) -> Scope {
        scope.with_loras(self.unet.clone())
    }

    /// A text encoder's weights with their updates.
    pub(super) fn text(&self, encoder: usize, scope: Scope) -> Scope {
        scope.with_loras(self.text[encoder].clone())
    }

    /// The factors that a request gives.
    ///
    /// # Errors
    /// [`Error::Parameter`] where the request has more scales than there are LoRAs.
    pub(super) fn scales(&self, request: &Request) -> Result<LoraScales> {
        let given = &request.lora_scales;
        if given.len() > self.count() {
            let what = format!("{} for {}", counted(given.len(), "scale"), counted(self.count(), "LoRA"));
            return Err(Error::parameter(Field::LoraScales, what));
        }
        Ok(LoraScales {
            unet: self.unet.scales(given),
            text: [0, 1].map(|encoder: usize| self.text[encoder].scales(given)),
        })
    }
}

/// The factors as the last input of a graph, where it has updates at all.
pub(super) fn bound<'a>(graph: &Graph, scales: &'a [f32]) -> Option<TensorData<'a>> {
    graph.inputs.last().filter(|(name, _)| name == LORA_SCALES).map(|_| scales.into())
}
