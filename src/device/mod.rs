//! Devices: what compiles and runs a graph.
//!
//! A [`Device`] compiles a graph for its part in a request: an [`Executable`] runs it once, a [`DenoiseLoop`] runs all steps of a
//! scheduler around it, an [`ImageDecoder`] turns its output into pixels. [`host`] implements the last two over any executable:
//! a device that compiles executables has everything, and what it does better it overrides.

mod backend;
pub mod cpu;
pub mod cuda;
mod denoise_loop;
mod executable;
pub mod host;
mod image_decoder;
mod memory;
mod role;
mod tensors;

pub use backend::Device;
pub use denoise_loop::{DenoiseInputs, DenoiseLoop, DenoiseOutput, LoopSpec};
pub use executable::{Compiled, Executable, ResidentOutputs};
pub use image_decoder::{DecodedImage, ImageDecoder, PixelRounding, denormalize};
pub use memory::{DeviceMemory, MemoryRequirement};
pub use role::Role;
pub use tensors::{DeviceBuffer, DeviceTensor, TensorData, TensorRef};

/// The target of the events that tell, at the level of debugging, that weights were copied to a device's own memory: `seconds`
/// and `bytes`. It happens while a graph is compiled.
pub const UPLOADS: &str = "braid::uploads";
