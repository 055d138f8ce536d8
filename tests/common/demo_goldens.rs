//! The images that diffusers generates from the bundled model in f32 (tests/goldens/demo).

use braid::inputs::image::{AlphaMode, Image};
use braid::pipeline::{ImagePrompt, Scales};
use braid::{Pipeline, PipelineOptions, Request};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The bundled model with its adapter.
pub fn options() -> PipelineOptions {
    PipelineOptions::new(root("assets/demo/sdxl.safetensors"))
        .with_config(root("assets/demo/config"))
        .with_clip_vision(root("assets/demo/image_encoder/model.safetensors"))
        .with_adapter(root("assets/demo/ip-adapter.safetensors"))
}

fn request(case: &Value) -> Request {
    let mut request = Request::new(case["prompt"].as_str().unwrap());
    request.negative_prompt = case["negative_prompt"].as_str().map(Into::into);
    (request.steps, request.guidance_scale, request.seed) = (16, 3.0, case["seed"].as_u64().unwrap());
    request.capture_intermediates = true;
    let reference = root("assets/demo/references").join(case["reference"].as_str().unwrap());
    let scales = match case["scale"].as_f64() {
        Some(scale) => Scales::from(scale as f32),
        None => Scales::parse(&case["scale"].to_string(), 1.0).unwrap(),
    };
    request.image_prompts =
        vec![ImagePrompt::new(Image::open(reference, AlphaMode::CompositeOnWhite).unwrap()).with_scale(scales)];
    request
}

/// The requests with the peer's latents.
pub struct DemoGoldens {
    cases: Vec<Value>,
    latents: Vec<u8>,
}

impl DemoGoldens {
    pub fn open() -> Self {
        let file = |name: &str| std::fs::read(root("tests/goldens/demo").join(name)).unwrap();
        Self { cases: serde_json::from_slice(&file("cases.json")).unwrap(), latents: file("latents.safetensors") }
    }

    pub fn count(&self) -> usize {
        self.cases.len()
    }

    /// The request of a case.
    pub fn request(&self, i: usize) -> Request {
        request(&self.cases[i])
    }

    /// Generates a case: relative L2 of the latents, PSNR of the image in dB.
    pub fn compare(&self, i: usize, pipeline: &Pipeline) -> (f64, f64) {
        let output = pipeline.generate(&self.request(i)).unwrap();
        let latents = SafeTensors::deserialize(&self.latents).unwrap();
        let latents = latents.tensor(&i.to_string()).unwrap();
        let want: Vec<f32> =
            latents.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let got = &output.intermediates["latents"];
        assert_eq!(got.shape, latents.shape());
        let theirs = Image::open(root("tests/goldens/demo").join(format!("{i}.png")), AlphaMode::Ignore).unwrap();
        (super::relative(&got.data, &want), psnr(output.images[0].rgb(), theirs.rgb()))
    }
}

/// Peak signal-to-noise ratio of two images of bytes.
pub fn psnr(got: &[u8], want: &[u8]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g.abs_diff(*w)).powi(2)).sum();
    10.0 * (255.0f64.powi(2) * got.len() as f64 / error.max(1e-9)).log10()
}
