//! The devices on which the tests of operations and small models run, and what running an executable there takes.

use super::device::{self, Where};
use super::interpreter;
use super::ptx::PtxDriver;
use braid::device::cuda::driver::Driver;
use braid::device::{Executable, TensorData};
use braid::tensor::DType;
use std::sync::Arc;

/// Whether there is what a test needs: kernels, and the device that BRAID_TEST_DRIVER names.
pub fn compiled() -> bool {
    interpreter::compiled() && device::there()
}

/// The drivers that the tests run on: the interpreter, a GPU, or both.
pub fn drivers() -> Vec<Arc<dyn Driver>> {
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

/// The error that a type's rounding of operands, weights and results may cause in a few operations in a row.
pub fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F16 { 1.5e-3 } else { 1.2e-2 }
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
