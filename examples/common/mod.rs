//! Shared by the examples: the model named on the command line, or a small random one.

#![allow(dead_code)] // Each example takes what it needs.

use braid::{AlphaMode, Image, Pipeline, PipelineOptions, Result};
use std::path::{Path, PathBuf};

/// The files that an example runs on.
pub struct Files {
    pub model: PathBuf,
    pub adapter: PathBuf,
    /// `None`: `image_encoder/` of the model's folder.
    pub clip_vision: Option<PathBuf>,
    pub image: PathBuf,
    pub steps: usize,
    /// Keeps the small model until the example ends.
    temporary: Option<tempfile::TempDir>,
}

impl Files {
    /// `MODEL ADAPTER IMAGE [CLIP_VISION]` of the command line, as many as are there; with none at all a small model with
    /// random weights, whose images are colourful nonsense.
    pub fn from_args() -> Result<Self> {
        let mut args = std::env::args_os().skip(1).map(PathBuf::from);
        if let Some(model) = args.next() {
            let mut next = || args.next().unwrap_or_default();
            let (adapter, image) = (next(), next());
            return Ok(Self { model, adapter, image, clip_vision: args.next(), steps: 20, temporary: None });
        }
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/diffusers");
        let folder = tempfile::tempdir().map_err(braid::Error::io("make", std::env::temp_dir()))?;
        braid::synthetic::from_recipe(&goldens.join("euler/recipe.json"), folder.path())?;
        println!("no model given: a small one with random weights");
        Ok(Self {
            model: folder.path().to_owned(),
            adapter: folder.path().join("ip-adapter.safetensors"),
            clip_vision: None,
            image: goldens.join("pictures/landscape.png"),
            steps: 4,
            temporary: Some(folder),
        })
    }

    /// The pipeline without its adapter.
    pub fn plain(&self) -> Result<Pipeline> {
        Pipeline::load(&PipelineOptions::new(&self.model))
    }

    /// The pipeline with its adapter.
    pub fn with_adapter(&self) -> Result<Pipeline> {
        let mut options = PipelineOptions::new(&self.model).with_adapter(&self.adapter);
        options.clip_vision.clone_from(&self.clip_vision);
        Pipeline::load(&options)
    }

    /// The reference image.
    pub fn reference(&self) -> Result<Image> {
        Image::open(&self.image, AlphaMode::CompositeOnWhite)
    }

    /// The path of an example's image: in the current folder for a real model, in the temporary folder for the small one.
    pub fn output(&self, name: &str) -> PathBuf {
        self.temporary.as_ref().map_or_else(|| PathBuf::from(name), |t| t.path().join(name))
    }
}
