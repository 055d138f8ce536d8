//! The calls that an executable makes to its driver, and when.

use super::{compiled, outputs, ptx, scope, values};
use braid::device::Device;
use braid::device::cuda::driver::{CallCounts, Driver};
use braid::device::cuda::{CudaDevice, LoweringReport};
use braid::graph::{Builder, Graph};
use braid::tensor::DType;
use braid_ptx::Schedule;
use ptx::PtxDriver;
use std::sync::Arc;

fn graph() -> Graph {
    let s = scope(&[("weight", &[24, 16], 1), ("bias", &[24], 2), ("next.weight", &[8, 24], 3)]);
    let mut b = Builder::new();
    let x = b.input("x", &[2, 5, 16]);
    let y = b.linear(x, &s, 24);
    let y = b.linear_no_bias(y, &s.pp("next"), 8);
    b.output("y", y);
    b.finish().unwrap()
}

fn difference(after: CallCounts, before: CallCounts) -> [u64; 6] {
    let all = |c: CallCounts| [c.launches, c.gemms, c.graph_launches, c.copies, c.allocations, c.synchronizations];
    let (after, before) = (all(after), all(before));
    std::array::from_fn(|i| after[i] - before[i])
}

/// A run is one upload, one graph launch, one download: nothing is allocated or launched one by one, and the one wait is for the
/// result.
#[test]
fn launched_run() {
    if !compiled() {
        return;
    }
    let driver = Arc::new(PtxDriver::new());
    let device = CudaDevice::new(driver.clone(), DType::F16).unwrap();
    let mut executable = device.compile_graph(graph()).unwrap();
    let x = values(160, 5);
    let before = driver.calls();
    let first = outputs(&mut executable, &[&x]);
    // Two products of the library, and the conversion of the input; the result is f32 at once.
    assert_eq!(difference(driver.calls(), before), [1, 2, 0, 2, 0, 1]);
    // Captured in the second run, launched as a graph from then on.
    for wanted in [[1, 2, 1, 2, 0, 1], [0, 0, 1, 2, 0, 1], [0, 0, 1, 2, 0, 1]] {
        let before = driver.calls();
        assert_eq!(outputs(&mut executable, &[&x]), first);
        assert_eq!(difference(driver.calls(), before), wanted);
    }
    // A driver that does not capture does the same.
    let direct = CudaDevice::new(Arc::new(PtxDriver::new().direct()), DType::F16).unwrap();
    let mut executable = direct.compile_graph(graph()).unwrap();
    assert_eq!(outputs(&mut executable, &[&x]), first);
}

/// Whatever the order of warps and the moment at which copies arrive.
#[test]
fn schedule_invariance() {
    if !compiled() {
        return;
    }
    let x = values(160, 5);
    let run = |schedule| {
        let driver = PtxDriver::new().schedule(schedule);
        let device = CudaDevice::new(Arc::new(driver), DType::F16).unwrap().with_cublaslt(false);
        outputs(&mut device.compile_graph(graph()).unwrap(), &[&x])
    };
    let first = run(Schedule::InOrder);
    assert_eq!(run(Schedule::Greedy), first);
    assert_eq!(run(Schedule::Random(7)), first);
}

#[test]
fn freed_memory() {
    if !compiled() {
        return;
    }
    let driver = Arc::new(PtxDriver::new());
    let device = CudaDevice::new(driver.clone(), DType::BF16).unwrap();
    let report = LoweringReport::of(graph(), device.lowering_options()).unwrap();
    for _ in 0..3 {
        let executable = device.compile(graph()).unwrap();
        assert_eq!((driver.held(), executable.bytes()), (report.bytes(), report.bytes()));
    }
    assert_eq!(driver.held(), 0);
}

#[test]
fn refusal_before_allocation() {
    let driver = Arc::new(PtxDriver::new().room(1000));
    let device = CudaDevice::new(driver.clone(), DType::F16).unwrap();
    let text = device.compile(graph()).map(|_| ()).unwrap_err().to_string();
    assert!(text.starts_with("out of memory in loading: ") && text.contains("1000 available"), "{text}");
    assert_eq!(driver.calls(), CallCounts::default());
}

#[test]
fn wrong_binding() {
    if !compiled() {
        return;
    }
    let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap();
    let mut executable = device.compile(graph()).unwrap();
    let mut out = [0.0; 80];
    let text = executable.run(&[(&[0.0; 5]).into()], &mut [&mut out]).unwrap_err().to_string();
    assert!(text.contains("`x` is f32 [2, 5, 16], bound to 5 values of f32"), "{text}");
    let text = executable.run(&[(&[0; 160]).into()], &mut [&mut out]).unwrap_err().to_string();
    assert!(text.contains("`x` is f32 [2, 5, 16], bound to 160 values of i32"), "{text}");
}

/// Tensor and number: widths that are no multiple of 8.
#[test]
fn unsupported_operations() {
    let refusal = |build: &dyn Fn(&mut Builder)| {
        let mut b = Builder::new();
        build(&mut b);
        let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap();
        device.compile(b.finish().unwrap()).map(|_| ()).unwrap_err().to_string()
    };
    let s = scope(&[
        ("norm.weight", &[12], 1),
        ("norm.bias", &[12], 2),
        ("joined.weight", &[24], 3),
        ("joined.bias", &[24], 4),
        ("conv.weight", &[16, 20, 3, 3], 5),
    ]);
    let layer = refusal(&|b| {
        let x = b.input("x", &[1, 3, 12]);
        let y = b.layer_norm(x, &s.pp("norm"), 1e-5);
        b.output("y", y);
    });
    let group = refusal(&|b| {
        let [x, y] = [b.input("x", &[1, 3, 3, 12]), b.input("y", &[1, 3, 3, 12])];
        let x = b.concat(x, y);
        let y = b.group_norm(x, &s.pp("joined"), 4, 1e-5);
        b.output("y", y);
    });
    let convolution = refusal(&|b| {
        let x = b.input("x", &[1, 3, 3, 20]);
        let y = b.conv2d_no_bias(x, &s.pp("conv"), 16, 3, 1);
        b.output("y", y);
    });
    let attention = refusal(&|b| {
        let x = b.input("x", &[1, 3, 12]);
        let y = b.attention(x, x, x, 1, false);
        b.output("y", y);
    });
    for (text, name, number) in [
        (layer, "`norm.weight` [1, 3, 12]", "12 channels"),
        (group, "`joined.weight` [1, 3, 3, 24]", "sources of 12 and 12 channels"),
        (convolution, "`conv.weight` [1, 3, 3, 16]", "20 input channels"),
        (attention, "`attention` [1, 3, 12]", "12 channels"),
    ] {
        assert!(text.contains(name) && text.contains(number) && text.contains("of 8"), "{text}");
        assert!(text.contains("the CPU runs it"), "{text}");
    }
    // Numbers beyond 32 bits, and none.
    for shape in [[1, 1 << 27], [1 << 31, 1], [0, 8]] {
        let text = refusal(&|b| {
            let x = b.input("x", &shape);
            let y = b.scale_shift(x, 2.0, 0.0);
            b.output("y", y);
        });
        assert!(text.contains("too large or empty"), "{text}");
    }
    assert!(CudaDevice::new(Arc::new(PtxDriver::new()), DType::F32).is_err());
}

/// The same image alone and beside another: the same bytes.
#[test]
fn batch_invariance() {
    if !compiled() {
        return;
    }
    let s = scope(&[
        ("conv.weight", &[40, 16, 3, 3], 1),
        ("norm.weight", &[40], 2),
        ("norm.bias", &[40], 3),
        ("out.weight", &[16, 40], 4),
    ]);
    let graph = |images: usize| {
        let mut b = Builder::new();
        let x = b.input("x", &[images, 9, 10, 16]);
        let y = b.conv2d_no_bias(x, &s.pp("conv"), 40, 3, 1);
        let y = b.group_norm(y, &s.pp("norm"), 8, 1e-5);
        let q = b.reshape(y, &[images, 90, 40]);
        let y = b.attention(q, q, q, 1, false);
        let y = b.linear_no_bias(y, &s.pp("out"), 16);
        b.output("y", y);
        b.finish().unwrap()
    };
    let x = values(3 * 90 * 16, 7);
    for library in [false, true] {
        let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_cublaslt(library);
        let together = outputs(device.compile(graph(3)).unwrap().as_mut(), &[&x]);
        for image in 0..3 {
            let alone = outputs(device.compile(graph(1)).unwrap().as_mut(), &[&x[image * 1440..][..1440]]);
            assert_eq!(alone[0], together[0][image * 1440..][..1440], "image {image}, library {library}");
        }
    }
}
