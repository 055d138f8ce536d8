//! Stable Diffusion XL with IP-Adapter image prompts, from the published files, as diffusers or DiffSynth-Studio compute it.
//!
//! ```no_run
//! use braid::{AlphaMode, Image, ImagePrompt, Pipeline, PipelineOptions, Request};
//!
//! # fn main() -> braid::Result<()> {
//! let options = PipelineOptions::new("sd_xl_base_1.0.safetensors")
//!     .with_adapter("ip-adapter_sdxl.bin")
//!     .with_clip_vision("image_encoder");
//! let pipeline = Pipeline::load(&options)?;
//! let reference = Image::open("reference.png", AlphaMode::CompositeOnWhite)?;
//! let request = Request::new("a garden at dawn")
//!     .with_image_prompt(ImagePrompt::new(reference).with_scale(0.6))
//!     .with_steps(30)
//!     .with_seed(7);
//! pipeline.generate(&request)?.images[0].save("garden.png")
//! # }
//! ```
//!
//! # Vocabulary
//!
//! | Here | In diffusers | Meaning |
//! |---|---|---|
//! | [`Pipeline`] | `StableDiffusionXLPipeline` | the loaded models, ready to generate; shared by requests, which run one at a time |
//! | [`PipelineOptions`] | arguments of `from_pretrained`, `load_ip_adapter` | the files of a pipeline, its device, its data types |
//! | [`Request`] | arguments of `__call__` | prompt, size, steps, guidance, seed, image prompts |
//! | [`ImagePrompt`] | `ip_adapter_image` | the reference images of one adapter and their [`Scales`] |
//! | [`Scales`] | `set_ip_adapter_scale` | the weight of an image prompt in each block of the UNet |
//! | [`Reference`] | `ip_adapter_masks` | a reference image with its weight and its mask; [`Combine`] and [`Fit`] are its image prompt's |
//! | [`ReferenceImage`] | an entry of `ip_adapter_image` or `ip_adapter_image_embeds` | an image, or what was encoded of one |
//! | [`EncodedImage`] | `prepare_ip_adapter_image_embeds`'s results | an image encoded for an adapter, in memory or in a file |
//! | [`PipelineOptions::loras`], [`Request::lora_scales`] | `load_lora_weights`, `set_adapters` | LoRAs and the scale of each |
//! | [`PipelineOptions::embeddings`] | `load_textual_inversion` | words of the prompts that stand for vectors |
//! | [`SchedulerKind`], [`SigmaSchedule`], [`TimestepSpacing`], [`PredictionType`] | `EulerDiscreteScheduler`, `use_karras_sigmas`, `timestep_spacing`, `prediction_type` | overrides of the model's own scheduler |
//! | [`RngKind`] | `torch.Generator(device=...)` | the generator whose random numbers the noise follows |
//! | [`Compat`] | – | the reference implementation that is followed where they differ |
//! | [`LiveScales`], [`ScaleChange`] | `set_ip_adapter_scale` in a callback | scales that change between two steps |
//! | [`LivePrompts`], [`PromptChange`], [`Prompts`] | – | prompts and references that change between two steps |
//! | [`Callbacks`], [`Progress`], [`FinishedImage`], [`CancelToken`] | `callback_on_step_end`, `_interrupt` | progress of a request, its images one by one, and its cancellation |
//! | [`Session`] | – | a request with its conditioning, to be drawn again with other seeds, scales, steps |
//! | [`Stream`], [`Frame`] | StreamDiffusion | image to image from frames that follow one another |
//! | [`Engine`], [`Ticket`] | – | a queue before a pipeline, for programs of many threads |
//! | [`Output`] | `StableDiffusionXLPipelineOutput` | images, seeds, times, and intermediate results on request |
//! | [`WorkloadShape`] | – | the sizes shared by requests that run the same executables; see [`Pipeline::prepare`] |
//!
//! Structs are built with `new` and changed with setters named `with_` and the field. Errors name the field at fault.
//!
//! # Features
//!
//! `cuda` (default): the CUDA backend; the driver and cuBLASLt are loaded at run time, nothing is needed to build.
//! `cli` (default): what only the commands `braid` and `bench` use. A library user takes `default-features = false` and, for a
//! GPU, `features = ["cuda"]`.
//!
//! Modules that this page does not list are internal, and no part of the version's promise.

#[doc(hidden)]
pub mod atomic_file;
mod cancel;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod compat;
mod config_json;
#[doc(hidden)]
pub mod device;
#[doc(hidden)]
pub mod engine;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod graph;
#[doc(hidden)]
pub mod inputs;
#[doc(hidden)]
pub mod inspect;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod models;
mod names;
#[doc(hidden)]
pub mod output;
#[doc(hidden)]
pub mod parallel;
#[doc(hidden)]
pub mod pipeline;
mod presence;
#[doc(hidden)]
pub mod schedulers;
mod session;
mod setters;
#[doc(hidden)]
pub mod synthetic;
#[doc(hidden)]
pub mod tensor;
#[doc(hidden)]
pub mod weights;

pub use cancel::CancelToken;
pub use compat::Compat;
pub use engine::{Engine, EngineOptions, SubmitOptions, Ticket, TicketStatus};
pub use error::{Error, Result};
pub use inputs::fit::Fit;
pub use inputs::image::{AlphaMode, Image};
pub use inputs::noise::{PhiloxGrid, RngKind};
pub use output::PngMetadata;
pub use pipeline::{
    AttributionMap, Callbacks, Combine, DeviceChoice, EncodedImage, EncoderResidency, FinishedImage, Frame, HostTensor,
    ImagePrompt, LivePrompts, LiveScales, LongPrompts, MemoryEstimate, Output, Pipeline, PipelineOptions,
    PreparedPrompts, Preview, Progress, PromptChange, PromptWeights, Prompts, Quantization, Reference, ReferenceImage,
    Request, ScaleChange, Scales, SizeConditioning, Stage, Stream, WeightsHash, WorkloadShape,
};
pub use schedulers::{PredictionType, SchedulerConfig, SchedulerKind, SigmaSchedule, TimestepSpacing};
pub use session::Session;
pub use tensor::DType;

/// The README's example, compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The guide's library calls, likewise.
#[cfg(doctest)]
#[doc = include_str!("../docs/guide.md")]
struct Guide;
