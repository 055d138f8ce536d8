//! Small sound models from the golden recipes, and tools to damage them.
#![allow(dead_code, clippy::unwrap_used)]

use braid::pipeline::{ImagePrompt, ReferenceImage};
use braid::{Pipeline, PipelineOptions, Request};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// A model's files in a folder of their own.
pub struct Model {
    pub dir: TempDir,
    profile: &'static str,
}

/// A tensor of a safetensors file.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: safetensors::Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// The same number of bytes an element, another shape, zeros.
    pub fn shaped(&self, shape: &[usize]) -> Self {
        let size = self.bytes.len() / self.shape.iter().product::<usize>();
        Self { dtype: self.dtype, shape: shape.to_vec(), bytes: vec![0; size * shape.iter().product::<usize>()] }
    }

    /// Sets element `at`, or all.
    pub fn poison(&mut self, value: f32, at: Option<usize>) {
        let word = match self.dtype {
            safetensors::Dtype::F32 => value.to_le_bytes().to_vec(),
            safetensors::Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            safetensors::Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
            other => panic!("{other:?}"),
        };
        for (i, element) in self.bytes.chunks_exact_mut(word.len()).enumerate() {
            if at.is_none_or(|at| at == i) {
                element.copy_from_slice(&word);
            }
        }
    }
}

pub type Tensors = BTreeMap<String, Tensor>;

impl Model {
    /// A diffusers folder with one adapter.
    pub fn folder() -> Self {
        Self::golden("diffusers", "euler")
    }

    /// A single file with one adapter, DiffSynth's profile.
    pub fn file() -> Self {
        Self::golden("diffsynth", "one_image")
    }

    pub fn golden(profile: &'static str, case: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(profile).join(case);
        braid::synthetic::from_recipe(&recipe.join("recipe.json"), dir.path()).unwrap();
        Self { dir, profile }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn options(&self) -> PipelineOptions {
        let single = self.path("sdxl.safetensors");
        let mut options = if single.exists() {
            PipelineOptions::new(single).with_adapter(self.path("ip-adapter_sdxl.bin"))
        } else {
            PipelineOptions::new(self.dir.path()).with_adapter(self.path("ip-adapter.safetensors"))
        };
        options = options.with_clip_vision(self.path("image_encoder")).with_compat(self.profile.parse().unwrap());
        options.threads = Some(1);
        options
    }

    pub fn load(&self) -> braid::Result<Pipeline> {
        Pipeline::load(&self.options())
    }

    /// Changes the tensors of a safetensors file.
    pub fn edit(&self, file: &str, change: impl FnOnce(&mut Tensors)) {
        let path = self.path(file);
        let mut tensors = read(&path);
        change(&mut tensors);
        let views = tensors
            .iter()
            .map(|(n, t)| (n, safetensors::tensor::TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path(file);
        let mut value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
    }
}

pub fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(n, t)| (n, Tensor { dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.data().to_vec() }))
        .collect()
}

/// A small request with an image embedding as wide as the folder's adapter takes.
pub fn request() -> Request {
    let mut r = Request::new("a red fox in the snow");
    r.steps = 2;
    (r.width, r.height) = (Some(32), Some(32));
    r.seed = 7;
    r.image_prompts = vec![
        ImagePrompt::default().with_reference(ReferenceImage::Embedding((0..24).map(|i| i as f32 / 24.0).collect())),
    ];
    r
}

/// The bytes of all images.
pub fn generate(pipeline: &Pipeline, request: &Request) -> braid::Result<Vec<u8>> {
    let output = pipeline.generate(request)?;
    Ok(output.images.into_iter().flat_map(|p| p.into_rgb()).collect())
}

/// Warnings that `work` logs.
pub fn warnings<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let result = tracing::subscriber::with_default(Capture(lines.clone()), work);
    let lines = lines.lock().unwrap().clone();
    (result, lines)
}

struct Capture(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Capture {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{value:?} ");
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
