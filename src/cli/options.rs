//! The options of `braid generate`.

use super::adapters::Adapters;
use super::failure::Failure;
use super::files;
use super::flag::MetadataExtent;
use super::presets::{Given, Preset};
use crate::inputs::fit::Fit;
use crate::inputs::image::{AlphaMode, Image};
use crate::output::ImageFormat;
use crate::pipeline::{DEFAULT_STRENGTH, DeviceChoice, ImagePrompt, PipelineOptions, Request};
use lexopt::Parser;
use serde_json::{Map, Value as Json};
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};

/// The command as it was given, for the record in the images that it writes.
#[derive(Debug, Clone, Default)]
pub struct Invocation {
    /// The arguments after `braid`; none where one is not UTF-8, and where the options were made otherwise.
    pub command: Option<Vec<String>>,
    /// The line of `--batch`.
    pub line: Option<Map<String, Json>>,
}

impl Invocation {
    /// The command of that name with the arguments that are still to be parsed.
    pub fn new(name: &str, parser: &mut Parser) -> Self {
        let arguments = parser.try_raw_args().map(|arguments| arguments.as_slice().to_vec()).unwrap_or_default();
        let arguments = arguments.into_iter().map(|argument| argument.into_string().ok());
        Self { command: std::iter::once(Some(name.to_owned())).chain(arguments).collect(), line: None }
    }
}

/// The options that the flags set: the library's own structs, and the command's own options.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--model`; required.
    pub model: Option<PathBuf>,
    /// `--prompt`; required.
    pub prompt: Option<String>,
    /// The options of the pipeline, without the model and the adapters.
    pub pipeline: PipelineOptions,
    /// The request, without prompt, seed and image prompts.
    pub request: Request,
    /// The IP-Adapters.
    pub adapters: Adapters,
    /// The LoRAs with their scales.
    pub loras: Vec<(PathBuf, f32)>,
    /// `--preset`.
    pub preset: Option<Preset>,
    /// The flags that a preset leaves alone.
    pub given: Given,
    /// The size that reference images are stretched to.
    pub resize: Option<(usize, usize)>,
    /// `--ip-adapter-fit`.
    pub fit: Fit,
    /// The file of the image that the encoder sees.
    pub save_reference: Option<PathBuf>,
    /// `None`: a random one.
    pub seed: Option<u64>,
    /// The file of requests.
    pub batch: Option<PathBuf>,
    /// The image file.
    pub output: PathBuf,
    /// The file of the image to begin with.
    pub init_image: Option<PathBuf>,
    /// The file of the mask of what is drawn anew.
    pub mask: Option<PathBuf>,
    /// The file of the noise.
    pub latents: Option<PathBuf>,
    /// The file of the intermediate results.
    pub dump: Option<PathBuf>,
    /// The file of previews.
    pub preview: Option<PathBuf>,
    /// The model evaluations from one preview to the next.
    pub preview_every: Option<usize>,
    /// The file of the sheet of where each reference acted.
    pub attribution: Option<PathBuf>,
    /// Whether a line of JSON is printed.
    pub json: bool,
    /// The extent of the images' metadata.
    pub metadata: MetadataExtent,
    /// Whether the images carry hashes of every byte of the weights.
    pub record_hashes: bool,
    /// The command.
    pub invocation: Invocation,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: None,
            prompt: None,
            pipeline: PipelineOptions::new("").with_device(DeviceChoice::Auto),
            request: Request::new(""),
            adapters: Adapters::default(),
            loras: Vec::new(),
            preset: None,
            given: Given::default(),
            resize: None,
            fit: Fit::default(),
            save_reference: None,
            seed: Some(0),
            batch: None,
            output: "braid.png".into(),
            init_image: None,
            mask: None,
            latents: None,
            dump: None,
            preview: None,
            preview_every: None,
            attribution: None,
            json: false,
            metadata: MetadataExtent::Full,
            record_hashes: false,
            invocation: Invocation::default(),
        }
    }
}

impl Options {
    /// Checks what no single flag can, and completes the library's options.
    pub fn check(&mut self) -> Result<(), Failure> {
        self.adapters.check()?;
        let missing = "--model: missing; give an SDXL checkpoint (.safetensors) or a diffusers folder";
        self.pipeline.model = self.model.clone().ok_or_else(|| Failure::usage(missing))?;
        let missing = "--prompt: missing; an empty one is written --prompt ''";
        self.request.prompt = self.prompt.clone().ok_or_else(|| Failure::usage(missing))?;
        let place = |p: &Path| std::path::absolute(p).unwrap_or_else(|_| p.to_owned());
        let references = self.reference_names();
        let names = files::numbered(&self.output, self.request.num_images);
        let (previews, sheets) = (self.preview_names(), self.attribution_names());
        let written = [
            ("--dump", self.dump.as_slice()),
            ("--save-reference", &references),
            ("--preview", &previews),
            ("--attribution", &sheets),
        ];
        for (flag, files) in written {
            if names.iter().any(|name| files.iter().any(|file| place(name) == place(file))) {
                return Err(Failure::usage(format!("{flag}: names the same file as --output")));
            }
        }
        if self.preview_every.is_some() && self.preview.is_none() {
            return Err(Failure::usage("--preview-every: there is no --preview"));
        }
        if references.iter().any(|name| ImageFormat::of(name).ok() != Some(ImageFormat::Png)) {
            return Err(Failure::usage("--save-reference: the file is a PNG; its name must end in .png"));
        }
        if self.request.strength.is_some() && self.init_image.is_none() {
            return Err(Failure::usage("--strength: there is no --init-img on which it could act"));
        }
        if self.mask.is_some() && self.init_image.is_none() {
            return Err(Failure::usage("--mask: there is no --init-img that it could mask"));
        }
        let (fit, saves) = (self.fit != Fit::default(), self.save_reference.is_some());
        let lonely = [
            (self.resize.is_some(), "--ip-adapter-image-resize"),
            (fit, "--ip-adapter-fit"),
            (saves, "--save-reference"),
            (self.attribution.is_some(), "--attribution"),
        ];
        if let Some((_, flag)) = lonely.iter().find(|(given, _)| *given && self.adapters.all.is_empty()) {
            return Err(Failure::usage(format!("{flag}: there is no --ip-adapter")));
        }
        self.pipeline.adapters = self.adapters.all.iter().map(|adapter| adapter.path.clone()).collect();
        (self.pipeline.loras, self.request.lora_scales) = self.loras.iter().cloned().unzip();
        self.given.init_image = self.init_image.is_some();
        if let Some(preset) = self.preset {
            preset.apply(&mut self.request, self.given);
        }
        // Those of a file of requests are numbered over all of them, and checked there.
        let images = self.batch.is_none().then_some(("--output", &names[..]));
        let written = written.into_iter().chain(images);
        let written = written.flat_map(|(flag, files)| files.iter().map(move |file| (flag, file.as_path())));
        files::check_inputs_stay(written, self.model_files().chain(self.input_files()))?;
        self.request.capture_intermediates = self.dump.is_some();
        self.request.attribution = self.attribution.is_some();
        Ok(())
    }

    /// The models' files and folders, and the file of requests.
    pub fn model_files(&self) -> impl Iterator<Item = &Path> {
        let of_pipeline = &self.pipeline;
        let several = of_pipeline.adapters.iter().chain(&of_pipeline.loras).chain(&of_pipeline.embeddings);
        let single = [&of_pipeline.config, &of_pipeline.vae, &of_pipeline.taesd, &of_pipeline.clip_vision, &self.batch];
        std::iter::once(&of_pipeline.model).chain(several).chain(single.into_iter().flatten()).map(PathBuf::as_path)
    }

    /// The strength that counts, where there is an image to begin with.
    pub fn strength(&self) -> Option<f64> {
        self.init_image.as_ref().map(|_| self.request.strength.unwrap_or(DEFAULT_STRENGTH))
    }

    /// Reads the image to begin with, and its mask. Their transparency is dropped, as by diffusers' `load_image`.
    pub fn init_image_and_mask(&self) -> Result<[Option<Image>; 2], Failure> {
        let open = |path: &Option<PathBuf>| path.as_ref().map(|path| Image::open(path, AlphaMode::Ignore)).transpose();
        Ok([open(&self.init_image)?, open(&self.mask)?])
    }

    /// The files that the request reads besides the models.
    pub fn input_files(&self) -> Vec<&Path> {
        let adapters = self.adapters.all.iter().flat_map(|adapter| {
            let images = adapter.images.iter().map(|image| &image.path);
            images.chain(adapter.masks()).chain(&adapter.negative_image)
        });
        adapters.chain(&self.init_image).chain(&self.mask).chain(&self.latents).map(PathBuf::as_path).collect()
    }

    /// The files of the images that the encoder sees, one for each reference image.
    pub fn reference_names(&self) -> Vec<PathBuf> {
        let count = self.adapters.all.iter().map(|adapter| adapter.images.len()).sum();
        self.save_reference.iter().flat_map(|name| files::numbered(name, count)).collect()
    }

    /// The seed, or one that is drawn now: of 32 bits, as torch's CPU generator looks at no more.
    pub fn drawn_seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish() >> 32)
    }

    /// The files of previews, one for each image.
    pub fn preview_names(&self) -> Vec<PathBuf> {
        self.preview.iter().flat_map(|name| files::numbered(name, self.request.num_images)).collect()
    }

    /// The files of the sheets of where each reference acted, one for each image.
    pub fn attribution_names(&self) -> Vec<PathBuf> {
        self.attribution.iter().flat_map(|name| files::numbered(name, self.request.num_images)).collect()
    }

    /// Reads the reference images.
    pub fn image_prompts(&self) -> Result<Vec<ImagePrompt>, Failure> {
        let alpha = self.pipeline.compat.alpha;
        self.adapters.all.iter().map(|adapter| adapter.image_prompt(alpha, self.resize, self.fit)).collect()
    }
}
