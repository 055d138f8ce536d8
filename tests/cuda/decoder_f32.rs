//! The decoder in f32.

use super::demo_goldens::psnr;
use super::golden::generate;
use super::ptx::PtxDriver;
use super::{common, compiled, drivers, outputs, relative, scope, values};
use braid::Result;
use braid::device::cpu::Cpu;
use braid::device::cuda::{CudaDevice, LoweringOptions, LoweringReport};
use braid::device::{Device, Executable, ImageDecoder, PixelRounding, Role, TensorRef};
use braid::graph::{Activation, Builder, Graph};
use braid::tensor::DType;
use std::sync::Arc;

const DECODE: Role = Role::Decode(PixelRounding::Nearest);
/// The greatest difference of the CPU and a GPU, each of which adds in its own order.
const BOUND: f64 = 2e-6;

/// All layers of a decoder, at odd sizes: few channels in and out, resnets with and without a shortcut, an attention
/// of two heads, a doubling.
fn decoder(h: usize, w: usize) -> Graph {
    let s = scope(&[
        ("quant.weight", &[4, 4, 1, 1], 1),
        ("quant.bias", &[4], 2),
        ("in.weight", &[24, 4, 3, 3], 3),
        ("in.bias", &[24], 4),
        ("norm.weight", &[24], 5),
        ("norm.bias", &[24], 6),
        ("conv.weight", &[40, 24, 3, 3], 7),
        ("conv.bias", &[40], 8),
        ("short.weight", &[40, 24, 1, 1], 9),
        ("q.weight", &[48, 40], 10),
        ("k.weight", &[48, 40], 11),
        ("v.weight", &[48, 40], 12),
        ("v.bias", &[48], 13),
        ("back.weight", &[40, 48], 14),
        ("up.weight", &[72, 40, 3, 3], 15),
        ("up.bias", &[72], 16),
        ("last.weight", &[72], 17),
        ("last.bias", &[72], 18),
        ("out.weight", &[3, 72, 3, 3], 19),
        ("out.bias", &[3], 20),
    ]);
    let mut b = Builder::new();
    let x = b.input("latents", &[1, h, w, 4]);
    let x = b.scale_shift(x, 1.3, 0.1);
    let x = b.conv2d(x, &s.pp("quant"), 4, 1, 1);
    let x = b.conv2d(x, &s.pp("in"), 24, 3, 1);
    let y = b.group_norm(x, &s.pp("norm"), 4, 1e-6);
    let y = b.activation(y, Activation::Silu);
    let y = b.conv2d(y, &s.pp("conv"), 40, 3, 1);
    let x = b.linear_no_bias(x, &s.pp("short"), 40);
    let x = b.add(x, y);
    let [q, k] = ["q", "k"].map(|name| b.linear_no_bias(x, &s.pp(name), 48));
    let v = b.linear(x, &s.pp("v"), 48);
    let y = b.attention(q, k, v, 2, false);
    let y = b.linear_no_bias(y, &s.pp("back"), 40);
    let x = b.add(x, y);
    let x = b.upsample(x, 2 * h, 2 * w);
    let x = b.conv2d(x, &s.pp("up"), 72, 3, 1);
    let x = b.group_norm(x, &s.pp("last"), 8, 1e-6);
    let x = b.activation(x, Activation::Silu);
    let x = b.conv2d(x, &s.pp("out"), 3, 3, 1);
    b.output("image", x);
    b.finish().unwrap()
}

#[test]
fn odd_decoder_sizes() {
    if !compiled() {
        return;
    }
    for (h, w) in [(1, 1), (5, 7), (9, 8)] {
        let latents = values(h * w * 4, 21);
        let want = outputs(Cpu::new(Some(1)).compile(decoder(h, w)).unwrap().as_mut(), &[&latents]);
        for driver in drivers() {
            let device = CudaDevice::new(driver, DType::F16).unwrap().with_decoder(DType::F32);
            let mut executable = device.compile_image_decoder(decoder(h, w), PixelRounding::Nearest).unwrap();
            let got = executable.decode(&TensorRef::from(latents.as_slice()), true).unwrap().image;
            let error = relative(&got, &want[0]);
            println!("{h}x{w}: {error:.1e}");
            assert!(error <= BOUND, "{h}x{w}: {error:.1e}");
        }
    }
}

/// The decoder on the device, all else on the CPU.
struct Split(Cpu, CudaDevice);

impl Device for Split {
    fn name(&self) -> String {
        "split".into()
    }

    fn compile(&self, graph: Graph) -> Result<Box<dyn Executable>> {
        self.0.compile(graph)
    }

    fn compile_image_decoder(&self, graph: Graph, rounding: PixelRounding) -> Result<Box<dyn ImageDecoder>> {
        self.1.compile_image_decoder(graph, rounding)
    }
}

/// The small model's image of the same latents: in f32 the CPU's, in bf16 what bf16 makes of it.
#[test]
fn small_model_image() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let cpu = Cpu::new(Some(1));
    let want = generate(&model, Some(Box::new(cpu.clone())));
    for (dtype, bound, least) in [(DType::F32, BOUND, 80.0), (DType::BF16, 0.1, 30.0)] {
        let cuda = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_decoder(dtype);
        let got = generate(&model, Some(Box::new(Split(cpu.clone(), cuda))));
        assert_eq!(got.intermediates["latents"].data, want.intermediates["latents"].data);
        let error = relative(&got.intermediates["image"].data, &want.intermediates["image"].data);
        let ratio = psnr(got.images[0].rgb(), want.images[0].rgb());
        println!("decoder in {dtype}: {error:.1e}, {ratio:.1} dB");
        assert!(error <= bound && ratio >= least, "{dtype}: {error:.1e}, {ratio:.1} dB");
    }
}

/// The arena of bf16 twice, known before anything is loaded; what is no decoder's operation is refused by name.
#[test]
fn estimates_and_refusals() {
    let device = |decoder| CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_decoder(decoder);
    let report = |dtype| {
        let report = LoweringReport::of_role(
            decoder(64, 64),
            &LoweringOptions { dtype, ..*device(dtype).lowering_options() },
            &DECODE,
        )
        .unwrap();
        let need = device(dtype).memory_requirement(vec![(decoder(64, 64), DECODE)]).unwrap();
        assert_eq!((need.bytes, need.staging), (report.bytes() as u64, report.staging as u64));
        report
    };
    let (single, half) = (report(DType::F32), report(DType::BF16));
    assert_eq!(single.arena, 2 * half.arena);
    assert!(single.weights > half.weights * 19 / 10);
    let s = scope(&[("norm.weight", &[16], 1), ("norm.bias", &[16], 2)]);
    let mut b = Builder::new();
    let x = b.input("x", &[1, 3, 16]);
    let y = b.layer_norm(x, &s.pp("norm"), 1e-5);
    b.output("y", y);
    let refused = device(DType::F32).compile_image_decoder(b.finish().unwrap(), PixelRounding::Nearest);
    let text = refused.map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("`layer_norm` for f32"), "{text}");
}
