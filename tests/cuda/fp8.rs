//! Quantized products as the launch layer chooses, uploads and launches them, on the interpreter or a GPU.

use super::block_of_sm90::MULTIPROCESSORS;
use super::hopper::hopper;
use super::ptx::PtxDriver;
use super::small_unet::small_unet;
use super::{compiled, outputs, relative, scope, values};
use braid::Compat;
use braid::device::cpu::Cpu;
use braid::device::cuda::CudaDevice;
use braid::device::cuda::driver::Driver;
use braid::device::{Device, Executable, TensorData};
use braid::graph::{Builder, Graph, NodeId};
use braid::models::unet::{UnetConfig, UnetShape, denoiser};
use braid::tensor::DType;
use braid_ptx::Schedule;
use std::sync::Arc;

const WIDTH: usize = 128;

/// Convolutions (plain with a bias of each image, halved, doubled), joined layers, GEGLU, a residual, and a layer that keeps its type.
/// Its inputs are `[images, 4, 8, 128]` and `[images, 128]`.
fn block(images: usize) -> Graph {
    let kernel = [WIDTH, WIDTH, 3, 3];
    let tensors: [(&str, &[usize], u32); 11] = [
        ("in.weight", &kernel, 1),
        ("in.bias", &[WIDTH], 2),
        ("half.weight", &kernel, 3),
        ("half.bias", &[WIDTH], 4),
        ("up.weight", &kernel, 5),
        ("up.bias", &[WIDTH], 6),
        ("q.weight", &[WIDTH, WIDTH], 7),
        ("k.weight", &[WIDTH, WIDTH], 8),
        ("v.weight", &[WIDTH, WIDTH], 9),
        ("ff.weight", &[2 * WIDTH, WIDTH], 10),
        ("out.weight", &[WIDTH, WIDTH], 11),
    ];
    let (s, mut b) = (scope(&tensors).with_quantizable(|path| path != "half"), Builder::new());
    let x = b.input("x", &[images, 4, 8, WIDTH]);
    let time = b.input("time", &[images, WIDTH]);
    let h = b.conv2d(x, &s.pp("in"), WIDTH, 3, 1);
    let h = b.broadcast_add(h, time);
    let half = b.conv2d(h, &s.pp("half"), WIDTH, 3, 2);
    let up = b.upsample(half, 4, 8);
    let up = b.conv2d(up, &s.pp("up"), WIDTH, 3, 1);
    let tokens = b.reshape(h, &[images, 32, WIDTH]);
    let [q, k, v] = ["q", "k", "v"].map(|name| b.linear_no_bias(tokens, &s.pp(name), WIDTH));
    let a = b.attention(q, k, v, 2, false);
    let f = b.linear_no_bias(a, &s.pp("ff"), 2 * WIDTH);
    let f = b.geglu(f);
    let y = b.linear_no_bias(f, &s.pp("out"), WIDTH);
    let y = b.add(tokens, y);
    // Results in f32 are for other kernels.
    for (name, id) in [("y", y), ("up", up)] {
        let id = b.scale_shift(id, 0.5, 0.0);
        b.output(name, id);
    }
    b.finish().unwrap()
}

fn inputs(first: usize, images: usize) -> Vec<Vec<f32>> {
    let each = |(seed, len): (u32, usize)| {
        (first..first + images).flat_map(|image| values(len, seed + 10 * image as u32)).collect()
    };
    [(1, 4 * 8 * WIDTH), (2, WIDTH)].into_iter().map(each).collect()
}

/// Results near the CPU's, of every kind of product; the same bytes captured, under another schedule, and for an image alone. The weights
/// take half the place.
#[test]
fn block_in_fp8() {
    if !compiled() {
        return;
    }
    let device = |schedule, dtype| {
        let driver = hopper(schedule)?;
        Some((driver.clone(), CudaDevice::new(driver, dtype).unwrap().with_cublaslt(false)))
    };
    let Some((driver, halves)) = device(Schedule::InOrder, DType::F16) else { return };
    let given = inputs(0, 2);
    let run = |executable: &mut dyn Executable, inputs: &[Vec<f32>]| {
        outputs(executable, &inputs.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let want = run(Cpu::new(Some(1)).compile(block(2)).unwrap().as_mut(), &given);
    let hopper = halves.clone().with_fp8().unwrap();
    let mut executable = hopper.compile_graph(block(2)).unwrap();
    let kernels = executable.report().kernels.clone();
    let count = |start: &str| kernels.iter().filter(|(name, _)| name.starts_with(start)).map(|(_, n)| n).sum::<usize>();
    let all = ["gemm_fp8_sm90_", "gemm_geglu_fp8_sm90_", "convolution_fp8_sm90_", "quantize_rows_"].map(count);
    assert_eq!((all, count("convolution_") - all[2]), ([2, 1, 2, 5], 1), "{kernels:?}");
    let before = driver.calls();
    let got = run(&mut executable, &given);
    for (k, (got, want)) in got.iter().zip(&want).enumerate() {
        let error = relative(got, want);
        println!("output {k}: {error:.1e}");
        assert!((5e-3..6e-2).contains(&error), "output {k}: {error:.1e}");
    }
    assert_eq!(got, run(&mut executable, &given));
    let calls = driver.calls();
    assert_eq!((calls.captures - before.captures, calls.graph_launches - before.graph_launches), (1, 1));
    let bytes = [hopper.clone(), halves.clone()].map(|d| d.compile_graph(block(2)).unwrap().report().weights);
    // One of the convolutions is as large in both.
    assert!(bytes[0] < bytes[1] * 6 / 10 + 9 * WIDTH * WIDTH, "{bytes:?}");
    let other = device(Schedule::Random(3), DType::F16).unwrap().1.with_fp8().unwrap();
    assert_eq!(got, run(&mut other.compile_graph(block(2)).unwrap(), &given), "the schedule changes a result");
    let second = run(&mut hopper.compile_graph(block(1)).unwrap(), &inputs(1, 1));
    for (got, alone) in got.iter().zip(&second) {
        assert_eq!(&got[alone.len()..], alone, "an image depends on the others of its batch");
    }
    let bf16 = device(Schedule::Greedy, DType::BF16).unwrap().1.with_fp8().unwrap();
    for (got, want) in run(&mut bf16.compile_graph(block(2)).unwrap(), &given).iter().zip(&want) {
        assert!(relative(got, want) < 6e-2);
    }
}

/// A UNet of two levels of SDXL's, with random weights: FP8 and f16 beside f32.
#[test]
#[ignore = "minutes on the interpreter: make test-full"]
fn unet_of_published_widths() {
    if !compiled() {
        return;
    }
    let config = UnetConfig {
        block_out_channels: vec![320, 640],
        transformer_layers_per_block: vec![0, 1],
        num_attention_heads: vec![5, 10],
        norm_num_groups: 32,
        ..small_unet()
    };
    let table = config.tensors();
    let tensors: Vec<(&str, &[usize], u32)> =
        (1..).zip(&table).map(|(seed, (name, shape))| (name.as_str(), shape.as_slice(), seed)).collect();
    let shape = UnetShape { batch: 1, height: 8, width: 8, tokens: 9, branches: Vec::new(), attribution: Vec::new() };
    let graph = denoiser(&config, &scope(&tensors), &shape, &Compat::diffusers()).unwrap();
    let input = |(k, (name, id)): (usize, &(String, NodeId))| -> TensorData<'_> {
        match name.as_str() {
            "tokens" => vec![9].into(),
            _ => values(graph.node(*id).len(), 1000 + k as u32).into(),
        }
    };
    let inputs: Vec<TensorData<'_>> = graph.inputs.iter().enumerate().map(input).collect();
    let want = outputs(Cpu::new(None).compile(graph.clone()).unwrap().as_mut(), &inputs);
    let Some(driver) = hopper(Schedule::InOrder) else { return };
    let halves = CudaDevice::new(driver, DType::F16).unwrap().with_cublaslt(false);
    let [halves, fp8] = [halves.clone(), halves.with_fp8().unwrap()].map(|device| {
        let got = outputs(&mut device.compile_graph(graph.clone()).unwrap(), &inputs);
        relative(&got[0], &want[0])
    });
    println!("f16 {halves:.1e}, fp8 {fp8:.1e}");
    assert!(halves < 1e-3 && (5e-3..4e-2).contains(&fp8), "f16 {halves:.1e}, fp8 {fp8:.1e}");
}

/// Other devices say what to do.
#[test]
fn devices_without_fp8() {
    for capability in [(8, 9), (10, 0)] {
        let driver = Arc::new(PtxDriver::new().device(capability, MULTIPROCESSORS));
        let name = driver.properties().name.clone();
        let error = CudaDevice::new(driver, DType::F16).unwrap().with_fp8().unwrap_err().to_string();
        let (major, minor) = capability;
        let start =
            format!("quantize: fp8 is for GPUs of compute capability 9.0 (H100, H200), and {name} has {major}.{minor}");
        assert!(error.starts_with(&start) && error.contains("leave it out"), "{error}");
    }
}
