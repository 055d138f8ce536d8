//! The options of `braid generate`.

use super::failure::Failure;
use super::files;
use super::presets::{Given, Preset};
use crate::inputs::image::{AlphaMode, Image};
use crate::pipeline::{DEFAULT_STRENGTH, DeviceChoice, ImagePrompt, PipelineOptions, Request, Scales};
use std::path::{Path, PathBuf};

/// One IP-Adapter with its images and scales.
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    /// Its file; absent only while parsing.
    pub path: PathBuf,
    /// The reference images.
    pub images: Vec<PathBuf>,
    /// `--ip-adapter-strength`.
    pub strength: Option<f32>,
    /// `--ip-adapter-blocks` as it was given.
    pub blocks: Option<String>,
}

impl Adapter {
    /// The scales that strength and blocks make.
    pub fn scales(&self) -> Result<Scales, Failure> {
        Ok(Scales::parse(self.blocks.as_deref().unwrap_or("full"), self.strength.unwrap_or(1.0))?)
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
    /// `None`: a random one.
    pub seed: Option<u64>,
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
    /// Whether a line of JSON is printed.
    pub json: bool,
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
            seed: Some(0),
            output: "braid.png".into(),
            init_image: None,
            mask: None,
            latents: None,
            dump: None,
            json: false,
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
        if let Some(dump) = &self.dump {
            let place = |p: &Path| std::path::absolute(p).unwrap_or_else(|_| p.to_owned());
            let names = files::numbered(&self.output, self.request.num_images);
            if names.iter().any(|name| place(name) == place(dump)) {
                return Err(Failure::usage("--dump: names the same file as --output"));
            }
        }
        if self.request.strength.is_some() && self.init_image.is_none() {
            return Err(Failure::usage("--strength: there is no --init-img on which it could act"));
        }
        if self.mask.is_some() && self.init_image.is_none() {
            return Err(Failure::usage("--mask: there is no --init-img that it could mask"));
        }
        if self.resize.is_some() && self.adapters.all.is_empty() {
            return Err(Failure::usage("--ip-adapter-image-resize: there is no --ip-adapter"));
        }
        self.pipeline.adapters = self.adapters.all.iter().map(|adapter| adapter.path.clone()).collect();
        (self.pipeline.loras, self.request.lora_scales) = self.loras.iter().cloned().unzip();
        self.given.init_image = self.init_image.is_some();
        if let Some(preset) = self.preset {
            preset.apply(&mut self.request, self.given);
        }
        self.request.capture_intermediates = self.dump.is_some();
        Ok(())
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

    /// Reads the reference images.
    pub fn image_prompts(&self) -> Result<Vec<ImagePrompt>, Failure> {
        let prompt = |adapter: &Adapter| {
            let mut prompt = ImagePrompt::default().with_scale(adapter.scales()?);
            prompt.resize = self.resize;
            for path in &adapter.images {
                prompt.references.push(Image::open(path, self.pipeline.compat.alpha)?.into());
            }
            Ok(prompt)
        };
        self.adapters.all.iter().map(prompt).collect()
    }
}

/// Collects adapters: a flag belongs to the adapter before it, or to the first one if none is.
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    /// The adapters, in the order of their flags.
    pub all: Vec<Adapter>,
    /// Whether flags came before the first `--ip-adapter`.
    early: bool,
}

impl Adapters {
    /// Begins a new adapter.
    pub fn open(&mut self, path: PathBuf) {
        if std::mem::take(&mut self.early) {
            self.last().path = path;
        } else {
            self.all.push(Adapter { path, ..Adapter::default() });
        }
    }

    /// The adapter that a flag belongs to.
    pub fn last(&mut self) -> &mut Adapter {
        if self.all.is_empty() {
            self.early = true;
            self.all.push(Adapter::default());
        }
        let at = self.all.len() - 1;
        &mut self.all[at]
    }

    fn check(&self) -> Result<(), Failure> {
        for adapter in &self.all {
            if self.early {
                let flag = match adapter {
                    Adapter { images, .. } if !images.is_empty() => "--ip-adapter-image",
                    Adapter { strength: Some(_), .. } => "--ip-adapter-strength",
                    _ => "--ip-adapter-blocks",
                };
                return Err(Failure::usage(format!("{flag}: there is no --ip-adapter that it could belong to")));
            }
            if adapter.images.is_empty() {
                let path = adapter.path.display();
                return Err(Failure::usage(format!("--ip-adapter: {path} has no image; give --ip-adapter-image")));
            }
            adapter.scales()?;
        }
        Ok(())
    }
}
