//! What the benchmarks of requests share: the model, the devices, the request.

use crate::args::{self, Failure};
use crate::machine::{Machine, Place};
use braid::device::Device;
use braid::device::cuda::CudaDevice;
use braid::inputs::picture;
use braid::pipeline::{DeviceChoice, ImagePrompt, MAX_SIDE, MAX_THREADS};
use braid::tensor::DType;
use braid::{Error, Pipeline, PipelineOptions, Request};
use lexopt::{Arg, Parser};
use std::path::{Path, PathBuf};

/// The next option, by the name that errors give it; `None` after the last.
pub fn next(p: &mut Parser) -> Result<Option<String>, Failure> {
    Ok(match p.next().map_err(args::usage)? {
        None => None,
        Some(Arg::Short(c)) => Some(format!("-{c}")),
        Some(Arg::Long(name)) => Some(format!("--{name}")),
        Some(other) => return Err(args::unexpected_of(other, "bench --help")),
    })
}

/// An option that nobody knows.
pub fn unknown(option: &str) -> Failure {
    Failure::usage(format!("option {option} is not known; see `bench --help`"))
}

/// The flags of a request and of what it runs on.
pub struct Setup {
    model: Option<PathBuf>,
    config: Option<PathBuf>,
    encoder: Option<PathBuf>,
    adapter: Option<PathBuf>,
    image: Option<PathBuf>,
    threads: Option<usize>,
    devices: Vec<DeviceChoice>,
    dtypes: Vec<Option<DType>>,
    vae_dtype: Option<DType>,
    /// Without its image prompts.
    pub request: Request,
}

impl Setup {
    pub fn new() -> Self {
        Self {
            model: None,
            config: None,
            encoder: None,
            adapter: None,
            image: None,
            threads: None,
            devices: vec![DeviceChoice::Auto],
            dtypes: vec![None],
            vae_dtype: None,
            request: Request::new("a red fox in the snow"),
        }
    }

    /// Reads the option's value, if it is one of these.
    pub fn take(&mut self, option: &str, p: &mut Parser) -> Result<bool, Failure> {
        let path = |p: &mut Parser, flag| args::value(p, flag).map(|value| Some(PathBuf::from(value)));
        match option {
            "-m" | "--model" => self.model = path(p, "--model")?,
            "--config" => self.config = path(p, "--config")?,
            "--clip-vision" => self.encoder = path(p, "--clip-vision")?,
            "--ip-adapter" => self.adapter = path(p, "--ip-adapter")?,
            "--ip-adapter-image" => self.image = path(p, "--ip-adapter-image")?,
            "-t" | "--threads" => self.threads = Some(args::count(p, "--threads", 1, MAX_THREADS)?),
            "--device" => self.devices = list(p, "--device", |name| Ok(name.parse()?))?,
            "--dtype" => self.dtypes = list(p, "--dtype", |name| dtype("--dtype", name).map(Some))?,
            "--vae-dtype" => self.vae_dtype = Some(dtype("--vae-dtype", &args::text(p, "--vae-dtype")?)?),
            "-p" | "--prompt" => self.request.prompt = args::text(p, "--prompt")?,
            "--cfg-scale" => self.request.guidance = args::number(p, "--cfg-scale")?,
            "-W" | "--width" => self.request.width = Some(args::count(p, "--width", 1, MAX_SIDE)?),
            "-H" | "--height" => self.request.height = Some(args::count(p, "--height", 1, MAX_SIDE)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Every device with every type, as asked for.
    pub fn places(&self) -> Vec<Place> {
        let of = |device: &DeviceChoice| {
            let (device, vae_dtype, threads) = (*device, self.vae_dtype, self.threads);
            self.dtypes.iter().map(move |dtype| Place { device, dtype: *dtype, vae_dtype, threads })
        };
        self.devices.iter().flat_map(of).collect()
    }

    /// Finds the model.
    pub fn model(&self) -> Result<Model, Failure> {
        let path = self.model.as_ref().ok_or_else(|| {
            Failure::usage(
                "--model: missing; give an SDXL checkpoint, a diffusers folder, or `demo`, the bundled model",
            )
        })?;
        let mut options = PipelineOptions::new(path);
        (options.config, options.clip_vision, options.threads) =
            (self.config.clone(), self.encoder.clone(), self.threads);
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
        let images = match &image {
            Some(image) => vec![ImagePrompt::new(picture::load(image, options.compat.alpha)?)],
            None => Vec::new(),
        };
        Ok(Model { name: path.to_string_lossy().into_owned(), options, adapter, images })
    }
}

/// A model that can be loaded.
pub struct Model {
    /// As it was asked for.
    pub name: String,
    options: PipelineOptions,
    adapter: Option<PathBuf>,
    /// The adapter's image prompt; nothing without an adapter.
    pub images: Vec<ImagePrompt>,
}

/// A model loaded somewhere.
pub struct Loaded {
    pub pipeline: Pipeline,
    pub machine: Machine,
}

impl Model {
    /// Whether there is an adapter.
    pub fn has_adapter(&self) -> bool {
        self.adapter.is_some()
    }

    /// Loads it on a GPU, or on the CPU, with its adapter or without.
    ///
    /// # Errors
    /// What the library says.
    pub fn load(&self, place: &Place, gpu: Option<CudaDevice>, adapter: bool) -> Result<Loaded, Error> {
        let machine = place.machine(gpu.as_ref());
        let mut options = self.options.clone();
        options.dtype = gpu.as_ref().map(|gpu| gpu.settings().dtype);
        match self.adapter.as_ref().filter(|_| adapter) {
            Some(path) => options.adapters = vec![path.clone()],
            None => options.clip_vision = None,
        }
        let device = gpu.map(|gpu| Box::new(gpu) as Box<dyn Device>);
        Ok(Loaded { pipeline: Pipeline::load_on(&options, device)?, machine })
    }
}

/// Why a place cannot be measured, where that is no reason to stop.
pub fn skipped(error: Error) -> Result<String, Failure> {
    match error {
        Error::Device { .. } | Error::Memory { .. } => Ok(error.to_string()),
        Error::Parameter { ref name, .. } if name == "--dtype" || name == "--vae-dtype" => Ok(error.to_string()),
        error => Err(error.into()),
    }
}

/// Values with commas between them.
pub fn list<T>(p: &mut Parser, flag: &str, read: impl Fn(&str) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
    args::text(p, flag)?.split(',').map(|item| read(item.trim())).collect()
}

fn dtype(flag: &str, name: &str) -> Result<DType, Failure> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err(Failure::usage(format!("{flag}: `{name}` is not known; f32, f16 and bf16 are"))),
    }
}
