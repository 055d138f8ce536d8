//! The public interface: load models, then draw.

mod compile;
mod denoise;
mod device;
mod encode;
mod executable_cache;
mod generate;
mod load;
mod memory_budget;
mod prepare;
mod request;
mod scales;

pub use device::DeviceChoice;
pub use executable_cache::EXECUTABLES;
pub use load::ModelTensors;
pub use memory_budget::{EncoderResidency, MemoryEstimate};
pub use prepare::WorkloadShape;
pub use request::{
    Callbacks, CancelToken, HostTensor, ImagePrompt, MAX_NUM_IMAGES, MAX_SIDE, MAX_THREADS, Output, Progress,
    ReferenceImage, Request, Stage,
};
pub use scales::Scales;

use crate::compat::Compat;
use crate::device::{Device, cpu::Cpu};
use crate::error::{Error, Result};
use crate::inputs::image::Image;
use crate::schedulers::SchedulerConfig;
use crate::tensor::DType;
use device::OpenedDevice;
use executable_cache::ExecutableCache;
use load::Models;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Which files make a pipeline, and how it runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PipelineOptions {
    /// A single-file SDXL checkpoint or a diffusers folder.
    pub model: PathBuf,
    /// A diffusers folder of which only the configurations are read, for a single-file checkpoint whose sizes or sampler no
    /// tensor tells. Absent, sizes are read off the tensors and everything else is as in the published models.
    pub config: Option<PathBuf>,
    /// The image encoder: `model.safetensors` or its folder; `image_encoder/` of the model's folder where absent.
    pub clip_vision: Option<PathBuf>,
    /// IP-Adapters.
    pub adapters: Vec<PathBuf>,
    /// Whose arithmetic is followed.
    pub compat: Compat,
    /// Where it is computed.
    pub device: DeviceChoice,
    /// The type in which a GPU stores tensors, f16 where absent; f32 is refused there. The CPU computes in f32, and
    /// the type is only that of [`Pipeline::dtype`].
    pub dtype: Option<DType>,
    /// The same for the VAE, bf16 where absent: SDXL's overflows f16. f32 is exact, slower, and takes twice the memory. No effect
    /// on the CPU.
    pub vae_dtype: Option<DType>,
    /// Whether the encoders' programs stay after a request.
    pub encoders: EncoderResidency,
    /// Bytes of fresh noise of all steps for which a sampler on a GPU has room. Where a request's take more, the host makes its
    /// steps one by one; samplers that add no noise are not concerned.
    pub max_noise_bytes: u64,
    /// Threads of the CPU; one for each core where absent.
    pub threads: Option<usize>,
    /// Whether files are mapped. A mapped file that is cut short while in use ends the process (SIGBUS); without mapping the
    /// models are read into memory first.
    pub mmap: bool,
}

impl PipelineOptions {
    /// A model without adapters.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            config: None,
            clip_vision: None,
            adapters: Vec::new(),
            compat: Compat::diffusers(),
            device: DeviceChoice::Cpu,
            dtype: None,
            vae_dtype: None,
            encoders: EncoderResidency::Auto,
            max_noise_bytes: 512 << 20,
            threads: None,
            mmap: true,
        }
    }

    /// Adds an IP-Adapter.
    #[must_use]
    pub fn adapter(mut self, path: impl Into<PathBuf>) -> Self {
        self.adapters.push(path.into());
        self
    }

    /// Sets the folder of configurations.
    #[must_use]
    pub fn config(mut self, path: impl Into<PathBuf>) -> Self {
        self.config = Some(path.into());
        self
    }

    /// Sets the image encoder.
    #[must_use]
    pub fn clip_vision(mut self, path: impl Into<PathBuf>) -> Self {
        self.clip_vision = Some(path.into());
        self
    }

    /// Checks what can be checked without the files.
    fn check(&self) -> Result<()> {
        if let Some(threads) = self.threads.filter(|n| !(1..=MAX_THREADS).contains(n)) {
            return Err(Error::parameter("--threads", format!("{threads} given; 1 to {MAX_THREADS} is allowed")));
        }
        Ok(())
    }

    /// Sets the device.
    #[must_use]
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// Sets the compatibility profile.
    #[must_use]
    pub fn compat(mut self, compat: Compat) -> Self {
        self.compat = compat;
        self
    }
}

/// SDXL with IP-Adapters, ready to draw.
///
/// Requests share the loaded models and the programs built for earlier requests of the same sizes; they run one at a time.
pub struct Pipeline {
    models: Models,
    compat: Compat,
    device: Box<dyn Device>,
    dtype: DType,
    note: Option<String>,
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
    pub fn device_note(&self) -> Option<&str> {
        self.note.as_deref()
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

    /// Draws.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a request that cannot be; [`crate::Error::Cancelled`];
    /// [`crate::Error::NotFinite`] where the model's output has no meaning. The pipeline stays usable.
    pub fn generate(&self, request: &Request, watch: &mut Callbacks<'_>) -> Result<Output> {
        generate::generate(self, &mut self.lock(), request, watch)
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
