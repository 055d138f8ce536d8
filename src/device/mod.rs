//! Devices, which compile graphs and run them.
//!
//! A [`Device`] compiles a graph for its part in a request: an [`Executable`] runs it once, a [`DenoiseLoop`] runs all steps of a
//! scheduler around it, an [`ImageDecoder`] turns its output into pixels. [`host`] implements the last two over any executable:
//! a device only has to compile executables, and overrides what it does better.

mod backend;
pub mod cpu;
pub mod cuda;
mod denoise_loop;
mod executable;
pub mod host;
mod image_decoder;
mod memory;
mod role;
mod rows;
mod tensors;
mod tiling;
mod user_cache;

pub use backend::Device;
pub use denoise_loop::{
    DenoiseInputs, DenoiseLoop, DenoiseOutput, ImageInFlight, KeptLatents, LoopSpec, NoiseSource, RowAxis,
};
pub use executable::{Compiled, Executable, ResidentOutputs};
pub use image_decoder::{DecodedImage, ImageDecoder, PixelRounding, denormalize};
pub use memory::{DeviceMemory, MemoryRequirement};
pub use role::Role;
pub use tensors::{DeviceBuffer, DeviceTensor, TensorData, TensorRef};
pub use tiling::{TiledDecoder, TiledEncoder, Tiling};

/// The target of the debug events about weights copied to a device's own memory while a graph is compiled: `seconds` and
/// `bytes`.
pub const UPLOADS: &str = "braid::uploads";
