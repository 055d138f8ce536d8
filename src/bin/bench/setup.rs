//! What the benchmarks of requests share: the model, the devices, the request.

use crate::args::{self, Failure};
use crate::flags;
use crate::machine::{Machine, Place};
use braid::device::Device;
use braid::device::cuda::CudaDevice;
use braid::error::Field;
use braid::inputs::image::Image;
use braid::pipeline::{DeviceChoice, ImagePrompt, MAX_SIDE, MAX_THREADS, ModelTensors};
use braid::synthetic::{Sizes, in_memory};
use braid::tensor::DType;
use braid::{Compat, Error, Pipeline, PipelineOptions, Request};
use lexopt::{Arg, Parser};
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    compat: Compat,
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
            compat: Compat::diffusers(),
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
            "--compat" => self.compat = args::named(p, "--compat")?,
            "-p" | "--prompt" => self.request.prompt = args::text(p, "--prompt")?,
            "--cfg-scale" => self.request.guidance_scale = args::number(p, "--cfg-scale")?,
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
                "--model: missing; give an SDXL checkpoint, a diffusers folder, `demo`, `synthetic:sdxl` or `synthetic:small`",
            )
        })?;
        let name = path.to_string_lossy().into_owned();
        let mut options = PipelineOptions::new(path);
        (options.config, options.clip_vision, options.threads) =
            (self.config.clone(), self.encoder.clone(), self.threads);
        options.compat = self.compat.clone();
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
        Ok(Model { name, options, source: Source::Files { adapter }, images, side: None })
    }

    /// A model that is made.
    fn synthetic(&self, kind: &str, options: PipelineOptions) -> Result<Model, Failure> {
        let (sizes, side) = match kind {
            "sdxl" => (Sizes::published(), None),
            "small" => (Sizes::small(), Some(SMALL)),
            _ => return Err(Failure::usage(format!("--model: synthetic:{kind} is not known; sdxl and small are"))),
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
            None => vec![ImagePrompt::new(pattern()?)],
        };
        let source = Source::Synthetic { sizes: Box::new(sizes), made: OnceCell::new() };
        Ok(Model { name: format!("synthetic:{kind}"), options, source, images, side })
    }

    fn images(&self, path: Option<PathBuf>, options: &PipelineOptions) -> Result<Vec<ImagePrompt>, Failure> {
        let picture = path.map(|path| Image::open(path, options.compat.alpha)).transpose()?;
        Ok(picture.map(ImagePrompt::new).into_iter().collect())
    }
}

/// The side of a picture of the small synthetic model, whose tensors tell SDXL's.
const SMALL: usize = 128;

/// A reference that needs no file: two gradients and a grid.
fn pattern() -> Result<Image, Error> {
    const SIDE: usize = 256;
    let pixel = |i: usize| {
        let (x, y) = (i % SIDE, i / SIDE);
        [x as u8, y as u8, if (x / 32 + y / 32) % 2 == 0 { 255 } else { 0 }]
    };
    Image::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(pixel).collect())
}

/// Where the weights are.
enum Source {
    Files {
        adapter: Option<PathBuf>,
    },
    /// Made at the first use.
    Synthetic {
        sizes: Box<Sizes>,
        made: OnceCell<ModelTensors>,
    },
}

/// A model that can be loaded.
pub struct Model {
    /// As it was asked for.
    pub name: String,
    options: PipelineOptions,
    source: Source,
    /// The adapter's image prompt; nothing without an adapter.
    pub images: Vec<ImagePrompt>,
    /// The side of a picture where nothing was asked for; absent where the model itself knows.
    pub side: Option<usize>,
}

/// A model loaded somewhere.
pub struct Loaded {
    pub pipeline: Pipeline,
    pub machine: Machine,
    /// Making weights, where they are made.
    pub make_seconds: f64,
    /// Reading and checking files, or looking at what was made.
    pub load_seconds: f64,
}

impl Model {
    /// Whether there is an adapter.
    pub fn has_adapter(&self) -> bool {
        match &self.source {
            Source::Files { adapter } => adapter.is_some(),
            Source::Synthetic { .. } => true,
        }
    }

    /// Loads it on a GPU, or on the CPU, with its adapter or without.
    ///
    /// # Errors
    /// What the library says.
    pub fn load(&self, place: &Place, gpu: Option<CudaDevice>, adapter: bool) -> Result<Loaded, Error> {
        let machine = place.machine(gpu.as_ref());
        let mut options = self.options.clone();
        options.dtype = gpu.as_ref().map(|gpu| gpu.lowering_options().dtype);
        let device = gpu.map(|gpu| Box::new(gpu) as Box<dyn Device>);
        let begin = Instant::now();
        let (pipeline, make_seconds) = match &self.source {
            Source::Files { adapter: path } => {
                match path.as_ref().filter(|_| adapter) {
                    Some(path) => options.adapters = vec![path.clone()],
                    None => options.clip_vision = None,
                }
                (Pipeline::load_with_device(&options, device)?, 0.0)
            }
            Source::Synthetic { sizes, made } => {
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
    Ok(ModelTensors { checkpoint, clip_vision, adapters: vec![in_memory(name, &sizes.ip_adapter())?] })
}

/// Why a place cannot be measured, where that is no reason to stop.
pub fn skipped(error: Error) -> Result<String, Failure> {
    match error {
        Error::Device { .. } | Error::Memory { .. } => Ok(flags::text(&error)),
        Error::Parameter { field: Field::DType | Field::VaeDType, .. } => Ok(flags::text(&error)),
        error => Err(error.into()),
    }
}

/// A value of `--adapter`.
pub fn on_or_off(name: &str) -> Result<bool, Failure> {
    match name {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Failure::usage(format!("--adapter: `{name}` is not known; on and off are"))),
    }
}

/// What is wrong with `--adapter on` where there is none.
pub fn no_adapter() -> Failure {
    Failure::usage("--adapter: there is none to be on; give --ip-adapter and --ip-adapter-image")
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
