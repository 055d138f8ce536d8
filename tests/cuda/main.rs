//! The CUDA backend's launch layer and its kernels, run by an interpreter of PTX against the CPU backend. With BRAID_TEST_DRIVER
//! the operations and the small models run on the first GPU instead (`cuda`), or on it too (`both`).

#![allow(clippy::unwrap_used)]

mod batch;
#[path = "../common/case.rs"]
mod case;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod decoder_f32;
mod demo;
mod denoise_loop;
#[path = "../common/device.rs"]
mod device;
mod golden;
#[path = "../common/half_precision_baseline.rs"]
mod half_precision_baseline;
#[path = "../common/interpreter.rs"]
mod interpreter;
mod load;
mod prepare;
#[path = "../common/ptx.rs"]
mod ptx;
mod report;
mod resident;
mod shared;
mod single;

use braid::device::cpu::Cpu;
use braid::device::cuda::CudaDevice;
use braid::device::cuda::driver::Driver;
use braid::device::{Device, Executable, TensorData};
use braid::graph::Graph;
use braid::tensor::DType;
use braid::weights::{Scope, Weight, Weights};
use device::Where;
use interpreter::values;
use ptx::PtxDriver;
use std::sync::Arc;

/// Tensors in f32: name, shape, seed. Weights of products are scaled so that results stay about as large as operands.
pub fn scope(tensors: &[(&str, &[usize], u32)]) -> Scope {
    let mut weights = Weights::new("test");
    for (name, shape, seed) in tensors {
        let fan: usize = shape[1..].iter().product();
        let scale = (3.0 / fan as f32).sqrt().min(1.0);
        let data: Vec<f32> = values(shape.iter().product(), *seed).iter().map(|v| v * scale).collect();
        weights.insert(*name, Weight::from_f32(&data, shape, name).unwrap()).unwrap();
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

/// Runs an executable into buffers of NaN.
pub fn outputs<'a>(executable: &mut dyn Executable, inputs: &[impl Clone + Into<TensorData<'a>>]) -> Vec<Vec<f32>> {
    let inputs: Vec<TensorData<'_>> = inputs.iter().cloned().map(Into::into).collect();
    let graph = executable.graph();
    let mut out: Vec<Vec<f32>> = graph.outputs.iter().map(|(_, id)| vec![f32::NAN; graph.node(*id).len()]).collect();
    let mut slices: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
    executable.run(&inputs, &mut slices).unwrap();
    out
}

/// The error that a type's rounding of operands, weights and results may cause in a few operations in a row.
pub fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F16 { 1.5e-3 } else { 1.2e-2 }
}

/// Whether there is what a test needs: kernels, and the device that BRAID_TEST_DRIVER names.
fn compiled() -> bool {
    interpreter::compiled() && device::there()
}

/// The drivers that the tests run on: the interpreter, a GPU, or both.
fn drivers() -> Vec<Arc<dyn Driver>> {
    let which = device::chosen();
    let mut drivers: Vec<Arc<dyn Driver>> = Vec::new();
    if which != Where::Cuda {
        drivers.push(Arc::new(PtxDriver::new()));
    }
    if matches!(which, Where::Cuda | Where::Both) {
        drivers.extend(device::cuda());
    }
    drivers
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
