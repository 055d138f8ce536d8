//! The trait of all devices.

use super::denoise_loop::{DenoiseLoop, LoopSpec};
use super::executable::Executable;
use super::host::{HostDenoiseLoop, HostImageDecoder};
use super::image_decoder::{ImageDecoder, PixelRounding};
use super::memory::{DeviceMemory, MemoryRequirement};
use super::role::Role;
use crate::error::Result;
use crate::graph::Graph;

/// Compiles graphs and runs them.
///
/// [`Device::compile`] is all that a device must have. Its conditioner, denoise loop and image decoder are by default those of
/// [`super::host`] over its executables; a device whose results can stay in its own memory overrides them.
pub trait Device: Send + Sync {
    /// The device as a user would name it.
    fn name(&self) -> String;

    /// Refuses a device that has failed for good, so that a request ends before it begins. A device that cannot fail has nothing to
    /// refuse.
    ///
    /// # Errors
    /// [`crate::Error::Fault`], the one by which the device was lost.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Compiles a graph; its runs then allocate no memory for tensors.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] where memory is short, [`crate::Error::Graph`] where an operation is not supported.
    fn compile(&self, graph: Graph) -> Result<Box<dyn Executable>>;

    /// Compiles the step-invariant conditioning: [`Executable::run_resident`] leaves its results where
    /// [`Device::compile_denoise_loop`]'s loops read them.
    ///
    /// # Errors
    /// As [`Device::compile`].
    fn compile_conditioner(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        self.compile(graph)
    }

    /// Compiles a denoiser with the loop over its steps. Input 0 and output 0 of the graph are the latents and the model's
    /// output, `[B, h, w, C]`, of one row, or of a positive and a negative one.
    ///
    /// # Errors
    /// As [`Device::compile`]; [`crate::Error::Graph`] where the graph is no denoiser.
    fn compile_denoise_loop(&self, graph: Graph, spec: &LoopSpec) -> Result<Box<dyn DenoiseLoop>> {
        Ok(Box::new(HostDenoiseLoop::new(self.compile(graph)?, spec)?))
    }

    /// The rows of the parts in which an evaluation of a denoiser is made, all at the same time. One part of all rows by default.
    fn row_parts(&self, graph: &Graph) -> Vec<usize> {
        vec![graph.rows()]
    }

    /// As [`Device::compile_denoise_loop`], where [`Device::row_parts`] has several: `parts` is the same denoiser with the rows of each.
    ///
    /// # Errors
    /// As [`Device::compile_denoise_loop`].
    fn compile_denoise_parts(&self, graph: Graph, parts: Vec<Graph>, spec: &LoopSpec) -> Result<Box<dyn DenoiseLoop>> {
        let _ = parts;
        self.compile_denoise_loop(graph, spec)
    }

    /// Compiles the VAE's encoder, for which f16 is too narrow as it is for the decoder.
    ///
    /// # Errors
    /// As [`Device::compile`].
    fn compile_vae_encoder(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        self.compile(graph)
    }

    /// Compiles a decoder of latents, whose first output becomes pixels.
    ///
    /// # Errors
    /// As [`Device::compile`].
    fn compile_image_decoder(&self, graph: Graph, rounding: PixelRounding) -> Result<Box<dyn ImageDecoder>> {
        Ok(Box::new(HostImageDecoder::new(self.compile(graph)?, rounding)))
    }

    /// The same device with its VAE in f32, for the halves whose results are not finite; `None` where it is in f32 already.
    fn upcast_vae(&self) -> Option<Box<dyn Device>> {
        None
    }

    /// The latents of all images together, height times width of each, up to which they are worth an evaluation of a denoiser together
    /// where nothing else is said: larger images fill a device alone.
    fn batch_latents(&self) -> usize {
        4096
    }

    /// The most rows of text, or images, that an encoder takes at once: more than one where one alone leaves most of a device idle. Encoders
    /// are compiled for powers of two up to this; rows that are not there are filled up.
    fn encoder_rows(&self) -> usize {
        1
    }

    /// Whether its denoise loops take graphs with outputs beside the model's, and give their means, [`super::DenoiseOutput::means`].
    fn averages_outputs(&self) -> bool {
        true
    }

    /// The number of steps to compile for where `steps` are asked for: a device whose loops reserve memory for their steps
    /// rounds up, so that most numbers of steps share an executable.
    fn reserved_steps(&self, steps: usize) -> usize {
        steps
    }

    /// The device's own memory.
    ///
    /// # Errors
    /// [`crate::Error::Fault`] where the device has failed.
    fn memory(&self) -> Result<DeviceMemory> {
        Ok(DeviceMemory::Host)
    }

    /// The bytes of the device's own memory that these graphs take together once compiled: none with [`DeviceMemory::Host`].
    ///
    /// # Errors
    /// [`crate::Error::Graph`] where an operation is not supported.
    fn memory_requirement(&self, graphs: Vec<(Graph, Role)>) -> Result<MemoryRequirement> {
        let _ = graphs;
        Ok(MemoryRequirement::default())
    }
}
