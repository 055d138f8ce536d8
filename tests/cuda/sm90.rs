//! The kernels of sm_90a as the launch layer chooses and launches them, on the interpreter or a GPU.

use super::block_of_sm90::{KERNELS, block, inputs};
use super::hopper::hopper;
use super::{compiled, outputs, relative, tolerance};
use braid::device::Device;
use braid::device::cpu::Cpu;
use braid::device::cuda::CudaDevice;
use braid::tensor::DType;
use braid_ptx::Schedule;

fn slices(inputs: &[Vec<f32>]) -> Vec<&[f32]> {
    inputs.iter().map(Vec::as_slice).collect()
}

/// The CPU's results; the same bytes issued, captured and launched again, under another schedule, and for an image alone, which has
/// other tiles.
#[test]
fn block_by_wgmma() {
    if !compiled() {
        return;
    }
    let device = |schedule, dtype| {
        let driver = hopper(schedule)?;
        Some((driver.clone(), CudaDevice::new(driver, dtype).unwrap().with_cublaslt(false)))
    };
    let Some((driver, hopper)) = device(Schedule::InOrder, DType::F16) else { return };
    let given = inputs(0, 2);
    let want = outputs(Cpu::new(Some(1)).compile(block(2)).unwrap().as_mut(), &slices(&given));
    let mut executable = hopper.compile_graph(block(2)).unwrap();
    let launched: Vec<String> = executable.report().kernels.keys().cloned().collect();
    for kernel in KERNELS {
        assert!(launched.iter().any(|name| name.starts_with(kernel)), "{kernel}: {launched:?}");
    }
    // The third norm's input alone has no moments from a kernel that stores it.
    let norms = ["moments_f16", "lines_f32", "apply_f16"];
    let norms = norms.map(|part| executable.report().kernels[&format!("group_norm_{part}")]);
    assert_eq!(norms, [1, 3, 3]);
    let others = launched.iter().filter(|name| !name.contains("_sm90_"));
    assert!(
        others.clone().all(|name| !["gemm", "conv", "attention"].iter().any(|kind| name.starts_with(kind))),
        "{launched:?}"
    );
    let before = driver.calls();
    let got = outputs(&mut executable, &slices(&given));
    for (k, (got, want)) in got.iter().zip(&want).enumerate() {
        let error = relative(got, want);
        println!("output {k}: {error:.1e}");
        assert!(error <= 2.0 * tolerance(DType::F16), "output {k}: {error:.1e}");
    }
    // Captured, and launched as a graph.
    assert_eq!(got, outputs(&mut executable, &slices(&given)));
    let calls = driver.calls();
    assert_eq!((calls.captures - before.captures, calls.graph_launches - before.graph_launches), (1, 1));
    let mut other = device(Schedule::Random(3), DType::F16).unwrap().1.compile_graph(block(2)).unwrap();
    assert_eq!(got, outputs(&mut other, &slices(&given)), "the schedule changes a result");
    let mut alone = hopper.compile_graph(block(1)).unwrap();
    assert_ne!(launched, alone.report().kernels.keys().cloned().collect::<Vec<_>>(), "the same tiles");
    let second = outputs(&mut alone, &slices(&inputs(1, 1)));
    for (got, alone) in got.iter().zip(&second) {
        assert_eq!(&got[alone.len()..], alone, "an image depends on the others of its batch");
    }
    let mut halves = device(Schedule::Greedy, DType::BF16).unwrap().1.compile_graph(block(2)).unwrap();
    for (got, want) in outputs(&mut halves, &slices(&given)).iter().zip(&want) {
        assert!(relative(got, want) <= 2.0 * tolerance(DType::BF16));
    }
}
