//! The CUDA backend's launch layer and its kernels, run by an interpreter of PTX against the CPU backend. With BRAID_TEST_DRIVER
//! the operations and the small models run on the first GPU instead (`cuda`), or on it too (`both`).

#![allow(clippy::unwrap_used)]

mod batch;
#[path = "../common/sm90.rs"]
mod block_of_sm90;
#[path = "../common/case.rs"]
mod case;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod decoder_f32;
mod demo;
#[path = "../common/demo_goldens.rs"]
mod demo_goldens;
mod denoise_loop;
#[path = "../common/device.rs"]
mod device;
#[path = "../common/drivers.rs"]
mod drivers;
mod fp8;
mod golden;
#[path = "../common/half_precision_baseline.rs"]
mod half_precision_baseline;
#[path = "../common/half_precision_limits.rs"]
mod half_precision_limits;
mod hopper;
mod init_image;
#[path = "../common/interpreter.rs"]
mod interpreter;
mod kept;
mod load;
mod prepare;
#[path = "../common/ptx.rs"]
mod ptx;
mod report;
mod resident;
mod shared;
mod single;
mod sm90;
#[path = "../common/small_unet.rs"]
mod small_unet;
mod stream;
mod together;
mod upcast_vae;
mod weight_keys;

use braid::Result;
use braid::device::cpu::Cpu;
use braid::device::cuda::CudaDevice;
use braid::device::{DenoiseInputs, DenoiseLoop, DenoiseOutput, Device, ImageInFlight};
use braid::graph::Graph;
use braid::tensor::DType;
use braid::weights::{Scope, Weight, Weights};
use drivers::{compiled, drivers, outputs, tolerance};
use interpreter::{values, weight_values};

/// Tensors in f32: name, shape, seed, see [`weight_values`].
pub fn scope(tensors: &[(&str, &[usize], u32)]) -> Scope {
    let mut weights = Weights::new("test");
    for (name, shape, seed) in tensors {
        weights.insert(*name, Weight::from_f32(&weight_values(shape, *seed), shape, name).unwrap()).unwrap();
    }
    Scope::new(weights)
}

/// The relative error in the L2 norm; infinite where one of the two is not finite.
pub fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |v: f32| f64::from(v) * f64::from(v);
    let norm: f64 = want.iter().map(|w| square(*w)).sum::<f64>().max(1e-30);
    let error = (got.iter().zip(want).map(|(g, w)| square(g - w)).sum::<f64>() / norm).sqrt();
    if error.is_finite() { error } else { f64::INFINITY }
}

/// Takes the steps that are done, and a preview where there is one.
pub type Told<'a> = &'a mut dyn FnMut(usize, Option<&[f32]>) -> Result<()>;

/// Takes one image through all its steps: `told` gets the steps that are done after each, and after the last ones, and each preview.
pub fn denoise(on: &mut dyn DenoiseLoop, inputs: DenoiseInputs, told: Told<'_>) -> Result<DenoiseOutput> {
    let mut image = ImageInFlight::new(inputs);
    while !image.is_finished() {
        let pending = on.evaluate(&mut [&mut image])?;
        if let Some(clean) = image.take_preview() {
            told(image.done(), Some(&clean))?;
        }
        told(image.done() - pending, None)?;
    }
    let done = image.done();
    let output = on.finish(image)?;
    told(done, None)?;
    Ok(output)
}

/// Runs a graph on each of them in both types, with our own products and with the library's, twice each, and compares with
/// the CPU. Returns the kernels that were launched.
pub fn check(name: &str, graph: &Graph, inputs: &[&[f32]]) -> Vec<String> {
    let want = outputs(Cpu::new(Some(1)).compile(graph.clone()).unwrap().as_mut(), inputs);
    let mut kernels = Vec::new();
    for dtype in [DType::F16, DType::BF16] {
        for (driver, library) in drivers().into_iter().flat_map(|driver| [(driver.clone(), false), (driver, true)]) {
            let name = format!("{name} on {}", driver.properties().name);
            let device = CudaDevice::new(driver, dtype).unwrap().with_cublaslt(library);
            let mut executable = device.compile_graph(graph.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
            kernels.extend(executable.report().kernels.keys().cloned());
            let got = outputs(&mut executable, inputs);
            assert_eq!(got, outputs(&mut executable, inputs), "{name}: a second run differs");
            for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                let error = relative(got, want);
                println!("{name} {dtype} library {library} output {k}: {error:.1e}");
                assert!(error <= tolerance(dtype), "{name} {dtype} library {library} output {k}: {error:.1e}");
            }
        }
    }
    kernels
}
