//! Runs a case on a backend.

use super::drivers::{self, drivers, tolerance};
use super::half_precision_baseline::HalfPrecisionBaseline;
use super::interpreter::{narrow, wide};
use super::table::Case;
use braid::device::cpu::{Cpu, FpMath};
use braid::device::cuda::{ChunkLimits, CudaDevice};
use braid::device::{Device, Executable, TensorData};
use braid::graph::fuse;
use braid::tensor::DType;

/// The relative error in the L2 norm; infinite where a value is not finite.
fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm: f64 = want.iter().map(|w| w * w).sum::<f64>().max(1e-30);
    let error = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>();
    let error = (error / norm).sqrt();
    if error.is_finite() { error } else { f64::INFINITY }
}

/// Runs twice: the results must be the same.
fn outputs(executable: &mut dyn Executable, inputs: &[TensorData<'_>], name: &str) -> Vec<Vec<f32>> {
    let first = drivers::outputs(executable, inputs);
    assert_eq!(first, drivers::outputs(executable, inputs), "{name}: a second run differs");
    first
}

/// The CPU's f32 against f64, node by node and fused, on one thread and on three.
pub fn on_cpu(case: &Case) {
    let name = &case.name;
    if let Some(nodes) = case.fused_nodes {
        assert_eq!(fuse(case.graph.clone()).iter().count(), nodes, "{name}: nodes after fusion");
    }
    let fused = |threads| Cpu::new(Some(threads)).compile(case.graph.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let got = outputs(fused(1).as_mut(), &case.inputs, name);
    assert_eq!(got, outputs(fused(3).as_mut(), &case.inputs, name), "{name}: the number of threads changes the result");
    let single = HalfPrecisionBaseline { cpu: Cpu::new(Some(2)), dtype: DType::F32, decoder: DType::F32 };
    let unfused = outputs(single.compile(case.graph.clone()).unwrap().as_mut(), &case.inputs, name);
    for (k, want) in case.want.iter().enumerate() {
        for (how, got) in [("fused", &got), ("unfused", &unfused)] {
            let error = error(&got[k], want);
            assert!(error < case.f32_error, "{name} {how} output {k}: {error:.1e}");
        }
    }
}

/// The CPU with products of bf16 against f64: about as near as a plain implementation that stores everything in bf16 but rounds no
/// exponentials of attention, and the same on one thread and on three.
pub fn on_cpu_in_bf16(case: &Case) {
    let name = format!("{} in bf16", case.name);
    let compile = |threads| Cpu::new(Some(threads)).with_fp_math(FpMath::Bf16).compile(case.graph.clone()).unwrap();
    let got = outputs(compile(1).as_mut(), &case.inputs, &name);
    assert_eq!(got, outputs(compile(3).as_mut(), &case.inputs, &name), "{name}: the number of threads changes it");
    let baseline = HalfPrecisionBaseline { cpu: Cpu::new(Some(1)), dtype: DType::BF16, decoder: DType::BF16 };
    let baseline = outputs(baseline.compile(case.graph.clone()).unwrap().as_mut(), &case.inputs, &name);
    for (k, want) in case.want.iter().enumerate() {
        let (error, least) = (error(&got[k], want), error(&baseline[k], want));
        println!("{name} output {k}: {error:.1e}, a plain implementation {least:.1e}");
        assert!(
            error <= (2.0 * least).max(case.f32_error),
            "{name} output {k}: {error:.1e}, a plain implementation {least:.1e}"
        );
    }
}

/// Weights go up in several pieces, and attention's queries are taken 64 at a time.
const PIECES: ChunkLimits = ChunkLimits { staging: 512, scores: 20_000 };

/// The CUDA backend in both types, with our own products and with the library's, against f64, and beside a plain implementation
/// in the same type.
pub fn on_cuda(case: &Case) {
    let name = &case.name;
    let mut kernels: Vec<String> = Vec::new();
    for dtype in [DType::F16, DType::BF16] {
        let baseline = HalfPrecisionBaseline { cpu: Cpu::new(Some(1)), dtype, decoder: dtype };
        let rounded = |x: &TensorData<'static>| match x {
            TensorData::F32(x) => wide(&narrow(x, dtype), dtype).into(),
            TensorData::I32(_) => x.clone(),
        };
        let rounded: Vec<TensorData<'_>> = case.inputs.iter().map(rounded).collect();
        let baseline = outputs(baseline.compile(case.graph.clone()).unwrap().as_mut(), &rounded, name);
        for (driver, library) in drivers().into_iter().flat_map(|driver| [(driver.clone(), false), (driver, true)]) {
            let name = format!("{name} {dtype} on {} library {library}", driver.properties().name);
            let device = CudaDevice::new(driver.clone(), dtype).unwrap().with_cublaslt(library);
            let compiled = device.compile_graph(case.graph.clone());
            if let Some(message) = case.cuda_refuses {
                let error = compiled.map(|_| ()).expect_err(&name).to_string();
                assert!(error.contains(message), "{name}: {error}");
                continue;
            }
            let mut executable = compiled.unwrap_or_else(|e| panic!("{name}: {e}"));
            kernels.extend(executable.report().kernels.keys().cloned());
            let got = outputs(&mut executable, &case.inputs, &name);
            if !library {
                // A device of its own, which does not share the weights that are there.
                let pieces = CudaDevice::new(driver.clone(), dtype).unwrap().with_cublaslt(library).with_limits(PIECES);
                let mut pieces = pieces.compile_graph(case.graph.clone()).unwrap();
                assert_eq!(got, outputs(&mut pieces, &case.inputs, &name), "{name}: in pieces it differs");
            }
            for (k, (got, want)) in got.iter().zip(&case.want).enumerate() {
                let (error, least) = (error(got, want), error(&baseline[k], want));
                println!("{name} output {k}: {error:.1e}, {least:.1e} at least");
                assert!(error <= tolerance(dtype), "{name} output {k}: {error:.1e}");
                assert!(
                    error <= 3.0 * least.max(1e-6),
                    "{name} output {k}: {error:.1e}, a plain implementation {least:.1e}"
                );
            }
        }
    }
    let launched = |kernel: &str| kernels.iter().any(|name| name.starts_with(kernel));
    for kernel in &case.launches {
        assert!(launched(kernel), "{name}: no {kernel} among {kernels:?}");
    }
    for kernel in &case.avoids {
        assert!(!launched(kernel), "{name}: {kernel} among {kernels:?}");
    }
}
