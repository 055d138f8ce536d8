//! The public interface: load models, then draw.

mod compile;
mod denoise;
mod device;
mod encode;
mod executable_cache;
mod generate;
mod load;
mod memory_budget;
mod options;
mod prepare;
mod request;
mod setters;

pub use crate::models::ip_adapter::Scales;
pub use device::DeviceChoice;
pub use executable_cache::EXECUTABLES;
pub use load::ModelTensors;
pub use memory_budget::{EncoderResidency, MemoryEstimate};
pub use options::PipelineOptions;
pub use prepare::WorkloadShape;
pub use request::{
    Callbacks, CancelToken, HostTensor, ImagePrompt, MAX_NUM_IMAGES, MAX_SIDE, MAX_THREADS, Output, Progress,
    ReferenceImage, Request, Stage,
};

use crate::compat::Compat;
use crate::device::{Device, cpu::Cpu};
use crate::error::{Message, Result};
use crate::inputs::image::Image;
use crate::schedulers::SchedulerConfig;
use crate::tensor::DType;
use device::OpenedDevice;
use executable_cache::ExecutableCache;
use load::Models;
use std::sync::{Mutex, PoisonError};

/// SDXL with IP-Adapters, ready to draw.
///
/// Requests share the loaded models and the programs built for earlier requests of the same sizes; they run one at a time.
pub struct Pipeline {
    models: Models,
    compat: Compat,
    device: Box<dyn Device>,
    dtype: DType,
    note: Option<Message>,
    encoders: EncoderResidency,
    noise_room: u64,
    threads: usize,
    executables: Mutex<ExecutableCache>,
}

impl Pipeline {
    /// Maps the files and checks that they belong together. Nothing is computed and no weights are copied.
    ///
    /// # Errors
    /// Any [`crate::Error`] that says which file or device cannot be used and what is needed instead.
    pub fn load(options: &PipelineOptions) -> Result<Self> {
        Self::load_with_device(options, None)
    }

    /// As [`Pipeline::load`], on that device where one is given, whatever the options say.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn load_with_device(options: &PipelineOptions, device: Option<Box<dyn Device>>) -> Result<Self> {
        Self::new(options, device, || Models::load(options))
    }

    /// As [`Pipeline::load_with_device`], of tensors that are in memory; of the options' paths only [`PipelineOptions::config`] counts.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn from_tensors(
        tensors: &ModelTensors,
        options: &PipelineOptions,
        device: Option<Box<dyn Device>>,
    ) -> Result<Self> {
        Self::new(options, device, || Models::of(tensors, options))
    }

    fn new(
        options: &PipelineOptions,
        device: Option<Box<dyn Device>>,
        models: impl FnOnce() -> Result<Models>,
    ) -> Result<Self> {
        options.check()?;
        let cpu = Cpu::new(options.threads);
        let threads = cpu.threads();
        let OpenedDevice { device, dtype, note } = match device {
            Some(device) => OpenedDevice { device, dtype: options.dtype.unwrap_or(DType::F32), note: None },
            None => device::open(options, &cpu)?,
        };
        let models = models()?;
        let compat = options.compat.clone();
        let (encoders, noise_room) = (options.encoders, options.max_noise_bytes);
        let mut programs = ExecutableCache::default();
        programs.free_encoders = encoders == EncoderResidency::Free;
        Ok(Self {
            models,
            compat,
            device,
            dtype,
            note,
            encoders,
            noise_room,
            threads,
            executables: Mutex::new(programs),
        })
    }

    /// The device that the pipeline runs on, as a user would name it.
    pub fn device(&self) -> String {
        self.device.name()
    }

    /// The type in which a peer with these options would compute, so in which it would draw its noise:
    /// [`Request::noise_dtype`] is to be the same for the same picture.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// What [`DeviceChoice::Auto`] decided and why, for the user.
    pub fn device_note(&self) -> Option<&Message> {
        self.note.as_ref()
    }

    /// The compatibility profile.
    pub fn compat(&self) -> &Compat {
        &self.compat
    }

    /// How many adapters there are.
    pub fn num_adapters(&self) -> usize {
        self.models.adapters.len()
    }

    /// Width and height that a request without sizes gets.
    pub fn default_size(&self) -> (usize, usize) {
        let side = self.models.unet.config.sample_size * self.models.vae.config.scale_factor();
        (side, side)
    }

    /// The sampler of a request: the model's own or the profile's, with what the request sets.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] where the sampler does not take a setting; [`crate::Error::Config`] and
    /// [`crate::Error::Malformed`] where the model's own is not supported.
    pub fn scheduler_config(&self, request: &Request) -> Result<SchedulerConfig> {
        let mut sampler = self.models.scheduler(request.scheduler, &self.compat)?;
        if let Some(prediction) = request.prediction_type {
            sampler = sampler.with_prediction_type(prediction)?;
        }
        if let Some(spacing) = request.timestep_spacing {
            sampler = sampler.with_timestep_spacing(spacing)?;
        }
        if let Some(schedule) = request.sigma_schedule {
            sampler = sampler.with_sigma_schedule(schedule)?;
        }
        if let Some(eta) = request.eta {
            sampler = sampler.with_eta(eta)?;
        }
        Ok(sampler)
    }

    /// Threads of the CPU that the pipeline uses.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Width and height of the pictures that a request gives, rounded up where the profile does that.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a side that cannot be.
    pub fn image_size(&self, request: &Request) -> Result<(usize, usize)> {
        let factor = self.models.vae.config.scale_factor();
        let [height, width] = generate::latent_size(self, request.width, request.height)?;
        Ok((width * factor, height * factor))
    }

    /// `image_embeds` of a picture: `[E]`, the image encoder's projected class token. A [`ReferenceImage::Embedding`] of it
    /// spares the encoder in later requests.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] where there is no image encoder.
    pub fn encode_image(&self, picture: &Image) -> Result<Vec<f32>> {
        let mut programs = self.lock();
        let embeds = encode::image(self, &mut programs, picture);
        programs.release_encoders();
        embeds
    }

    /// The shape of a request; for [`Pipeline::prepare`].
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a prompt that is too long.
    pub fn workload_shape(&self, request: &Request) -> Result<WorkloadShape> {
        WorkloadShape::of(self, request)
    }

    /// What requests of that shape take of the device's own memory; `None` on the CPU, where weights stay in the mapped files.
    ///
    /// # Errors
    /// As [`Pipeline::prepare`], but for memory.
    pub fn estimate(&self, shape: &WorkloadShape) -> Result<Option<MemoryEstimate>> {
        compile::estimate(self, &prepare::plan(self, shape)?, shape.clip_skip, shape.encodes_images)
    }

    /// Builds the programs for requests of that shape, and does all that is done once: on a GPU, weights are taken up, kernels
    /// loaded, launches captured. The first such request is then as fast as the next one, as long as the shapes prepared
    /// are few: programs of about two are kept.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a shape that cannot be; [`crate::Error::Memory`].
    pub fn prepare(&self, shape: &WorkloadShape) -> Result<()> {
        prepare::prepare(self, &mut self.lock(), shape)
    }

    /// Generates the requested images.
    ///
    /// # Errors
    /// As [`Pipeline::generate_with`].
    pub fn generate(&self, request: &Request) -> Result<Output> {
        self.generate_with(request, Callbacks::new())
    }

    /// Generates the requested images; `callbacks` report progress and can stop the request.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a request that cannot be; [`crate::Error::Cancelled`];
    /// [`crate::Error::NotFinite`] where the model's output has no meaning. The pipeline stays usable.
    pub fn generate_with(&self, request: &Request, mut callbacks: Callbacks<'_>) -> Result<Output> {
        generate::generate(self, &mut self.lock(), request, &mut callbacks)
    }

    /// Bytes that the programs built so far hold besides the mapped files.
    pub fn device_memory_used(&self) -> usize {
        self.lock().bytes()
    }

    /// Gives back the memory of all programs; the next request builds them anew.
    pub fn clear_cache(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ExecutableCache> {
        // A panic in another request left at most unused results behind.
        self.executables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pipeline({}, {})", self.models.unet.path().display(), self.device.name())
    }
}
