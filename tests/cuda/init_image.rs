//! Requests that begin with an image, all executables on the interpreter (or a GPU): the golden cases of diffusers, and the loop of
//! an inpainting beside the host's.

use super::case::{Case, stages};
use super::half_precision_baseline::HalfPrecisionBaseline;
use super::ptx::PtxDriver;
use super::{compiled, denoise, drivers, relative, scope, values};
use braid::device::cpu::Cpu;
use braid::device::cuda::CudaDevice;
use braid::device::host::HostDenoiseLoop;
use braid::device::{Compiled, DenoiseInputs, DenoiseLoop, Device, KeptLatents, LoopSpec};
use braid::graph::{Builder, Graph};
use braid::schedulers::{SchedulerConfig, SchedulerKind};
use braid::tensor::DType;
use braid::{Output, Pipeline};
use std::path::Path;
use std::sync::Arc;

/// Every stage within three times of what halves cannot but cost, the VAE in bf16 or in f32.
fn check(name: &str, dtype: DType, vae: DType) {
    if !compiled() {
        return;
    }
    let case = Case::open("diffusers", name);
    let dir = tempfile::tempdir().unwrap();
    braid::synthetic::from_recipe(&case.folder.join("recipe.json"), dir.path()).unwrap();
    let generate = |folder: &Path, device: Box<dyn Device>| -> Output {
        let pipeline = Pipeline::load_with_device(&case.options(folder), Some(device)).unwrap();
        pipeline.generate(&case.request()).unwrap()
    };
    let cpu = Cpu::new(Some(2));
    let baseline = generate(dir.path(), Box::new(HalfPrecisionBaseline { cpu, dtype, decoder: vae }));
    for driver in drivers() {
        let on = driver.properties().name.clone();
        let device = CudaDevice::new(driver, dtype).unwrap().with_cublaslt(false).with_decoder(vae);
        let got = generate(dir.path(), Box::new(device));
        for (stage, want) in stages(&case.folder.join("stages.safetensors")) {
            let error = relative(&got.intermediates[&stage].data, &want.data);
            let least = relative(&baseline.intermediates[&stage].data, &want.data);
            println!("{name} {dtype} {stage} on {on}: {error:.1e}, baseline {least:.1e}");
            assert!(
                error <= 3.0 * least.max(1e-7),
                "{name} {dtype} {stage} on {on}: {error:.1e}, baseline {least:.1e}"
            );
        }
    }
}

#[test]
fn image_to_image() {
    check("img2img-euler", DType::F16, DType::BF16);
}

#[test]
fn inpainting_with_nine_channels() {
    check("inpaint-channels", DType::F16, DType::F32);
}

/// The loop below has what differs from the case above.
#[test]
#[ignore = "as long as those above; make test-full runs it"]
fn inpainting_with_four_channels() {
    check("inpaint-blend", DType::BF16, DType::BF16);
}

const SIDES: [usize; 2] = [16, 33];
const PIXELS: usize = SIDES[0] * SIDES[1];

/// A denoiser in small whose sample is wider than its latents.
fn graph(wide: usize) -> Graph {
    let s = scope(&[("in.weight", &[8, wide, 3, 3], 1), ("out.weight", &[4, 8, 3, 3], 4)]);
    let mut b = Builder::new();
    let x = b.input("sample", &[2, SIDES[0], SIDES[1], wide]);
    let x = b.conv2d_no_bias(x, &s.pp("in"), 8, 3, 1);
    let x = b.conv2d_no_bias(x, &s.pp("out"), 4, 3, 1);
    b.output("output", x);
    b.finish().unwrap()
}

/// The device's loop against the host's over the same kernels, with channels beside the latents and with latents that are kept; the
/// request after it shows nothing of these.
#[test]
fn loop_of_an_inpainting() {
    if !compiled() {
        return;
    }
    for wide in [4, 9] {
        let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_cublaslt(false);
        let spec = |noise| LoopSpec { max_steps: 8, varying: 1..1, noise, row_axes: Vec::new(), image_rows: 2 };
        // One with memory for fresh noise, one in which what is kept follows earlier steps' tensors.
        let mut loops = [true, false].map(|noise| {
            let mut own = device.compile_loop(graph(wide), spec(noise)).unwrap();
            own.warmup().unwrap();
            own
        });
        let mut host = HostDenoiseLoop::new(device.compile(graph(wide)).unwrap(), &spec(true)).unwrap();
        let n = PIXELS * 4;
        let (latents, extra) = (values(n, 1), values(PIXELS * (wide - 4), 2));
        let mask: Vec<f32> = values(n, 3).iter().map(|v| f32::from(*v > 0.0)).collect();
        let (image, fixed) = (values(n, 4), values(n, 5));
        let mut results = Vec::new();
        for (method, keeps) in [
            (SchedulerKind::EulerAncestral, true),
            // With all that a loop keeps of earlier steps.
            (SchedulerKind::Lms, true),
            (SchedulerKind::Dpmpp2M, true),
            (SchedulerKind::Dpmpp2M, false),
        ] {
            let config = SchedulerConfig::sdxl_default().with_kind(method).unwrap();
            let table = config.image_to_image_table(6, 0.7).unwrap();
            let [image, fixed] = [&image, &fixed];
            let kept = || KeptLatents { mask: mask.clone(), image: image.clone(), noise: fixed.clone() };
            let run = |on: &mut dyn DenoiseLoop| {
                let inputs = DenoiseInputs {
                    rows: 2,
                    inputs: vec![Arc::new(Vec::<f32>::new().into())],
                    table: table.steps.as_slice().into(),
                    guidance_scale: 3.0,
                    guidance_rescale: 0.5,
                    latents: latents.clone(),
                    extra: extra.clone(),
                    kept: keeps.then(kept),
                    noise: Box::new(move |step| values(n, 20 + step as u32)),
                    capture_first: false,
                    preview_every: None,
                };
                denoise(on, inputs, &mut |_, _| Ok(())).unwrap().latents.read().unwrap().into_owned()
            };
            let own = &mut loops[usize::from(method != SchedulerKind::EulerAncestral)];
            let (got, want) = (run(own), run(&mut host));
            let error = relative(&got, &want);
            println!("{method} of {wide}, kept {keeps}: {error:.1e} from the host's steps");
            assert!(error <= 1e-3, "{method} {wide}: {error:.1e}");
            let clean = got.iter().zip(image).zip(&mask).all(|((got, image), mask)| *mask == 1.0 || got == image);
            assert_eq!(clean, keeps, "{method} {wide}");
            results.push(got);
        }
        assert!(relative(&results[2], &results[3]) > 0.1);
    }
}
