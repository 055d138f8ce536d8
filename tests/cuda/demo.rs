//! The bundled model, which was trained, through the CUDA backend: all executables, own kernels, in both types with a decoder in
//! bf16, against what diffusers generates from the same files in f32 (tests/goldens/demo).

use super::demo_goldens::{DemoGoldens, options};
use super::half_precision_limits::ASKED;
use super::{compiled, drivers};
use braid::Pipeline;
use braid::device::Device;
use braid::device::cuda::CudaDevice;
use braid::tensor::DType;

fn diffusers_parity(dtype: DType, wanted: impl Fn(usize) -> bool) {
    let goldens = DemoGoldens::open();
    for driver in drivers() {
        let name = driver.properties().name.clone();
        let device = CudaDevice::new(driver, dtype).unwrap().with_cublaslt(false);
        let device: Box<dyn Device> = Box::new(device.with_decoder(DType::BF16));
        let pipeline = Pipeline::load_with_device(&options(), Some(device)).unwrap();
        for i in (0..goldens.count()).filter(|i| wanted(*i)) {
            let (error, ratio) = goldens.compare(i, &pipeline);
            println!("{dtype} demo {i} on {name}: latents {error:.2e}, image {ratio:.1} dB");
            let (most, least) = if dtype == DType::F16 { ASKED[0] } else { ASKED[1] };
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
