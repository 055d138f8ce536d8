//! Guided images that share evaluations on a GPU: how many a second, and the memory that they take.

use crate::gpus::Gpu;
use crate::prediction::lowering;
use crate::work::{Part, Setting, hollow};
use braid::Error;
use braid::device::cuda::{LoweringOptions, LoweringReport};
use braid::tensor::DType;
use serde::Serialize;

/// The images of a request, each of two rows, and what they take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Throughput {
    /// The images that share evaluations: of one row alone, one.
    images: usize,
    /// A second with the present kernels.
    modelled_images_per_second: Option<f64>,
    /// Bytes of conditioner, denoise loop and decoder with their weights, encoders freed after use; as planned.
    planned_bytes: usize,
}

impl Throughput {
    /// Of a request that should take so many seconds.
    ///
    /// # Errors
    /// If a size does not fit the models.
    pub fn new(setting: &Setting, gpu: &Gpu, modelled_seconds: Option<f64>) -> Result<Self, Error> {
        let images = setting.images();
        // A loop reserves memory for a multiple of 64 steps.
        let setting = Setting { steps: setting.steps.next_multiple_of(64), ..*setting };
        let mut planned_bytes = 0;
        for (part, dtype) in [(Part::Condition, DType::F16), (Part::Unet, DType::F16), (Part::Vae, DType::BF16)] {
            let options = LoweringOptions { dtype, ..lowering(gpu, true, setting.fp8) };
            for graph in setting.models(part, &hollow())? {
                planned_bytes += LoweringReport::of_role(graph, &options, &setting.role(part))?.bytes();
            }
        }
        let modelled_images_per_second = modelled_seconds.map(|seconds| images as f64 / seconds);
        Ok(Self { images, modelled_images_per_second, planned_bytes })
    }

    /// The images in words.
    pub fn name(&self) -> String {
        if self.images == 1 { "an image".into() } else { format!("{} images", self.images) }
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let rate = self.modelled_images_per_second.map_or(String::new(), |rate| format!(", {rate:.3} images a second"));
        format!("{rate}, {:.2} GB with weights (planned)", self.planned_bytes as f64 / 1e9)
    }
}
