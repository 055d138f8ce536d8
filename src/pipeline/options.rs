//! The options of a pipeline.

use super::device_choice::DeviceChoice;
use super::quantization::Quantization;
use super::request::{MAX_BATCH, MAX_THREADS};
use super::residency::EncoderResidency;
use crate::compat::Compat;
use crate::error::{Error, Field, Result};
use crate::setters::setters;
use crate::tensor::DType;
use std::num::NonZero;
use std::path::PathBuf;

/// The files that make a pipeline, and how it runs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PipelineOptions {
    /// A single-file SDXL checkpoint or a diffusers folder.
    pub model: PathBuf,
    /// A diffusers folder whose configurations are read, for a single-file checkpoint whose sizes or scheduler its tensors
    /// do not tell. Where absent, sizes are read off the tensors and everything else is as in the published models.
    pub config: Option<PathBuf>,
    /// A VAE in place of the model's own, decoder and encoder: a file or a folder with one. Its names may be the original ones or
    /// diffusers', and the file a whole checkpoint. A `config.json` of a VAE beside it counts; where there is none, the scaling factor and
    /// everything else that no size tells are those of the model's own VAE.
    pub vae: Option<PathBuf>,
    /// TAESD for SDXL (`taesdxl`), a file or a folder, which decodes, makes previews and encodes images to begin with in the place of the
    /// VAE: much faster, and less exact. The VAE does what a file with one half does not.
    pub taesd: Option<PathBuf>,
    /// The side in pixels of the tiles in which images are decoded and encoded, so that the memory of both does not grow with the image;
    /// larger images are made of tiles that overlap by a quarter at least and are blended. A multiple of the VAE's factor, at least 8 times
    /// it; the command sets 512.
    pub vae_tiling: Option<usize>,
    /// The image encoder: `model.safetensors` or its folder; `image_encoder/` of the model's folder where absent.
    pub clip_vision: Option<PathBuf>,
    /// IP-Adapters.
    pub adapters: Vec<PathBuf>,
    /// LoRAs, `.safetensors` or `.bin`: for UNet and text encoders, by kohya's, PEFT's or diffusers' names. They are applied beside the
    /// weights, by [`crate::Request::lora_scales`].
    pub loras: Vec<PathBuf>,
    /// Textual inversions, `.safetensors`, `.pt` or `.bin`: vectors for a word of the prompts, which is the file's name without its
    /// extension.
    pub embeddings: Vec<PathBuf>,
    /// The reference implementation that is followed.
    pub compat: Compat,
    /// The device that computes.
    pub device: DeviceChoice,
    /// The type in which a GPU stores tensors, f16 where absent; f32 is refused there. On the CPU the type to which the operands of
    /// products are rounded, f32 or bf16, f32 where absent; everything else stays f32, and f16 is only the type of
    /// [`crate::Pipeline::dtype`].
    pub dtype: Option<DType>,
    /// The same for the VAE. On a GPU bf16 where absent: SDXL's overflows f16; f32 is exact, slower, and takes twice the memory. On the
    /// CPU that of `dtype` where absent.
    pub vae_dtype: Option<DType>,
    /// The type to which the UNet's products are quantized; none where absent. The first and the last convolution, the first downsampling convolution,
    /// shortcuts, the last resnet's second convolution, and what runs once a request keep their type. Quantized weights of int8 are kept in the
    /// folder [`crate::device::cpu::Cpu::int8_folder`], half as large as a UNet in f16; those of fp8 take half its place on the GPU.
    pub quantize: Option<Quantization>,
    /// Whether the encoders' executables stay after a request.
    pub encoders: EncoderResidency,
    /// The most bytes that a GPU's denoise loop reserves for the fresh noise of all steps of an image. Where a request needs more, the host
    /// makes its steps one by one; schedulers that add no noise are not affected.
    pub max_noise_bytes: u64,
    /// The most bytes of results that are kept for later requests, 256 MiB by default: hidden states of prompts, embeddings of images, keys
    /// and values of both for every layer, latents of images to begin with. What is repeated then costs nothing. Keys and values that a
    /// GPU has made lie in its memory, and go where a request needs it.
    pub max_cache_bytes: u64,
    /// The most images that share one evaluation of the UNet, of one request or of several; where absent as many as are worth it by
    /// their size. Fewer where memory is short. An image is the same either way.
    pub max_batch: Option<usize>,
    /// Threads of the CPU; one for each core where absent. More than the cores there are would wait for one another: so many are not
    /// started.
    pub threads: Option<usize>,
    /// Whether files are mapped. A mapped file that is written to in place fails every request from then on
    /// ([`Error::Changed`]); one that is cut short ends the process (SIGBUS) where its missing part is read. One that is replaced or
    /// removed stays whole, and images are those of the old one. Without mapping the models are read into memory first, and nothing that
    /// happens to the files matters.
    pub mmap: bool,
}

impl PipelineOptions {
    /// A model without adapters.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            config: None,
            vae: None,
            taesd: None,
            vae_tiling: None,
            clip_vision: None,
            adapters: Vec::new(),
            loras: Vec::new(),
            embeddings: Vec::new(),
            compat: Compat::diffusers(),
            device: DeviceChoice::Cpu,
            dtype: None,
            vae_dtype: None,
            quantize: None,
            encoders: EncoderResidency::Auto,
            max_noise_bytes: 512 << 20,
            max_cache_bytes: 256 << 20,
            max_batch: None,
            threads: None,
            mmap: true,
        }
    }

    setters! {
        /// Sets the folder of configurations.
        with_config(config: impl Into<PathBuf> => Some(config.into()));
        /// Sets the VAE that takes the place of the model's own.
        with_vae(vae: impl Into<PathBuf> => Some(vae.into()));
        /// Sets TAESD.
        with_taesd(taesd: impl Into<PathBuf> => Some(taesd.into()));
        /// Sets the side of the tiles in which images are decoded and encoded.
        with_vae_tiling(vae_tiling: usize => Some(vae_tiling));
        /// Sets the image encoder.
        with_clip_vision(clip_vision: impl Into<PathBuf> => Some(clip_vision.into()));
        /// Sets the compatibility profile.
        with_compat(compat: Compat);
        /// Sets the device.
        with_device(device: DeviceChoice);
        /// Sets the data type of a GPU's tensors, of a CPU's products.
        with_dtype(dtype: DType => Some(dtype));
        /// Sets the data type of the VAE.
        with_vae_dtype(vae_dtype: DType => Some(vae_dtype));
        /// Sets the type to which the UNet's products are quantized.
        with_quantize(quantize: Quantization => Some(quantize));
        /// Sets whether the encoders stay on the device after use.
        with_encoders(encoders: EncoderResidency);
        /// Sets the most bytes that a GPU's denoise loop reserves for fresh noise.
        with_max_noise_bytes(max_noise_bytes: u64);
        /// Sets the most bytes of results that are kept for later requests.
        with_max_cache_bytes(max_cache_bytes: u64);
        /// Sets the most images that share one evaluation of the UNet.
        with_max_batch(max_batch: usize => Some(max_batch));
        /// Sets the number of CPU threads.
        with_threads(threads: usize => Some(threads));
        /// Sets whether files are memory-mapped.
        with_mmap(mmap: bool);
    }

    /// Adds an IP-Adapter.
    #[must_use]
    pub fn with_adapter(mut self, path: impl Into<PathBuf>) -> Self {
        self.adapters.push(path.into());
        self
    }

    /// Adds a LoRA.
    #[must_use]
    pub fn with_lora(mut self, path: impl Into<PathBuf>) -> Self {
        self.loras.push(path.into());
        self
    }

    /// Adds a textual inversion.
    #[must_use]
    pub fn with_embedding(mut self, path: impl Into<PathBuf>) -> Self {
        self.embeddings.push(path.into());
        self
    }

    /// [`Self::threads`], but no more than this process has cores.
    pub(super) fn useful_threads(&self) -> Option<usize> {
        let cores = std::thread::available_parallelism().map_or(MAX_THREADS, NonZero::get);
        if let Some(threads) = self.threads.filter(|threads| *threads > cores) {
            tracing::warn!("{threads} threads were asked for; there are {cores} cores, and so many threads are used");
        }
        self.threads.map(|threads| threads.min(cores))
    }

    /// Checks what can be checked without the files.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(threads) = self.threads.filter(|n| !(1..=MAX_THREADS).contains(n)) {
            return Err(Error::parameter(Field::Threads, format!("{threads} given; 1 to {MAX_THREADS} is allowed")));
        }
        if let Some(images) = self.max_batch.filter(|n| !(1..=MAX_BATCH).contains(n)) {
            return Err(Error::parameter(Field::MaxBatch, format!("{images} given; 1 to {MAX_BATCH} is allowed")));
        }
        Ok(())
    }
}
