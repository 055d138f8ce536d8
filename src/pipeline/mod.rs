//! The public interface: load models, then generate images.

mod attribution;
mod batch;
mod begin;
mod cache_access;
mod callbacks;
mod calls;
mod captures;
mod compel;
mod compile;
mod config_file;
mod content_cache;
mod denoise_plan;
mod device;
mod device_choice;
mod embeddings;
mod encoded_image;
mod executable_cache;
mod fair_mutex;
mod generate;
mod image_branches;
mod image_prompt;
mod image_prompt_file;
mod image_scales;
mod jobs;
mod latent_size;
mod live_prompts;
mod live_scales;
mod load;
mod lora;
mod memory_budget;
mod model;
mod model_path;
mod model_scheduler;
mod model_weights;
mod options;
mod plan;
mod planned_loops;
mod preview;
mod prompt;
mod prompt_changes;
mod prompt_options;
mod quantization;
mod reference_check;
mod request;
mod residency;
mod running;
mod stages;
mod stream;
mod taesd;
#[cfg(test)]
mod tests;
mod token_row;
mod vae_file;
mod workload;

pub use crate::cancel::CancelToken;
pub use crate::models::ip_adapter::Scales;
pub use attribution::AttributionMap;
pub use callbacks::{Callbacks, FinishedImage};
pub(crate) use content_cache::Held;
pub use device_choice::DeviceChoice;
pub use encoded_image::EncodedImage;
pub use executable_cache::EXECUTABLES;
pub use image_prompt::{Combine, ImagePrompt, Reference, ReferenceImage};
pub(crate) use jobs::{InOrder, Jobs, up_to};
pub use live_prompts::{LivePrompts, PreparedPrompts, PromptChange, Prompts};
pub use live_scales::{LiveScales, ScaleChange};
pub use load::ModelTensors;
pub use model_weights::WeightsHash;
pub use options::PipelineOptions;
pub use preview::Preview;
pub use prompt_options::{LongPrompts, PromptWeights, SizeConditioning};
pub use quantization::Quantization;
pub use request::{
    DEFAULT_STRENGTH, HostTensor, MAX_BATCH, MAX_NUM_IMAGES, MAX_SIDE, MAX_THREADS, Output, Progress, Request, Stage,
};
pub use residency::{EncoderResidency, MemoryEstimate};
pub use stream::{Frame, Stream};
pub use workload::WorkloadShape;

use crate::compat::Compat;
use crate::device::{Device, cpu::Cpu};
use crate::error::{Error, Field, Message, Result};
use crate::inputs::image::Image;
use crate::models::ip_adapter::AdapterConfig;
use crate::parallel;
use crate::schedulers::SchedulerConfig;
use crate::tensor::DType;
use crate::weights::Weights;
use cache_access::CacheAccess;
use compile::{Compiler, Executables};
use content_cache::ContentCache;
use device::OpenedDevice;
use executable_cache::ExecutableCache;
use load::Models;
use model::Model;
use std::sync::Arc;

/// SDXL with IP-Adapters, ready to generate images.
///
/// Requests share the loaded models and the executables compiled for earlier requests of the same sizes. Calls run one at a time; the
/// images of a call share evaluations of the UNet.
pub struct Pipeline {
    models: Models,
    compat: Compat,
    device: Box<dyn Device>,
    dtype: DType,
    note: Option<Message>,
    dtype_note: Option<Message>,
    quantize_note: Option<Message>,
    vae_dtype_note: Option<Message>,
    encoders: EncoderResidency,
    max_noise_bytes: u64,
    /// The side of a tile in latents.
    tile: Option<usize>,
    /// The most images that share an evaluation.
    max_batch: Option<usize>,
    threads: usize,
    cache: CacheAccess,
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

    /// As [`Pipeline::load_with_device`], from tensors in memory; of the options' paths only [`PipelineOptions::config`] counts.
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
        let cpu = Cpu::new(options.useful_threads());
        let threads = cpu.threads();
        let own_device = device.is_none();
        let OpenedDevice { device, dtype, note } = match device {
            Some(device) => OpenedDevice { device, dtype: options.dtype.unwrap_or(DType::F32), note: None },
            None => device::open(options, &cpu)?,
        };
        let models = models()?;
        let on_cpu = own_device && device.name() == "cpu";
        let faster = |parameters| device::faster_dtype(options.dtype, Cpu::bf16_products(), parameters);
        let dtype_note = on_cpu.then(|| models.unet.parameters()).and_then(faster);
        let quantize_note = options.quantize.filter(|_| on_cpu).and_then(|_| device::slow_int8(Cpu::int8_products()));
        let vae_dtype_note = device::unused_vae_dtype(options.vae_dtype.filter(|_| on_cpu));
        let compat = options.compat.clone();
        models.demand_adapters_of(&compat)?;
        let tile = options.vae_tiling.map(|side| tile(side, models.vae.config.scale_factor())).transpose()?;
        embeddings::demand_profile(&models.words, &compat)?;
        let encoders = options.encoders;
        let mut cache = ExecutableCache::default();
        cache.free_encoders = encoders == EncoderResidency::Free;
        cache.contents = ContentCache::new(options.max_cache_bytes);
        Ok(Self {
            models,
            compat,
            device,
            dtype,
            note,
            dtype_note,
            quantize_note,
            vae_dtype_note,
            encoders,
            max_noise_bytes: options.max_noise_bytes,
            tile,
            max_batch: options.max_batch,
            threads,
            cache: CacheAccess::new(cache, threads),
        })
    }

    /// The device that the pipeline runs on, as a user would name it.
    pub fn device(&self) -> String {
        self.device.name()
    }

    /// The data type in which a peer with these options would compute and draw its noise; set [`Request::noise_dtype`] to it
    /// to get the same image.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The decision of [`DeviceChoice::Auto`] and its reason, for the user.
    pub fn device_note(&self) -> Option<&Message> {
        self.note.as_ref()
    }

    /// All that the user should be told about device and data types, in this order: [`Self::device_note`], [`Self::quantize_note`],
    /// [`Self::dtype_note`], and that [`PipelineOptions::vae_dtype`] has no effect.
    pub fn notes(&self) -> impl Iterator<Item = &Message> {
        [&self.note, &self.quantize_note, &self.dtype_note, &self.vae_dtype_note].into_iter().flatten()
    }

    /// The words for the user where another [`PipelineOptions::dtype`] is the faster one on this CPU, or this one only the noise's.
    pub fn dtype_note(&self) -> Option<&Message> {
        self.dtype_note.as_ref()
    }

    /// The words for the user where [`PipelineOptions::quantize`] makes this CPU slower.
    pub fn quantize_note(&self) -> Option<&Message> {
        self.quantize_note.as_ref()
    }

    /// The compatibility profile.
    pub fn compat(&self) -> &Compat {
        &self.compat
    }

    /// The number of adapters.
    pub fn num_adapters(&self) -> usize {
        self.models.adapters.len()
    }

    /// The number of LoRAs.
    pub fn num_loras(&self) -> usize {
        self.models.loras.count()
    }

    /// Width and height that a request without sizes gets.
    pub fn default_size(&self) -> (usize, usize) {
        latent_size::default_size(&self.models)
    }

    /// The scheduler of a request: the model's own or the profile's, with what the request sets.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] where the scheduler does not take a setting; [`crate::Error::Config`] and
    /// [`crate::Error::Malformed`] where the model's own is not supported.
    pub fn scheduler_config(&self, request: &Request) -> Result<SchedulerConfig> {
        plan::scheduler_config(&self.models, &self.compat, request)
    }

    /// The timesteps of the model evaluations of each image of a request, in their order: diffusers' `scheduler.timesteps` or the part of
    /// them that [`Request::strength`] leaves, `[N]`, where N is [`Progress::steps`] of [`Stage::Denoise`].
    ///
    /// # Errors
    /// As [`Pipeline::scheduler_config`]; [`crate::Error::Parameter`] for a number of steps that the scheduler does not allow.
    pub fn timesteps(&self, request: &Request) -> Result<Vec<f32>> {
        plan::timesteps(&self.models, &self.compat, request)
    }

    /// Threads of the CPU that the pipeline uses.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Width and height of the images that a request gives, rounded up where the profile does that.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a side that cannot be.
    pub fn image_size(&self, request: &Request) -> Result<(usize, usize)> {
        let factor = self.models.vae.config.scale_factor();
        let [height, width] = latent_size::request_size(&self.models, &self.compat, request)?;
        Ok((width * factor, height * factor))
    }

    /// The embedding of an image for the first adapter; see [`Pipeline::encode_image_for`].
    ///
    /// # Errors
    /// As [`Pipeline::encode_image_for`].
    pub fn encode_image(&self, image: &Image) -> Result<Vec<f32>> {
        self.encode_image_for(0, image)
    }

    /// The embedding of an image as an adapter takes it, by its number. A base adapter: `image_embeds` `[E]`, the image
    /// encoder's projected class token. An IP-Adapter Plus: the hidden states `[T, E]` before the encoder's last layer, row by
    /// row. A [`ReferenceImage::Embedding`] of it spares the encoder in later requests.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] where there is no image encoder, or no such adapter; [`crate::Error::Changed`].
    pub fn encode_image_for(&self, adapter: usize, image: &Image) -> Result<Vec<f32>> {
        let model = self.demand_adapter(adapter)?;
        let mut cache = self.cache.alone()?;
        cache.begin_request();
        let prompt = ImagePrompt::default();
        let encoded = stages::image::encode(&mut self.executables(&mut cache), &prompt, image);
        cache.release_encoders();
        let encoded = encoded?;
        self.models.check_unchanged()?;
        Ok(encoded.of(&model.config))
    }

    /// Encodes the references of an image prompt for an adapter, by its number, as its fit and size say; weights and masks have no part in
    /// it. In later requests they take the references' place, in this pipeline or, by [`EncodedImage::save`], in others that need no
    /// image encoder then, with the same result.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] where there is no image encoder, no such adapter, no reference, or one that is no image;
    /// [`crate::Error::Changed`].
    pub fn encode_references(&self, adapter: usize, prompt: &ImagePrompt) -> Result<Vec<EncodedImage>> {
        self.demand_adapter(adapter)?;
        let mut cache = self.cache.alone()?;
        cache.begin_request();
        let encoded = stages::image::encode_references(&mut self.executables(&mut cache), adapter, prompt, self.dtype)?;
        self.models.check_unchanged()?;
        Ok(encoded)
    }

    fn demand_adapter(&self, adapter: usize) -> Result<&Model<AdapterConfig>> {
        let what = || format!("there is no adapter {adapter}; {} are loaded", self.num_adapters());
        self.models.adapters.get(adapter).ok_or_else(|| Error::parameter(Field::Adapters, what()))
    }

    /// A hash of each model's weights, of every byte. It reads the files whole.
    pub fn weight_hashes(&self) -> Vec<WeightsHash> {
        let _limit = parallel::limit(Some(self.threads));
        self.models.hashes(Weights::hash)
    }

    /// A hash of each model's names and shapes of weights and of a few bytes of each, which costs next to nothing. Different weights have
    /// the same where they differ elsewhere alone; two trainings of a model hardly do.
    pub fn weight_fingerprints(&self) -> Vec<WeightsHash> {
        self.models.hashes(Weights::fingerprint)
    }

    /// The reference images of a prompt as the image encoder sees them: fitted, resized, cropped. Embeddings and encoded images have none.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] where there is no image encoder.
    pub fn reference_images(&self, prompt: &ImagePrompt) -> Result<Vec<Image>> {
        let _limit = parallel::limit(Some(self.threads));
        stages::image::visible(&self.models, prompt)
    }

    /// The shape of a request; for [`Pipeline::prepare`].
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a prompt that is too long.
    pub fn workload_shape(&self, request: &Request) -> Result<WorkloadShape> {
        plan::workload_shape(&self.models, &self.compat, request)
    }

    /// Estimates the device's own memory that requests of that shape take; `None` on the CPU, where weights stay in the mapped files.
    ///
    /// # Errors
    /// As [`Pipeline::prepare`], but for memory.
    pub fn estimate(&self, shape: &WorkloadShape) -> Result<Option<MemoryEstimate>> {
        shape.estimate(&self.compiler())
    }

    /// Compiles the executables for requests of that shape and does everything that is done once: on a GPU, weights are
    /// uploaded, kernels loaded, launches captured. The first such request is then as fast as the next one, as long as few
    /// shapes are prepared: the executables of about two are kept.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a shape that cannot be; [`crate::Error::Memory`].
    pub fn prepare(&self, shape: &WorkloadShape) -> Result<()> {
        let mut cache = self.cache.alone()?;
        shape.prepare(&mut self.executables(&mut cache), self.encoders)
    }

    /// Encodes prompts and references that are to take the place of a request's own while it is drawn: [`LivePrompts::set`] and
    /// [`crate::Ticket::set_prompts`] then exchange them at once. Where requests are under way this waits for the step that is being made,
    /// not for their end (on a GPU whose memory is too short to keep their conditioning, for that). The request itself need not have begun.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for prompts that cannot be, or for which the request's executables have no room: more tokens or
    /// references than it has or was prepared for ([`Pipeline::prepare`]), another adapter, other masks; [`crate::Error::InCallback`].
    pub fn prepare_prompts(&self, request: &Request, prompts: impl Into<Arc<Prompts>>) -> Result<PreparedPrompts> {
        let mut cache = self.cache.beside()?;
        generate::hold_prompts(&mut self.executables(&mut cache), request, prompts.into())
    }

    /// Runs the stages of a request up to its conditioning, whose results are found for as long as anyone has them.
    pub(crate) fn hold(&self, request: &Request) -> Result<Held> {
        let mut cache = self.cache.alone()?;
        generate::hold(&mut self.executables(&mut cache), self.encoders, request.clone())
    }

    /// Bytes that the executables compiled so far hold besides the mapped files, and on a GPU what is kept there of earlier requests. It
    /// waits for nobody: while a request is drawn they are those of its last evaluation.
    pub fn device_memory_used(&self) -> usize {
        self.cache.bytes()
    }

    /// Frees all executables, and forgets what earlier requests left, but for what a [`crate::Session`] holds; the next request makes both
    /// again. It waits for nobody: where a call is at work, in one of whose callbacks this may be, it is done when that ends.
    pub fn clear_cache(&self) {
        self.cache.clear();
    }

    /// Whether this thread is in a callback of a call to this pipeline. Calls that would wait for that one are refused there
    /// ([`crate::Error::InCallback`]); from another thread, for which the callback waits, they would wait for ever.
    pub fn is_in_callback(&self) -> bool {
        self.cache.is_own()
    }

    fn compiler(&self) -> Compiler<'_> {
        Compiler {
            models: &self.models,
            compat: &self.compat,
            device: self.device.as_ref(),
            max_noise_bytes: self.max_noise_bytes,
            max_batch: self.max_batch,
            tile: self.tile,
        }
    }

    fn executables<'a>(&'a self, cache: &'a mut ExecutableCache) -> Executables<'a> {
        Executables { compiler: self.compiler(), cache, joins: false, under_way: Vec::new() }
    }
}

/// The side of a tile in latents for one in pixels.
fn tile(side: usize, factor: usize) -> Result<usize> {
    if side.is_multiple_of(factor) && side >= 8 * factor {
        return Ok(side / factor);
    }
    let what = format!("tiles of {side} pixels; a multiple of {factor} is needed, {} at least", 8 * factor);
    Err(Error::parameter(Field::VaeTiling, what))
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pipeline({}, {})", self.models.unet.path().display(), self.device.name())
    }
}
