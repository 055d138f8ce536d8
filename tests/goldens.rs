//! Small models through the whole pipeline, stage by stage, against what the peers computed for them.
//!
//! tests/golden/README.md says what a case holds and how to make it anew.

#![allow(clippy::unwrap_used)]

use braid::inputs::picture;
use braid::pipeline::{ImagePrompt, Reference, Scales, StageTensor, Watch};
use braid::{Compat, Pipeline, PipelineOptions, Request};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn goldens(profile: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(profile)
}

struct Case {
    folder: PathBuf,
    json: Value,
}

impl Case {
    fn open(profile: &str, name: &str) -> Self {
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

    fn options(&self, dir: &Path) -> PipelineOptions {
        let mut options = PipelineOptions::new(dir.join(self.json["files"]["model"].as_str().unwrap()));
        options.compat = self.json["profile"].as_str().unwrap().parse().unwrap();
        options.clip_vision = self.json["files"]["clip_vision"].as_str().map(|p| dir.join(p));
        options.adapters = self.adapters().iter().map(|a| dir.join(a["path"].as_str().unwrap())).collect();
        options.threads = Some(2);
        options
    }

    fn request(&self) -> Request {
        let mut r = Request::new(self.text("prompt").unwrap());
        let size = |key: &str| self.number(key).map(|v| v as usize);
        r.negative_prompt = self.text("negative_prompt").map(String::from);
        r.steps = size("steps").unwrap();
        r.guidance = self.number("cfg_scale").unwrap() as f32;
        r.guidance_rescale = self.number("guidance_rescale").unwrap_or(0.0) as f32;
        r.width = size("width");
        r.height = size("height");
        r.seed = self.json["request"]["seed"].as_u64().unwrap();
        r.count = size("batch").unwrap_or(1);
        r.clip_skip = size("clip_skip").unwrap_or(0);
        r.eta = self.number("eta").map(|v| v as f32);
        r.method = self.text("sampling_method").map(|s| s.parse().unwrap());
        r.schedule = self.text("schedule").map(|s| s.parse().unwrap());
        r.prediction = self.text("prediction").map(|s| s.parse().unwrap());
        r.spacing = self.text("timestep_spacing").map(|s| s.parse().unwrap());
        r.keep_stages = true;
        let compat: Compat = self.json["profile"].as_str().unwrap().parse().unwrap();
        let resize = self.json["request"]["image_resize"].as_array();
        let resize = resize.map(|r| (r[0].as_u64().unwrap() as usize, r[1].as_u64().unwrap() as usize));
        for adapter in self.adapters() {
            let mut image = ImagePrompt::default();
            for path in adapter["images"].as_array().unwrap() {
                let picture = picture::load(self.folder.join(path.as_str().unwrap()), compat.alpha).unwrap();
                image.references.push(Reference::Picture(picture));
            }
            let style = self.json["request"]["instant_style"].as_bool() == Some(true);
            image.scales = match &adapter["strength"] {
                Value::Number(n) if style => Scales::parse("style", n.as_f64().unwrap() as f32).unwrap(),
                Value::Number(n) => (n.as_f64().unwrap() as f32).into(),
                object => Scales::parse(&object.to_string(), 1.0).unwrap(),
            };
            image.resize = resize;
            r.images.push(image);
        }
        r
    }
}

fn stages(path: &Path) -> Vec<(String, StageTensor)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |t: safetensors::tensor::TensorView<'_>| StageTensor {
        shape: t.shape().to_vec(),
        data: t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
    };
    file.tensors().into_iter().map(|(n, t)| (n, tensor(t))).collect()
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let norm: f64 = want.iter().map(|w| square(*w)).sum();
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    // Where the peer has zeros there must be zeros.
    if norm == 0.0 { if error == 0.0 { 0.0 } else { f64::INFINITY } } else { (error / norm).sqrt() }
}

/// Runs a case; the worst relative error of each stage.
fn check(profile: &str, name: &str) {
    let case = Case::open(profile, name);
    let dir = tempfile::tempdir().unwrap();
    braid::synth::from_recipe(&case.folder.join("recipe.json"), dir.path()).unwrap();
    let pipeline = Pipeline::load(&case.options(dir.path())).unwrap();
    let request = case.request();
    let output = pipeline.generate(&request, &mut Watch::default()).unwrap();
    let mut report = String::new();
    let mut failed = false;
    for (stage, want) in stages(&case.folder.join("stages.safetensors")) {
        let Some(got) = output.stages.get(&stage) else {
            report += &format!("\n  {stage}: missing");
            failed = true;
            continue;
        };
        assert_eq!(got.shape, want.shape, "{name}: {stage}");
        let worst = got.data.iter().zip(&want.data).map(|(g, w)| (g - w).abs()).fold(0f32, f32::max);
        let error = relative(&got.data, &want.data);
        let good = match stage.as_str() {
            "noise" => worst <= 2e-6,
            "image" => error <= 1e-4 && worst <= 1.0 / 255.0,
            _ => error <= 1e-4,
        };
        failed |= !good;
        report += &format!("\n  {stage}: relative {error:.1e}, worst {worst:.1e}{}", if good { "" } else { "  <--" });
    }
    println!("{profile}/{name}:{report}");
    assert!(!failed, "{profile}/{name}:{report}");
    assert_eq!(output.pictures.len(), request.count);
    // The picture is the image stage, rounded as the profile does.
    let compat: Compat = profile.parse().unwrap();
    let rounded =
        |v: &f32| if compat.truncates_pixels { (v * 255.0) as u8 } else { (v * 255.0).round_ties_even() as u8 };
    let image = &output.stages["image"];
    let pixels = image.data.len() / request.count;
    for (picture, image) in output.pictures.iter().zip(image.data.chunks_exact(pixels)) {
        let wrong = picture.rgb().iter().zip(image).filter(|(p, v)| p.abs_diff(rounded(v)) > 0).count();
        assert_eq!(wrong, 0);
    }
}

macro_rules! cases {
    ($profile:ident: $($name:ident = $folder:literal),* $(,)?) => {
        mod $profile {
            $(#[test]
            fn $name() {
                super::check(stringify!($profile), $folder);
            })*

            #[test]
            fn every_case_is_listed() {
                let listed = [$($folder),*];
                for entry in std::fs::read_dir(super::goldens(stringify!($profile))).unwrap() {
                    let entry = entry.unwrap();
                    let name = entry.file_name().into_string().unwrap();
                    if entry.path().join("case.json").exists() {
                        assert!(listed.contains(&name.as_str()), "{name} is not tested");
                    }
                }
            }
        }
    };
}

cases! { diffusers:
    ddim_style = "ddim-style",
    dpmpp_karras_two_images = "dpmpp-karras-two-images",
    euler = "euler",
    euler_a_two_adapters = "euler-a-two-adapters",
    flags_over_folder = "flags-over-folder",
    full_vocabulary_long = "full-vocabulary-long",
    full_vocabulary_unicode = "full-vocabulary-unicode",
    lcm_unguided = "lcm-unguided",
    saved_by_transformers_5 = "saved-by-transformers-5",
    style_layout_and_zero = "style-layout-and-zero",
    v_trailing_rescale = "v-trailing-rescale",
}

cases! { diffsynth:
    instant_style = "instant_style",
    long_prompt = "long_prompt",
    one_image = "one_image",
    seven_steps = "seven_steps",
    two_images = "two_images",
    unguided = "unguided",
}
