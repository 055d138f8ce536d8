//! The published model's launches and bytes, counted without a device.

use braid::Compat;
use braid::device::cuda::{ChunkLimits, LoweringOptions, LoweringReport};
use braid::device::{LoopSpec, Role};
use braid::models::clip::{ClipTextShape, VisionOutputs, clip_text, clip_vision};
use braid::models::ip_adapter::Adapter;
use braid::models::published;
use braid::models::unet::{BranchShape, ConditioningPart, DenoiserInterface, UnetShape, conditioning, denoiser};
use braid::models::vae::vae_decoder;
use braid::tensor::DType;
use braid::weights::{MappedBytes, Scope, TensorTable, Weight, Weights};
use std::sync::Arc;

/// Tensors of these shapes, all of them one element that repeats.
fn scope(table: TensorTable) -> Scope {
    let storage = Arc::new(MappedBytes::owned(vec![0; 2]));
    let mut weights = Weights::new("published");
    for (name, shape) in table {
        let strides = vec![0; shape.len()];
        let weight = Weight::strided(storage.clone(), 0, DType::F16, shape, strides, name.as_str()).unwrap();
        weights.insert(name, weight).unwrap();
    }
    Scope::new(weights)
}

const SETTINGS: LoweringOptions = LoweringOptions {
    dtype: DType::F16,
    multiprocessors: 132,
    capability: (9, 0),
    cublaslt: true,
    fp8: false,
    limits: ChunkLimits::DEFAULT,
};

/// The figures of issue and documentation: goals for the memory of UNet and VAE at 1024x1024 with guidance and an adapter.
#[test]
fn published_model_at_1024() {
    let compat = Compat::diffusers();
    let (config, adapter) = (published::unet(), published::adapter());
    let shape = UnetShape {
        batch: 2,
        height: 128,
        width: 128,
        tokens: 77,
        branches: BranchShape::of_adapters(&[4]),
        attribution: Vec::new(),
    };
    let report = |name: &str, graph| {
        let report = LoweringReport::of(graph, &SETTINGS).unwrap();
        println!("{name}: {report}");
        report
    };
    let weights = scope(config.tensors());
    let graph = denoiser(&config, &weights, &shape, &compat).unwrap();
    let denoise = report("denoise", graph.clone());
    let varying = DenoiserInterface::new(&config, &shape).varying();
    let steps = LoopSpec { max_steps: 64, varying, noise: true, row_axes: Vec::new(), image_rows: 2 };
    let step = LoweringReport::of_role(graph, &SETTINGS, &Role::Denoise(steps)).unwrap();
    println!("a step of the denoise loop: {step}");
    // The model's input, the step's inputs, guidance, the step and the counter; what was given is made ready before the first step.
    assert_eq!(step.launches(), denoise.launches() + 4);
    assert!(denoise.arena <= 260 << 20, "{}", denoise.arena);
    // The first convolution alone stores no moments: two norms read it.
    let norms = |report: &LoweringReport| {
        ["moments_f16", "lines_f32", "apply_f16"].map(|part| report.kernels[&format!("group_norm_{part}")])
    };
    assert_eq!(norms(&denoise), [2, 46, 46]);
    assert!(denoise.moments < denoise.arena / 16, "{}", denoise.moments);
    let quantized = denoiser(&config, &weights.clone().with_quantizable(|_| true), &shape, &compat).unwrap();
    let quantized = LoweringReport::of(quantized, &LoweringOptions { fp8: true, ..SETTINGS }).unwrap();
    assert_eq!(norms(&quantized), [2, 46, 46]);
    // 2,567,463,684 parameters less those of the condition executable, in 16 bits.
    assert!((4 << 30..6 << 30).contains(&denoise.weights), "{}", denoise.weights);
    let decode = vae_decoder(&published::vae(), &scope(published::vae().decoder_tensors()), 128, 128, &compat);
    let decode = report("decode", decode.unwrap());
    assert!(decode.arena <= 1_400_000_000, "{}", decode.arena);
    let graph = vae_decoder(&published::vae(), &scope(published::vae().decoder_tensors()), 128, 128, &compat);
    let single = LoweringReport::of(graph.unwrap(), &LoweringOptions { dtype: DType::F32, ..SETTINGS }).unwrap();
    println!("decode in f32: {single}");
    assert_eq!((single.arena, single.gemms), (2 * decode.arena, 0));
    let ip = scope(adapter.tensors());
    let adapters = [Adapter { config: &adapter, scope: &ip, positions: 0 }];
    let condition =
        report("condition", conditioning(&config, &weights, &shape, 64, &adapters, ConditioningPart::ALL).unwrap());
    let mut texts = 0;
    for (text, pooled) in [(published::text(), false), (published::text_2(), true)] {
        let weights = scope(text.tensors());
        texts += report(
            "text",
            clip_text(
                &text,
                &weights,
                ClipTextShape { rows: 1, tokens: 77, depth: text.num_hidden_layers - 1, pooled, masked: false },
            )
            .unwrap(),
        )
        .bytes();
    }
    let vision = published::vision();
    let image = report("image", clip_vision(&vision, &scope(vision.tensors()), 1, VisionOutputs::EMBEDS).unwrap());
    // A whole request: the goal is 8 GB with encoders that go after use.
    let image = image.bytes();
    let freed = decode.bytes() + texts.max(image).max(condition.bytes() + step.bytes());
    println!("at once: {:.2} GB, encoders kept: {:.2} GB", freed as f64 / 1e9, (freed + texts + image) as f64 / 1e9);
    assert!(freed <= 8_000_000_000, "{freed}");
}
