//! The bundled model, which was trained, through the CUDA backend: all executables, own kernels, in both types with a decoder in
//! bf16, against what diffusers generates from the same files in f32 (tests/goldens/demo).

use super::golden::psnr;
use super::{compiled, drivers, relative};
use braid::device::Device;
use braid::device::cuda::CudaDevice;
use braid::inputs::image::{AlphaMode, Image};
use braid::pipeline::{ImagePrompt, Scales};
use braid::tensor::DType;
use braid::{Pipeline, PipelineOptions, Request};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
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

/// Half precision's part: the latents' relative L2 error and the image's PSNR in dB that a type may have.
fn limits(dtype: DType) -> (f64, f64) {
    if dtype == DType::F16 { (1e-2, 45.0) } else { (6e-2, 36.0) }
}

fn diffusers_parity(dtype: DType, wanted: impl Fn(usize) -> bool) {
    let folder = root("tests/goldens/demo");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join("latents.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let options = PipelineOptions::new(root("assets/demo/sdxl.safetensors"))
        .with_config(root("assets/demo/config"))
        .with_clip_vision(root("assets/demo/image_encoder/model.safetensors"))
        .with_adapter(root("assets/demo/ip-adapter.safetensors"));
    for driver in drivers() {
        let name = driver.properties().name.clone();
        let device = CudaDevice::new(driver, dtype).unwrap().with_cublaslt(false);
        let device: Box<dyn Device> = Box::new(device.with_decoder(DType::BF16));
        let pipeline = Pipeline::load_with_device(&options, Some(device)).unwrap();
        for (i, case) in cases.iter().enumerate().filter(|(i, _)| wanted(*i)) {
            let output = pipeline.generate(&request(case)).unwrap();
            let latents = all.tensor(&i.to_string()).unwrap();
            let want: Vec<f32> =
                latents.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let got = &output.intermediates["latents"];
            assert_eq!(got.shape, latents.shape());
            let error = relative(&got.data, &want);
            let theirs = Image::open(folder.join(format!("{i}.png")), AlphaMode::Ignore).unwrap();
            let ratio = psnr(output.images[0].rgb(), theirs.rgb());
            println!("{dtype} demo {i} on {name}: latents {error:.2e}, image {ratio:.1} dB");
            let (most, least) = limits(dtype);
            assert!(error <= most, "{dtype} case {i} on {name}: latents {error:.2e}, at most {most:e}");
            assert!(ratio >= least, "{dtype} case {i} on {name}: {ratio:.1} dB, at least {least}");
        }
    }
}

#[test]
fn bundled_model_f16() {
    if compiled() {
        diffusers_parity(DType::F16, |i| i == 0);
    }
}

#[test]
#[ignore = "minutes on the interpreter: make test-full"]
fn bundled_model_goldens_f16() {
    if compiled() {
        diffusers_parity(DType::F16, |_| true);
    }
}

#[test]
#[ignore = "minutes on the interpreter: make test-full"]
fn bundled_model_goldens_bf16() {
    if compiled() {
        diffusers_parity(DType::BF16, |_| true);
    }
}
