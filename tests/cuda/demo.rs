//! The bundled model, which was trained, through the CUDA backend: all executables, own kernels, in both types with a decoder in
//! bf16, against what diffusers generates from the same files in f32 (tests/goldens/demo).

use super::block_of_sm90::MULTIPROCESSORS;
use super::demo_goldens::{DemoGoldens, options};
use super::half_precision_limits::ASKED;
use super::hopper::hopper;
use super::ptx::PtxDriver;
use super::{compiled, drivers};
use braid::Pipeline;
use braid::device::Device;
use braid::device::cuda::CudaDevice;
use braid::tensor::DType;
use braid_ptx::Schedule;
use std::sync::Arc;

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

/// The bundled model in FP8, of which the layers of 64 channels keep their type, beside diffusers' f32.
#[test]
#[ignore = "minutes on the interpreter: make test-full"]
fn bundled_model_fp8() {
    if !compiled() {
        return;
    }
    let goldens = DemoGoldens::open();
    let interpreter = Arc::new(PtxDriver::new().device((9, 0), MULTIPROCESSORS));
    let on_gpu = std::env::var_os("BRAID_TEST_DRIVER").is_some();
    let driver = if on_gpu { hopper(Schedule::InOrder) } else { Some(interpreter.clone() as _) };
    let Some(driver) = driver else { return };
    let device = CudaDevice::new(driver, DType::F16).unwrap().with_cublaslt(false).with_fp8().unwrap();
    let device: Box<dyn Device> = Box::new(device.with_decoder(DType::BF16));
    let pipeline = Pipeline::load_with_device(&options(), Some(device)).unwrap();
    for i in 0..goldens.count() {
        let (error, ratio) = goldens.compare(i, &pipeline);
        println!("fp8 demo {i}: latents {error:.2e}, image {ratio:.1} dB");
        assert!((36.0..48.0).contains(&ratio), "case {i}: {ratio:.1} dB");
    }
    let kinds = ["gemm_fp8", "gemm_geglu_fp8", "convolution_fp8"];
    assert!(on_gpu || kinds.iter().all(|kind| interpreter.launched().keys().any(|entry| entry.starts_with(kind))));
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
