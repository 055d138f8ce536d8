//! A small model through the whole pipeline, all five executables on the interpreter (or a GPU), against the CPU.

use super::common;
use super::demo_goldens::psnr;
use super::half_precision_baseline::HalfPrecisionBaseline;
use super::relative;
use super::{compiled, drivers};
use braid::device::cpu::Cpu;
use braid::device::cuda::CudaDevice;
use braid::device::{Device, Executable, ImageDecoder, PixelRounding};
use braid::graph::Graph;
use braid::inputs::image::Image;
use braid::pipeline::{ImagePrompt, Output, ReferenceImage};
use braid::tensor::DType;
use braid::{Compat, Pipeline, Request, Result};
use std::path::Path;

/// The same device without its denoise loop: the steps are made one by one by the host.
struct Stepwise(CudaDevice);

impl Device for Stepwise {
    fn name(&self) -> String {
        self.0.name()
    }

    fn compile(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        self.0.compile(graph)
    }

    fn compile_image_decoder(&self, graph: Graph, rounding: PixelRounding) -> Result<Box<dyn ImageDecoder>> {
        self.0.compile_image_decoder(graph, rounding)
    }
}

/// The request of the golden case `diffusers/euler`.
pub fn generate(model: &common::Model, device: Option<Box<dyn Device>>) -> Output {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/diffusers/pictures/landscape.png");
    let mut request = Request::new("a red fox in the snow");
    (request.steps, request.guidance_scale, request.seed, request.capture_intermediates) = (4, 5.0, 0, true);
    (request.width, request.height) = (Some(64), Some(48));
    let fox = Image::open(folder, Compat::diffusers().alpha).unwrap();
    request.image_prompts = vec![ImagePrompt::default().with_reference(ReferenceImage::Image(fox))];
    request.image_prompts[0].scales = 0.6.into();
    let pipeline = Pipeline::load_with_device(&model.options(), device).unwrap();
    pipeline.generate(&request).unwrap()
}

/// The error of a stage that halves cannot but make: see [`HalfPrecisionBaseline`].
fn compare(dtype: DType) {
    let model = common::Model::folder();
    let cpu = Cpu::new(Some(1));
    let want = generate(&model, Some(Box::new(cpu.clone())));
    let baseline = generate(&model, Some(Box::new(HalfPrecisionBaseline { cpu, dtype, decoder: DType::BF16 })));
    for driver in drivers() {
        let name = driver.properties().name.clone();
        let rest = CudaDevice::new(driver, dtype).unwrap().with_cublaslt(false);
        let stepwise = generate(&model, Some(Box::new(Stepwise(rest.clone()))));
        let got = generate(&model, Some(Box::new(rest)));
        for (stage, want) in &want.intermediates {
            let error = relative(&got.intermediates[stage].data, &want.data);
            let least = relative(&baseline.intermediates[stage].data, &want.data);
            let apart = relative(&got.intermediates[stage].data, &stepwise.intermediates[stage].data);
            println!("{dtype} {stage} on {name}: {error:.1e}, baseline {least:.1e}; from step by step {apart:.1e}");
            assert!(error <= 3.0 * least, "{stage} on {name}: {error:.1e}, baseline {least:.1e}");
            assert!(apart <= least, "{stage} on {name}: {apart:.1e} from step by step, baseline {least:.1e}");
        }
        let ratio = |output: &Output| psnr(output.images[0].rgb(), want.images[0].rgb());
        println!("{dtype} image on {name}: {:.1} dB, baseline {:.1} dB", ratio(&got), ratio(&baseline));
        assert!(ratio(&got) >= ratio(&baseline) - 3.0);
    }
}

#[test]
fn small_model_f16() {
    if compiled() {
        compare(DType::F16);
    }
}

#[test]
fn small_model_bf16() {
    if compiled() {
        compare(DType::BF16);
    }
}
