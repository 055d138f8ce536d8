//! The parts that the benchmarks of requests share: the model, the devices, the request.

use crate::machine::{Machine, Place};
use braid::cli::failure::Failure;
use braid::cli::flag::{self, Argument, Flag};
use braid::cli::flags::{FlagNames, arithmetic, image, models, sampling};
use braid::cli::options::Options;
use braid::cli::value::Value;
use braid::device::Device;
use braid::device::cuda::CudaDevice;
use braid::error::Field;
use braid::pipeline::{DeviceChoice, ImagePrompt, ModelTensors};
use braid::synthetic::{Sizes, in_memory};
use braid::tensor::DType;
use braid::{Error, Image, Pipeline, PipelineOptions, Request};
use lexopt::Parser;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The flags of a request and of what it runs on.
pub struct Setup {
    /// The options that `braid generate` has too.
    pub generate: Options,
    adapter: Option<PathBuf>,
    image: Option<PathBuf>,
    devices: Vec<DeviceChoice>,
    dtypes: Vec<Option<DType>>,
}

/// Flags that are as in `braid generate`.
pub const SHARED: &[Flag<Options>] = &[
    Flag {
        help: "SDXL checkpoint or diffusers folder; `demo`, the bundled model; `synthetic:sdxl`, random weights of the \
               published sizes made in memory (11.3 GB with encoders and adapter); `synthetic:small`. These three bring \
               an adapter and a reference image",
        ..models::MODEL
    },
    models::CONFIG,
    models::CLIP_VISION,
    Flag {
        help: "data type of the VAE: f32, f16 or bf16 [default: bf16 on GPUs, that of --dtype on the CPU]",
        ..arithmetic::VAE_DTYPE
    },
    arithmetic::QUANTIZE,
    arithmetic::COMPAT,
    arithmetic::THREADS,
    Flag { help: "[default: a red fox in the snow]", ..image::PROMPT },
    sampling::CFG_SCALE,
    image::WIDTH,
    image::HEIGHT,
    image::MAX_BATCH,
];

const IP_ADAPTER: Flag<Setup> = Flag {
    long: "--ip-adapter",
    value: Some("PATH"),
    help: "IP-Adapter",
    set: |o, v| v.path().map(|path| o.adapter = Some(path)),
    ..Flag::NEW
};

const IP_ADAPTER_IMAGE: Flag<Setup> = Flag {
    long: "--ip-adapter-image",
    value: Some("PATH"),
    help: "its reference image",
    set: |o, v| v.path().map(|path| o.image = Some(path)),
    ..Flag::NEW
};

const DEVICE: Flag<Setup> = Flag {
    long: "--device",
    value: Some("LIST"),
    help: "auto, cpu, cuda, cuda:N; auto is a GPU if usable [default: auto]",
    set: |o, v| v.list(|name| Ok(name.parse()?)).map(|devices| o.devices = devices),
    ..Flag::NEW
};

const DTYPE: Flag<Setup> = Flag {
    long: "--dtype",
    value: Some("LIST"),
    help: "f32, f16, bf16 [default: f16 on GPUs, f32 on the CPU, which computes in f32 with f16, too]",
    set: |o, v| v.list(dtype).map(|dtypes| o.dtypes = dtypes),
    ..Flag::NEW
};

/// Flags that take lists here, or that stand for one adapter.
pub const FLAGS: &[Flag<Setup>] = &[IP_ADAPTER, IP_ADAPTER_IMAGE, DEVICE, DTYPE];

impl Setup {
    /// The defaults.
    pub fn new() -> Self {
        let generate = Options { prompt: Some("a red fox in the snow".into()), ..Options::default() };
        Self { generate, adapter: None, image: None, devices: vec![DeviceChoice::Auto], dtypes: vec![None] }
    }

    /// Applies a flag if it is one of these.
    pub fn take(&mut self, argument: &Argument, p: &mut Parser) -> Result<bool, Failure> {
        Ok(flag::take(FLAGS, argument, self, p)? || flag::take(SHARED, argument, &mut self.generate, p)?)
    }

    /// The request, without its image prompts.
    pub fn request(&self) -> Request {
        let mut request = self.generate.request.clone();
        request.prompt = self.generate.prompt.clone().unwrap_or_default();
        request
    }

    /// Every device with every type, as asked for.
    pub fn places(&self) -> Vec<Place> {
        let of = |device: &DeviceChoice| {
            let (device, given) = (*device, &self.generate.pipeline);
            let (vae_dtype, quantize, threads, max_batch) =
                (given.vae_dtype, given.quantize, given.threads, given.max_batch);
            let of =
                move |dtype: &Option<DType>| Place { device, dtype: *dtype, vae_dtype, quantize, threads, max_batch };
            self.dtypes.iter().map(of)
        };
        self.devices.iter().flat_map(of).collect()
    }

    /// Finds the model.
    pub fn model(&self) -> Result<BenchModel, Failure> {
        let path = self.generate.model.as_ref().ok_or_else(|| {
            Failure::usage(
                "--model: missing; give an SDXL checkpoint, a diffusers folder, `demo`, `synthetic:sdxl` or `synthetic:small`",
            )
        })?;
        let name = path.to_string_lossy().into_owned();
        let mut options = PipelineOptions::new(path);
        let given = &self.generate.pipeline;
        options.config.clone_from(&given.config);
        options.clip_vision.clone_from(&given.clip_vision);
        (options.threads, options.compat) = (given.threads, given.compat.clone());
        options.max_cache_bytes = 0; // every run encodes its prompt and references, as its first one did
        if let Some(kind) = name.strip_prefix("synthetic:") {
            return self.synthetic(kind, options);
        }
        let (mut adapter, mut image) = (self.adapter.clone(), self.image.clone());
        if path == Path::new("demo") && !path.exists() {
            let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
            options.model = demo.join("sdxl.safetensors");
            options.config = options.config.or_else(|| Some(demo.join("config")));
            options.clip_vision = options.clip_vision.or_else(|| Some(demo.join("image_encoder")));
            adapter = adapter.or_else(|| Some(demo.join("ip-adapter.safetensors")));
            image = image.or_else(|| Some(demo.join("references/1.png")));
        }
        if adapter.is_some() != image.is_some() {
            return Err(Failure::usage("--ip-adapter: it and --ip-adapter-image need each other"));
        }
        let images = self.images(image, &options)?;
        Ok(BenchModel { name, options, source: WeightSource::Files { adapter }, images, side: None })
    }

    /// A synthetic model.
    fn synthetic(&self, kind: &str, options: PipelineOptions) -> Result<BenchModel, Failure> {
        let (sizes, side) = match kind {
            "sdxl" => (Sizes::published(), None),
            "small" => (Sizes::small(), Some(SMALL)),
            _ => {
                return Err(Failure::usage(format!(
                    "--model: unknown model synthetic:{kind} (expected sdxl or small)"
                )));
            }
        };
        let given = [
            ("--config", options.config.is_some()),
            ("--clip-vision", options.clip_vision.is_some()),
            ("--ip-adapter", self.adapter.is_some()),
        ];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
            return Err(Failure::usage(format!("{flag}: a synthetic model brings its own; leave it out")));
        }
        let images = match &self.image {
            Some(_) => self.images(self.image.clone(), &options)?,
            None => vec![ImagePrompt::new(pattern(0)?)],
        };
        let source = WeightSource::Synthetic { sizes: Box::new(sizes), made: Box::default() };
        Ok(BenchModel { name: format!("synthetic:{kind}"), options, source, images, side })
    }

    fn images(&self, path: Option<PathBuf>, options: &PipelineOptions) -> Result<Vec<ImagePrompt>, Failure> {
        let image = path.map(|path| Image::open(path, options.compat.alpha)).transpose()?;
        Ok(image.map(ImagePrompt::new).into_iter().collect())
    }
}

/// The side of an image of the small synthetic model, whose tensors tell SDXL's.
const SMALL: usize = 128;

/// A reference that needs no file, another one for each number up to 65,535: two gradients and a grid.
pub fn pattern(number: usize) -> Result<Image, Error> {
    const SIDE: usize = 256;
    // Odd factors, so that no shift comes again before its 256th number.
    let [right, down] = [37 * number, 91 * (number / SIDE)];
    let pixel = |i: usize| {
        let (x, y) = (i % SIDE, i / SIDE);
        [(x + right) as u8, (y + down) as u8, if (x / 32 + y / 32) % 2 == 0 { 255 } else { 0 }]
    };
    Image::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(pixel).collect())
}

/// The source of the weights.
enum WeightSource {
    Files {
        adapter: Option<PathBuf>,
    },
    /// Made at the first use.
    Synthetic {
        sizes: Box<Sizes>,
        made: Box<OnceCell<ModelTensors>>,
    },
}

/// A model that can be loaded.
pub struct BenchModel {
    /// Its name as given.
    pub name: String,
    options: PipelineOptions,
    source: WeightSource,
    /// The adapter's image prompt; nothing without an adapter.
    pub images: Vec<ImagePrompt>,
    /// The side of an image where nothing was asked for; absent where the model itself knows.
    pub side: Option<usize>,
}

/// A model loaded on a device.
pub struct Loaded {
    pub pipeline: Pipeline,
    pub machine: Machine,
    /// Seconds to make synthetic weights.
    pub make_seconds: f64,
    /// Seconds to read and check files or synthetic weights.
    pub load_seconds: f64,
}

impl BenchModel {
    /// Keeps encoded prompts and references for requests that repeat them.
    pub fn keep_encoded(&mut self) {
        self.options.max_cache_bytes = PipelineOptions::new("").max_cache_bytes;
    }

    /// Whether there is an adapter.
    pub fn has_adapter(&self) -> bool {
        match &self.source {
            WeightSource::Files { adapter } => adapter.is_some(),
            WeightSource::Synthetic { .. } => true,
        }
    }

    /// Loads it on a GPU, or on the CPU, with its adapter or without.
    ///
    /// # Errors
    /// Those of [`Pipeline::load_with_device`].
    pub fn load(&self, place: &Place, gpu: Option<CudaDevice>, adapter: bool) -> Result<Loaded, Error> {
        let machine = place.machine(gpu.as_ref());
        let mut options = self.options.clone();
        let of_cpu = place.dtype.filter(|dtype| *dtype == DType::BF16);
        options.dtype = gpu.as_ref().map_or(of_cpu, |gpu| Some(gpu.lowering_options().dtype));
        options.vae_dtype = place.vae_dtype;
        options.quantize = place.quantize;
        options.max_batch = place.max_batch;
        let device = gpu.map(|gpu| Box::new(gpu) as Box<dyn Device>);
        let begin = Instant::now();
        let (pipeline, make_seconds) = match &self.source {
            WeightSource::Files { adapter: path } => {
                match path.as_ref().filter(|_| adapter) {
                    Some(path) => options.adapters = vec![path.clone()],
                    None => options.clip_vision = None,
                }
                (Pipeline::load_with_device(&options, device)?, 0.0)
            }
            WeightSource::Synthetic { sizes, made } => {
                if made.get().is_none() {
                    let _ = made.set(make(&self.name, sizes, adapter)?);
                }
                let seconds = begin.elapsed().as_secs_f64();
                (Pipeline::from_tensors(made.get().unwrap_or(&ModelTensors::default()), &options, device)?, seconds)
            }
        };
        let load_seconds = begin.elapsed().as_secs_f64() - make_seconds;
        Ok(Loaded { pipeline, machine, make_seconds, load_seconds })
    }
}

/// Makes the weights; without the adapter also without its encoder.
fn make(name: &str, sizes: &Sizes, adapter: bool) -> Result<ModelTensors, Error> {
    let checkpoint = in_memory(name, &sizes.checkpoint())?;
    if !adapter {
        return Ok(ModelTensors { checkpoint, ..ModelTensors::default() });
    }
    let clip_vision = Some(in_memory(name, &sizes.image_encoder())?);
    let adapters = vec![in_memory(name, &sizes.ip_adapter())?];
    Ok(ModelTensors { checkpoint, clip_vision, adapters, ..ModelTensors::default() })
}

/// Says why a place cannot be measured, where that is no reason to stop.
pub fn skipped(error: Error) -> Result<String, Failure> {
    match error {
        Error::Device { .. } | Error::Memory { .. } => Ok(error.message().describe(&FlagNames)),
        Error::Parameter { field: Field::DType | Field::VaeDType | Field::Quantize, .. } => {
            Ok(error.message().describe(&FlagNames))
        }
        error => Err(error.into()),
    }
}

/// The values of `--adapter`.
pub fn on_or_off(value: &mut Value<'_>) -> Result<Vec<bool>, Failure> {
    value.list(|name| match name {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Failure::usage(format!("--adapter: unknown value `{name}` (expected on or off)"))),
    })
}

/// The error for `--adapter on` without an adapter.
pub fn no_adapter() -> Failure {
    Failure::usage("--adapter: there is none to be on; give --ip-adapter and --ip-adapter-image")
}

fn dtype(name: &str) -> Result<Option<DType>, Failure> {
    match name {
        "f32" => Ok(Some(DType::F32)),
        "f16" => Ok(Some(DType::F16)),
        "bf16" => Ok(Some(DType::BF16)),
        _ => Err(Failure::usage(format!("--dtype: unknown value `{name}` (expected f32, f16 or bf16)"))),
    }
}
