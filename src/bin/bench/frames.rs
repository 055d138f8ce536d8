//! Frames of a stream, as SDXL-Turbo draws them: the prompt stays, and TAESD decodes each frame and, for image to image, encodes it.
//!
//! A frame is a request of its own, one at a time: beside its models' operations stand the nodes that its graphs have besides, the host's
//! launches, the inputs that are bound anew, and the way of pixels and latents between host and device.

use crate::assumptions::{BEGIN, GRAPH, HOST, LEAST, MEMORY};
use crate::gpus::Gpu;
use crate::prediction::{Stage, lowering};
use crate::work::{Part, Setting, hollow};
use braid::Error;
use braid::cli::failure::Failure;
use braid::cli::value::Value;
use braid::device::cuda::LoweringReport;
use serde::Serialize;

/// The kind of a stream, by its name in the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// From noise alone.
    TextToImage,
    /// From an image for each frame.
    ImageToImage,
}

impl Stream {
    /// The value of `--stream`.
    pub fn read(value: &mut Value<'_>) -> Result<Self, Failure> {
        value.choice(&[("txt2img", Self::TextToImage), ("img2img", Self::ImageToImage)])
    }

    fn name(self) -> &'static str {
        match self {
            Self::TextToImage => "txt2img",
            Self::ImageToImage => "img2img",
        }
    }

    /// The parts that each frame runs.
    pub fn parts(self) -> &'static [Part] {
        match self {
            Self::TextToImage => &[Part::Unet, Part::TaesdDecoder],
            Self::ImageToImage => &[Part::TaesdEncoder, Part::Unet, Part::TaesdDecoder],
        }
    }
}

/// The time of a frame, and of a new reference between two frames.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Frames {
    stream: &'static str,
    /// Nodes of a frame's graphs.
    nodes: usize,
    floor_seconds: f64,
    /// The modelled seconds beside the operations.
    around_seconds: f64,
    /// With the seconds beside the operations.
    modelled_seconds: Option<f64>,
    /// One after the other, as modelled.
    frames_per_second: Option<f64>,
    /// From a new reference's pixels to keys and values; 0 without an adapter.
    reference_floor_seconds: f64,
    reference_modelled_seconds: Option<f64>,
}

impl Frames {
    /// The parts that a new reference runs.
    pub const REFERENCE: &'static [Part] = &[Part::Image, Part::Reference];

    /// The frames of a stream whose parts take what `stages` say.
    ///
    /// # Errors
    /// If a size does not fit the models.
    pub fn new(stream: Stream, setting: &Setting, gpu: &Gpu, stages: &[Stage]) -> Result<Self, Error> {
        let frame = Sums::of(stream.parts(), setting, gpu, stages)?;
        let reference = Sums::of(Self::REFERENCE, setting, gpu, stages)?;
        let modelled_seconds = frame.modelled.map(|seconds| seconds + frame.around);
        Ok(Self {
            stream: stream.name(),
            nodes: frame.nodes,
            floor_seconds: frame.floor,
            around_seconds: frame.around,
            modelled_seconds,
            frames_per_second: modelled_seconds.map(|seconds| 1.0 / seconds),
            reference_floor_seconds: reference.floor,
            reference_modelled_seconds: reference.modelled.map(|seconds| seconds + reference.around),
        })
    }

    /// All of it in a few lines.
    pub fn text(&self) -> String {
        let ms = |seconds: f64| format!("{:.2} ms", seconds * 1e3);
        let modelled = |seconds: Option<f64>| seconds.map_or(String::new(), |s| format!(", modelled {}", ms(s)));
        let rate = self.frames_per_second.map_or(String::new(), |rate| {
            format!(" with {} beside the operations: {rate:.0} frames a second", ms(self.around_seconds))
        });
        format!(
            "a frame ({}): {} nodes, floor {}{}{rate}\n\
             a new reference, which acts from the first frame that begins after it: floor {}{}\n",
            self.stream,
            self.nodes,
            ms(self.floor_seconds),
            modelled(self.modelled_seconds),
            ms(self.reference_floor_seconds),
            modelled(self.reference_modelled_seconds),
        )
    }
}

/// Sums over parts, each as often as it runs, at least once.
struct Sums {
    floor: f64,
    modelled: Option<f64>,
    around: f64,
    nodes: usize,
}

impl Sums {
    fn of(parts: &[Part], setting: &Setting, gpu: &Gpu, stages: &[Stage]) -> Result<Self, Error> {
        let mut sums = Self { floor: 0.0, modelled: Some(0.0), around: 0.0, nodes: 0 };
        for part in parts {
            let Some(stage) = stages.iter().find(|stage| stage.part == part.name()) else { continue };
            let runs = stage.runs.max(1);
            sums.floor += runs as f64 * stage.floor_seconds;
            sums.modelled = sums.modelled.zip(stage.modelled_seconds).map(|(sum, one)| sum + runs as f64 * one);
            for graph in setting.models(*part, &hollow())? {
                let elements = |id| graph.node(id).len() as f64;
                let inputs: Vec<f64> = graph.inputs.iter().map(|(_, id)| elements(*id)).collect();
                // f32 to the device; of a decoder bytes from it.
                let host: f64 = match part {
                    Part::TaesdDecoder => graph.outputs.iter().map(|(_, id)| elements(*id)).sum(),
                    Part::Reference => 0.0,
                    _ => 4.0 * inputs.iter().take(1).sum::<f64>(),
                };
                let bound: f64 = if *part == Part::Unet { inputs.iter().skip(1).sum() } else { 0.0 };
                sums.around += host / HOST + bound * BEGIN / (gpu.bandwidth * MEMORY);
                let report = LoweringReport::of_role(graph, &lowering(gpu, true, setting.fp8), &setting.role(*part))?;
                let nodes = report.launches() + report.gemms + report.copies + report.memsets;
                sums.nodes += runs * nodes;
                sums.around += runs as f64 * (GRAPH + nodes.saturating_sub(stage.nodes) as f64 * LEAST);
            }
        }
        Ok(sums)
    }
}
