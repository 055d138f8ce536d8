//! IP-Adapters on the command line: which image, weight and mask belong to which of them.

use super::failure::Failure;
use crate::error::escape;
use crate::inputs::fit::Fit;
use crate::inputs::image::{AlphaMode, Image};
use crate::names::counted;
use crate::pipeline::{Combine, ImagePrompt, Reference, ReferenceImage, Scales};
use std::path::PathBuf;

/// A reference image, or an image-prompt file, with the flags that follow it.
#[derive(Debug, Clone, Default)]
pub struct ReferenceFile {
    /// `--ip-adapter-image`.
    pub path: PathBuf,
    /// `--ip-adapter-weight`, `--ip-adapter-text` and `--ip-adapter-mask`.
    pub own: ReferenceFlags,
}

/// The flags of one reference image; before the first image of an adapter, the defaults of them all.
#[derive(Debug, Clone, Default)]
pub struct ReferenceFlags {
    /// `--ip-adapter-weight`.
    pub weight: Option<f32>,
    /// `--ip-adapter-text`: texts with their factors.
    pub texts: Vec<(String, f32)>,
    /// `--ip-adapter-mask`.
    pub mask: Option<PathBuf>,
}

/// One IP-Adapter with its images and scales.
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    /// Its file; absent only while parsing.
    pub path: PathBuf,
    /// The reference images.
    pub images: Vec<ReferenceFile>,
    /// The defaults of their flags.
    pub defaults: ReferenceFlags,
    /// `--ip-adapter-strength`.
    pub strength: Option<f32>,
    /// `--ip-adapter-blocks` as it was given.
    pub blocks: Option<String>,
    /// `--ip-adapter-combine`.
    pub combine: Option<Combine>,
    /// `--ip-adapter-start`.
    pub start: Option<f64>,
    /// `--ip-adapter-end`.
    pub end: Option<f64>,
    /// `--ip-adapter-negative-image`.
    pub negative_image: Option<PathBuf>,
}

impl Adapter {
    /// The scales that strength and blocks make.
    pub fn scales(&self) -> Result<Scales, Failure> {
        Ok(Scales::parse(self.blocks.as_deref().unwrap_or("full"), self.strength.unwrap_or(1.0))?)
    }

    /// The weights of the images.
    pub fn weights(&self) -> Vec<f32> {
        self.images.iter().map(|image| image.own.weight.or(self.defaults.weight).unwrap_or(1.0)).collect()
    }

    /// The weights of the images, where one is not the default.
    pub fn given_weights(&self) -> Option<Vec<f32>> {
        Some(self.weights()).filter(|weights| weights.iter().any(|weight| *weight != 1.0))
    }

    /// The texts of each image, where there are some.
    pub fn given_texts(&self) -> Option<Vec<&[(String, f32)]>> {
        let texts: Vec<_> = self.images.iter().map(|image| self.texts(image)).collect();
        Some(texts).filter(|texts| texts.iter().any(|texts| !texts.is_empty()))
    }

    fn texts<'a>(&'a self, image: &'a ReferenceFile) -> &'a [(String, f32)] {
        if image.own.texts.is_empty() { &self.defaults.texts } else { &image.own.texts }
    }

    /// The masks of the images.
    pub fn masks(&self) -> Vec<&PathBuf> {
        self.images.iter().filter_map(|image| self.mask(image)).collect()
    }

    fn mask<'a>(&'a self, image: &'a ReferenceFile) -> Option<&'a PathBuf> {
        image.own.mask.as_ref().or(self.defaults.mask.as_ref())
    }

    /// The flags that follow the image that was named last, or those of all images.
    pub fn reference(&mut self) -> &mut ReferenceFlags {
        match self.images.last_mut() {
            Some(image) => &mut image.own,
            None => &mut self.defaults,
        }
    }

    /// The image prompt without its images.
    fn settings(&self) -> Result<ImagePrompt, Failure> {
        let mut prompt = ImagePrompt::default().with_scale(self.scales()?);
        prompt.combine = self.combine.unwrap_or_default();
        prompt.start = self.start.unwrap_or(prompt.start);
        prompt.end = self.end.unwrap_or(prompt.end);
        Ok(prompt)
    }

    /// Reads the images; an image-prompt file stands for all of its images.
    pub fn image_prompt(
        &self,
        alpha: AlphaMode,
        resize: Option<(usize, usize)>,
        fit: Fit,
    ) -> Result<ImagePrompt, Failure> {
        let mut prompt = self.settings()?.with_fit(fit);
        prompt.resize = resize;
        for (image, weight) in self.images.iter().zip(self.weights()) {
            let mask = self.mask(image).map(|mask| Image::open(mask, AlphaMode::Ignore)).transpose()?;
            for content in ReferenceImage::open(&image.path, alpha)? {
                let mut reference = Reference::new(content).with_weight(weight);
                reference.texts = self.texts(image).to_vec();
                reference.mask = mask.clone();
                prompt.references.push(reference);
            }
        }
        if let Some(path) = &self.negative_image {
            let mut contents = ReferenceImage::open(path, alpha)?;
            if contents.len() > 1 {
                let (path, count) = (escape(&path.to_string_lossy()), contents.len());
                let what = format!("{path} holds {count} images, one is needed");
                return Err(Failure::usage(format!("--ip-adapter-negative-image: {what}")));
            }
            prompt.negative_image = contents.pop();
        }
        prompt.check()?;
        Ok(prompt)
    }

    /// A flag that was given.
    fn given(&self) -> &'static str {
        match self {
            Self { images, .. } if !images.is_empty() => "--ip-adapter-image",
            Self { strength: Some(_), .. } => "--ip-adapter-strength",
            Self { defaults: ReferenceFlags { weight: Some(_), .. }, .. } => "--ip-adapter-weight",
            Self { defaults: ReferenceFlags { texts, .. }, .. } if !texts.is_empty() => "--ip-adapter-text",
            Self { defaults: ReferenceFlags { mask: Some(_), .. }, .. } => "--ip-adapter-mask",
            Self { combine: Some(_), .. } => "--ip-adapter-combine",
            Self { start: Some(_), .. } => "--ip-adapter-start",
            Self { end: Some(_), .. } => "--ip-adapter-end",
            Self { negative_image: Some(_), .. } => "--ip-adapter-negative-image",
            _ => "--ip-adapter-blocks",
        }
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
    /// One adapter, with its file.
    pub fn one(adapter: Adapter) -> Self {
        Self { all: vec![adapter], early: false }
    }

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

    /// Checks what no single flag can, before any file is read.
    pub fn check(&self) -> Result<(), Failure> {
        for adapter in &self.all {
            if self.early {
                let flag = adapter.given();
                return Err(Failure::usage(format!("{flag}: there is no --ip-adapter that it could belong to")));
            }
            if adapter.images.is_empty() {
                let path = adapter.path.display();
                return Err(Failure::usage(format!("--ip-adapter: {path} has no image; give --ip-adapter-image")));
            }
            adapter.settings()?.check()?;
            let (masks, images) = (adapter.masks().len(), adapter.images.len());
            if masks > 0 && masks < images {
                let (masks, images) = (counted(masks, "mask"), counted(images, "image"));
                let what = "give one after each --ip-adapter-image, or none";
                return Err(Failure::usage(format!("--ip-adapter-mask: {masks} for {images}; {what}")));
            }
        }
        Ok(())
    }
}
