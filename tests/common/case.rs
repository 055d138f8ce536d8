//! Golden cases: what was asked of a peer, and what it computed, stage by stage. tools/goldens/README.md says what a case holds.
#![allow(dead_code, clippy::unwrap_used)]

use braid::inputs::image::Image;
use braid::pipeline::{HostTensor, ImagePrompt, Scales};
use braid::{AlphaMode, Compat, PipelineOptions, Request};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folder of a profile's cases.
pub fn goldens(profile: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(profile)
}

/// A case.
pub struct Case {
    pub folder: PathBuf,
    json: Value,
}

impl Case {
    pub fn open(profile: &str, name: &str) -> Self {
        let folder = goldens(profile).join(name);
        let json = serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
        Self { folder, json }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.json["request"][key].as_str()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.json["request"][key].as_f64()
    }

    fn adapters(&self) -> &[Value] {
        self.json["request"]["ip_adapters"].as_array().map_or(&[], Vec::as_slice)
    }

    fn loras(&self) -> &[Value] {
        self.json["request"]["loras"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The recipe of its model, which other cases may share.
    pub fn recipe(&self) -> PathBuf {
        self.folder.join(self.json["files"]["recipe"].as_str().unwrap_or("recipe.json"))
    }

    /// The model that the recipe made in `dir`, with the case's adapters and LoRAs.
    pub fn options(&self, dir: &Path) -> PipelineOptions {
        let mut options = PipelineOptions::new(dir.join(self.json["files"]["model"].as_str().unwrap()));
        options.compat = self.json["profile"].as_str().unwrap().parse().unwrap();
        options.clip_vision = self.json["files"]["clip_vision"].as_str().map(|p| dir.join(p));
        options.vae = self.json["files"]["vae"].as_str().map(|p| dir.join(p));
        options.taesd = self.json["files"]["taesd"].as_str().map(|p| dir.join(p));
        options.adapters = self.adapters().iter().map(|a| dir.join(a["path"].as_str().unwrap())).collect();
        options.loras = self.loras().iter().map(|l| dir.join(l["path"].as_str().unwrap())).collect();
        options.vae_tiling = self.number("vae_tiling").map(|side| side as usize);
        let embeddings = self.json["request"]["embeddings"].as_array().into_iter().flatten();
        options.embeddings = embeddings.map(|path| dir.join(path.as_str().unwrap())).collect();
        options.threads = Some(2);
        options
    }

    /// The request; all stages are kept.
    pub fn request(&self) -> Request {
        let mut r = Request::new(self.text("prompt").unwrap());
        let size = |key: &str| self.number(key).map(|v| v as usize);
        r.negative_prompt = self.text("negative_prompt").map(String::from);
        r.steps = size("steps").unwrap();
        r.guidance_scale = self.number("cfg_scale").unwrap() as f32;
        r.guidance_rescale = self.number("guidance_rescale").unwrap_or(0.0) as f32;
        r.width = size("width");
        r.height = size("height");
        r.seed = self.json["request"]["seed"].as_u64().unwrap();
        r.num_images = size("batch").unwrap_or(1);
        r.clip_skip = size("clip_skip").unwrap_or(0);
        r.eta = self.number("eta").map(|v| v as f32);
        r.scheduler = self.text("sampling_method").map(|s| s.parse().unwrap());
        r.sigma_schedule = self.text("schedule").map(|s| s.parse().unwrap());
        r.prediction_type = self.text("prediction").map(|s| s.parse().unwrap());
        r.timestep_spacing = self.text("timestep_spacing").map(|s| s.parse().unwrap());
        r.prompt_2 = self.text("prompt_2").map(String::from);
        r.negative_prompt_2 = self.text("negative_prompt_2").map(String::from);
        r.long_prompts = self.text("long_prompts").map_or(r.long_prompts, |s| s.parse().unwrap());
        r.prompt_weights = self.text("prompt_weights").map_or(r.prompt_weights, |s| s.parse().unwrap());
        for (sign, sizes) in [("", &mut r.size_conditioning), ("negative_", &mut r.negative_size_conditioning)] {
            let pair = |name: &str| self.json["request"][format!("{sign}{name}")].as_array().cloned();
            let pair = |name: &str| pair(name).map(|p| [0, 1].map(|i| p[i].as_u64().unwrap() as usize).into());
            (sizes.original_size, sizes.crop, sizes.target_size) =
                (pair("original_size"), pair("crop"), pair("target_size"));
        }
        r.strength = self.number("strength");
        // Transparency is dropped, as by diffusers' `load_image`.
        let picture = |key: &str| self.text(key).map(|p| Image::open(self.folder.join(p), AlphaMode::Ignore).unwrap());
        (r.init_image, r.mask) = (picture("init_image"), picture("mask"));
        r.lora_scales = self.loras().iter().map(|l| l["scale"].as_f64().unwrap() as f32).collect();
        r.capture_intermediates = true;
        let compat: Compat = self.json["profile"].as_str().unwrap().parse().unwrap();
        let resize = self.json["request"]["image_resize"].as_array();
        let resize = resize.map(|r| (r[0].as_u64().unwrap() as usize, r[1].as_u64().unwrap() as usize));
        for adapter in self.adapters() {
            let mut image = ImagePrompt::default();
            for path in adapter["images"].as_array().unwrap() {
                let reference = Image::open(self.folder.join(path.as_str().unwrap()), compat.alpha).unwrap();
                image.references.push(reference.into());
            }
            self.image_prompt(adapter, &mut image, compat.alpha);
            let style = self.json["request"]["instant_style"].as_bool() == Some(true);
            image.scales = match &adapter["strength"] {
                Value::Number(n) if adapter["blocks"].is_string() => {
                    Scales::parse(adapter["blocks"].as_str().unwrap(), n.as_f64().unwrap() as f32).unwrap()
                }
                Value::Number(n) if style => Scales::parse("style", n.as_f64().unwrap() as f32).unwrap(),
                Value::Number(n) => (n.as_f64().unwrap() as f32).into(),
                object => Scales::parse(&object.to_string(), 1.0).unwrap(),
            };
            image.resize = resize;
            r.image_prompts.push(image);
        }
        r
    }
}

impl Case {
    /// The settings of an image prompt that most cases leave out.
    fn image_prompt(&self, adapter: &Value, image: &mut ImagePrompt, alpha: AlphaMode) {
        let open =
            |path: &Value, alpha: AlphaMode| path.as_str().map(|p| Image::open(self.folder.join(p), alpha).unwrap());
        for (i, reference) in image.references.iter_mut().enumerate() {
            reference.weight = adapter["weights"][i].as_f64().unwrap_or(1.0) as f32;
            reference.mask = open(&adapter["masks"][i], AlphaMode::Ignore);
        }
        image.negative_image = open(&adapter["negative_image"], alpha).map(Into::into);
        image.combine = adapter["combine"].as_str().map(|s| s.parse().unwrap()).unwrap_or_default();
        image.fit = adapter["fit"].as_str().map(|s| s.parse().unwrap()).unwrap_or_default();
        image.start = adapter["start"].as_f64().unwrap_or(0.0);
        image.end = adapter["end"].as_f64().unwrap_or(1.0);
    }
}

/// A file of f32 tensors.
pub fn stages(path: &Path) -> Vec<(String, HostTensor)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |t: safetensors::tensor::TensorView<'_>| HostTensor {
        shape: t.shape().to_vec(),
        data: t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
    };
    file.tensors().into_iter().map(|(n, t)| (n, tensor(t))).collect()
}
