//! Devices: what runs a graph.

pub mod cpu;
pub mod cuda;
mod tensors;

pub use tensors::{DeviceBuffer, DeviceTensor, TensorRef};

use crate::error::Result;
use crate::graph::Graph;
use std::ops::Range;

/// The target of the events that tell, at the level of debugging, that weights were copied to a device's own memory: `seconds`
/// and `bytes`. It happens while a program is made.
pub const UPLOADS: &str = "braid::uploads";

/// Something that runs graphs.
pub trait Device: Send + Sync {
    /// The device as a user would name it.
    fn name(&self) -> String;

    /// Prepares a graph: after this a run allocates no memory for tensors.
    ///
    /// # Errors
    /// Where memory is short or an operation is not supported.
    fn compile(&self, graph: Graph) -> Result<Box<dyn Executable>>;

    /// As [`Device::compile`], for a graph whose part in a request the device may put to use.
    ///
    /// # Errors
    /// As [`Device::compile`].
    fn compile_as(&self, graph: Graph, role: Role) -> Result<Box<dyn Executable>> {
        let _ = role;
        self.compile(graph)
    }

    /// What programs of these graphs take together of the device's own memory; `None` where it has none of its own.
    ///
    /// # Errors
    /// Where an operation is not supported.
    fn estimate(&self, graphs: Vec<(Graph, Role)>) -> Result<Option<MemoryRequirement>> {
        let _ = graphs;
        Ok(None)
    }

    /// Bytes of the device's own memory that can be had; `None` where it has none of its own.
    ///
    /// # Errors
    /// Where the device has failed.
    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Whether programs loaded as [`Role::Denoise`] have a [`Executable::denoise_loop`].
    fn has_denoise_loop(&self) -> bool {
        false
    }
}

/// Bytes of a device's own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryRequirement {
    /// What programs hold; weights that several read count once.
    pub bytes: u64,
    /// What loading one of them takes for a moment, at most.
    pub staging: u64,
}

/// What a graph is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Nothing that a device need know.
    Plain,
    /// One evaluation of the model; input 0 and output 0 are the latents and the model's output, `[B, h, w, C]`, with one row
    /// or a positive and a negative one.
    Denoise(LoopSteps),
    /// What does not depend on the latents: a device that has a sampler keeps the results for it, see [`Executable::run_resident`].
    Condition,
    /// The decoder, the one graph that f16 is too narrow for: its first output becomes pixels, see [`Executable::decode_rgb8`].
    Decode {
        /// Whether a pixel's value is rounded down, not to the nearest.
        truncate: bool,
    },
}

/// For what a program is loaded that runs all steps of a sampler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopSteps {
    /// The most steps.
    pub max_steps: usize,
    /// The inputs that have a value of their own for each step.
    pub varying: Range<usize>,
    /// Whether steps may add fresh noise.
    pub noise: bool,
}

/// A graph made ready on a device.
pub trait Executable: Send {
    /// Runs it once. `inputs` and `outputs` follow the order in which the graph declares them.
    ///
    /// # Errors
    /// [`crate::Error::Graph`] where a binding's length is not the declared one, or where the program is a sampler's.
    fn run(&mut self, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) -> Result<()>;

    /// Bytes that this program holds besides the mapped weights: the arena, biases and scratch, and [`Executable::shared`].
    fn bytes(&self) -> usize;

    /// The memory that other programs may hold with this one: of each piece a number of its own, and its bytes.
    fn shared(&self) -> Vec<(u64, usize)> {
        Vec::new()
    }

    /// The graph as it is run, after fusion.
    fn graph(&self) -> &Graph;

    /// Does ahead of the first run whatever a device does only once.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn warmup(&mut self) -> Result<()> {
        Ok(())
    }

    /// Computes `times` more on what the last run was given, after that many bytes have gone through the caches each time, and
    /// gives the mean seconds that the device took, without the way of inputs and outputs; `None` where there is no such way,
    /// so that the time of a run says it. For measurements.
    ///
    /// # Errors
    /// As [`Executable::run`]; memory for the bytes.
    fn benchmark(&mut self, flush: usize, times: usize) -> Result<Option<f64>> {
        let _ = (flush, times);
        Ok(None)
    }

    /// Runs it and leaves what it gives in the device's memory. `None`, and nothing was run, where there is no such place:
    /// programs loaded as [`Role::Condition`] may have one.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn run_resident(&mut self, inputs: &[&[f32]]) -> Result<Option<ResidentOutputs>> {
        let _ = inputs;
        Ok(None)
    }

    /// Runs a decoder up to the pixels; with `keep` its output comes with them. `None`, and nothing was run, where pixels are
    /// the caller's: programs loaded as [`Role::Decode`] may make them.
    ///
    /// # Errors
    /// As [`Executable::run`].
    fn decode_rgb8(&mut self, latents: &TensorRef<'_>, keep: bool) -> Result<Option<DecodedImage>> {
        let _ = (latents, keep);
        Ok(None)
    }

    /// The program as what runs all steps of a sampler; absent where the steps are the caller's.
    fn denoise_loop(&mut self) -> Option<&mut dyn DenoiseLoop> {
        None
    }
}

/// What a program left on its device.
#[derive(Debug, Clone)]
pub struct ResidentOutputs {
    /// Its outputs, in the order in which the graph declares them.
    pub values: Vec<DeviceTensor>,
    /// Whether all of them are finite.
    pub finite: bool,
}

/// What a decoder gives.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodedImage {
    /// A byte for each value of its first output: -1 becomes 0, 1 becomes 255.
    pub rgb: Vec<u8>,
    /// Whether all of its output is finite.
    pub finite: bool,
    /// The output itself, if it was asked for.
    pub image: Vec<f32>,
}

/// Coefficients of a step as the devices take them: see [`crate::schedulers::StepCoefficients::packed`].
pub type StepCoefficients = [f32; 12];

/// A picture's way from noise to latents.
#[derive(Debug, Clone, Copy)]
pub struct DenoiseInputs<'a> {
    /// The graph's inputs. That of the latents is empty; those that vary hold the values of all steps, one after the other.
    pub inputs: &'a [TensorRef<'a>],
    /// A row for each step.
    pub table: &'a [StepCoefficients],
    /// Guidance scale and rescale, where there is a negative row.
    pub guidance: [f32; 2],
    /// The latents to begin with, `[h, w, C]`.
    pub latents: &'a [f32],
    /// For each step the fresh noise, as long as the latents; empty where a step adds none.
    pub noise: &'a [Vec<f32>],
    /// Whether [`DenoiseOutput::first_output`] is wanted.
    pub capture_first: bool,
}

/// What a [`DenoiseLoop`] gives.
#[derive(Debug, Clone)]
pub struct DenoiseOutput {
    /// The latents after the last step, `[h, w, C]`.
    pub latents: DeviceTensor,
    /// The model's output in the first step, if it was asked for.
    pub first_output: Vec<f32>,
    /// The first step, from 0, whose latents were not finite.
    pub not_finite: Option<usize>,
}

/// All steps of a sampler on a device, without the host in between.
pub trait DenoiseLoop {
    /// Runs them. `reached` is called before each step is handed to the device, and after the last ones, with the number of
    /// steps that are done by then; the device is at most two steps behind. Its error ends the run.
    ///
    /// # Errors
    /// [`crate::Error::Graph`] where something's length is not the declared one; what `reached` gives.
    fn denoise(
        &mut self,
        job: &DenoiseInputs<'_>,
        reached: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<DenoiseOutput>;
}
