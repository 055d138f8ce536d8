//! An image does not depend on the rest of its batch, and a step asks nothing of the driver but one graph launch.

use super::block_of_sm90::MULTIPROCESSORS;
use super::common;
use super::ptx::PtxDriver;
use super::small_unet::small_unet;
use super::{compiled, outputs, relative, scope, tolerance, values};
use braid::Compat;
use braid::device::cpu::Cpu;
use braid::device::cuda::CudaDevice;
use braid::device::cuda::driver::{CallCounts, Driver};
use braid::device::{Device, TensorData};
use braid::error::{Error, Field};
use braid::graph::{Activation, Builder, Graph};
use braid::models::clip::{ClipTextConfig, ClipTextShape, ClipVisionConfig, VisionOutputs, clip_text, clip_vision};
use braid::models::unet::{BranchShape, UnetShape, denoiser};
use braid::pipeline::{Callbacks, ImagePrompt, Output, Progress, ReferenceImage, Stage};
use braid::schedulers::SchedulerKind;
use braid::tensor::DType;
use braid::weights::TensorTable;
use braid::{Pipeline, Request};
use std::sync::Arc;

const ROWS: usize = 4;

fn device(driver: &Arc<PtxDriver>, library: bool) -> CudaDevice {
    CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(library)
}

fn pipeline(model: &common::Model, noise: Option<u64>) -> (Arc<PtxDriver>, Pipeline) {
    let driver = Arc::new(PtxDriver::new());
    let mut options = model.options();
    options.max_noise_bytes = noise.unwrap_or(options.max_noise_bytes);
    let device = device(&driver, false);
    (driver, Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap())
}

/// Guided, with rescale, fresh noise and two images for a prompt.
fn request() -> Request {
    let embedding = |seed| ReferenceImage::Embedding(values(24, seed));
    let mut request = common::request();
    (request.width, request.height) = (Some(16), Some(24));
    (request.steps, request.scheduler) = (4, Some(SchedulerKind::EulerAncestral));
    (request.guidance_scale, request.guidance_rescale) = (4.0, 0.6);
    request.image_prompts = vec![ImagePrompt::default().with_reference(embedding(1)).with_reference(embedding(2))];
    request
}

fn generate(pipeline: &Pipeline, request: &Request) -> Output {
    pipeline.generate(request).unwrap()
}

/// A whole UNet of three levels: each row of four has the bytes that it has alone, with tokens, scales and images of its own.
#[test]
fn unet_batch_invariance() {
    if !compiled() {
        return;
    }
    let config = small_unet();
    let table = config.tensors();
    let tensors: Vec<(&str, &[usize], u32)> =
        table.iter().enumerate().map(|(i, (name, shape))| (name.as_str(), shape.as_slice(), i as u32)).collect();
    let weights = scope(&tensors);
    let graph = |batch| {
        let shape = UnetShape {
            batch,
            height: 8,
            width: 6,
            tokens: 9,
            branches: BranchShape::of_adapters(&[4, 8]),
            attribution: Vec::new(),
        };
        denoiser(&config, &weights, &shape, &Compat::diffusers()).unwrap()
    };
    let together = graph(ROWS);
    let inputs: Vec<TensorData<'_>> = (together.inputs.iter().enumerate())
        .map(|(k, (name, id))| match name.as_str() {
            "tokens" => vec![9, 2, 7, 1].into(),
            "image_tokens.0" => vec![4, 0, 3, 4].into(),
            "image_tokens.1" => vec![0, 8, 1, 4].into(),
            _ => values(together.node(*id).len(), 1000 + k as u32).into(),
        })
        .collect();
    // Scales are [L, A, B], everything else has the row first.
    let row = |r: usize| -> Vec<TensorData<'_>> {
        let all = together.inputs.iter().zip(&inputs);
        all.map(|((name, _), all)| match (name.as_str(), all) {
            ("scales", TensorData::F32(all)) => all.iter().skip(r).step_by(ROWS).copied().collect::<Vec<_>>().into(),
            _ => all.slice(r * all.len() / ROWS..(r + 1) * all.len() / ROWS),
        })
        .collect()
    };
    for library in [false, true] {
        let device = device(&Arc::new(PtxDriver::new()), library);
        let run = |batch, inputs: &[TensorData<'_>]| -> Vec<f32> {
            outputs(device.compile(graph(batch)).unwrap().as_mut(), inputs).remove(0)
        };
        let all = run(ROWS, &inputs);
        for r in 0..ROWS {
            let alone = run(1, &row(r));
            assert!(alone.iter().all(|v| v.is_finite()) && alone.iter().any(|v| *v != 0.0));
            assert_eq!(alone, all[r * alone.len()..][..alone.len()], "row {r}, library {library}");
        }
    }
}

/// An encoder's graph of so many rows, and its inputs of [`ROWS`].
type Encoder = (Box<dyn Fn(usize) -> Graph>, Vec<TensorData<'static>>);

/// Encoders of texts of 77 tokens and of images, of that width and with heads of 64.
fn encoders(width: usize, image_size: usize) -> [Encoder; 2] {
    let text = ClipTextConfig {
        hidden_size: width,
        num_hidden_layers: 2,
        num_attention_heads: width / 64,
        intermediate_size: 2 * width,
        activation: Activation::Gelu,
        eps: 1e-5,
        vocab_size: 60,
        added_tokens: 0,
        max_position_embeddings: 77,
        projection_dim: Some(24),
        eos_token_id: 2,
    };
    let vision = ClipVisionConfig {
        hidden_size: width,
        num_hidden_layers: 2,
        num_attention_heads: width / 64,
        intermediate_size: 2 * width,
        activation: Activation::QuickGelu,
        eps: 1e-5,
        image_size,
        patch_size: 14,
        projection_dim: 24,
    };
    let weights = |table: TensorTable| {
        let named = table.iter().enumerate();
        scope(&named.map(|(i, (name, shape))| (name.as_str(), shape.as_slice(), i as u32)).collect::<Vec<_>>())
    };
    let (of_text, of_vision) = (weights(text.tensors()), weights(vision.tensors()));
    let text = move |rows| {
        let shape = ClipTextShape { rows, tokens: 77, depth: 1, pooled: true, masked: false };
        clip_text(&text, &of_text, shape).unwrap()
    };
    let outputs = VisionOutputs { embeds: true, hidden: true };
    let vision = move |images| clip_vision(&vision, &of_vision, images, outputs).unwrap();
    let ids: Vec<i32> = (0..ROWS * 77).map(|i| (i * i % 59) as i32).collect();
    let pixels = values(ROWS * image_size * image_size * 3, 30);
    [(Box::new(text), vec![ids.into(), vec![76, 3, 40, 0].into()]), (Box::new(vision), vec![pixels.into()])]
}

/// The results of all rows, after checking that each row has the bytes that it has alone.
fn rows_as_alone(device: &CudaDevice, (graph, given): &Encoder, library: bool) -> Vec<Vec<f32>> {
    let run = |rows: usize, inputs: &[TensorData<'_>]| outputs(device.compile(graph(rows)).unwrap().as_mut(), inputs);
    let all = run(ROWS, given);
    for row in 0..ROWS {
        let own = given.iter().map(|all| all.slice(row * all.len() / ROWS..(row + 1) * all.len() / ROWS));
        let alone = run(1, &own.collect::<Vec<_>>());
        for (alone, all) in alone.iter().zip(&all) {
            assert!(alone.iter().all(|v| v.is_finite()) && alone.iter().any(|v| *v != 0.0));
            assert!(*alone == all[row * alone.len()..][..alone.len()], "row {row}, library {library}");
        }
    }
    all
}

/// Rows of text and images through the encoders together: each has the bytes that it has alone.
#[test]
fn encoders_batch_invariance() {
    if !compiled() {
        return;
    }
    for library in [false, true] {
        let device = device(&Arc::new(PtxDriver::new()), library);
        assert!(device.encoder_rows() >= ROWS);
        encoders(64, 56).iter().for_each(|encoder| drop(rows_as_alone(&device, encoder, library)));
    }
}

/// The same by the kernels of sm_90a where they take the products and the attention, beside the CPU.
#[test]
fn encoders_by_wgmma() {
    if !compiled() {
        return;
    }
    let driver = Arc::new(PtxDriver::new().device((9, 0), MULTIPROCESSORS));
    let device = device(&driver, false);
    for encoder in encoders(128, 168) {
        let want = outputs(Cpu::new(Some(1)).compile(encoder.0(ROWS)).unwrap().as_mut(), &encoder.1);
        for (got, want) in rows_as_alone(&device, &encoder, false).iter().zip(&want) {
            let error = relative(got, want);
            assert!(error <= 2.0 * tolerance(DType::F16), "{error:.1e}");
        }
    }
    let launched = driver.launched();
    for kernel in ["attention_sm90_", "gemm_sm90_"] {
        assert!(launched.keys().any(|name| name.starts_with(kernel)), "{kernel}: {launched:?}");
    }
}

/// A GPU's loop has one output: maps are refused before anything is compiled.
#[test]
fn attribution() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let (driver, pipeline) = pipeline(&model, None);
    let before = driver.calls();
    let error = pipeline.generate(&request().with_attribution(true)).unwrap_err();
    assert!(matches!(error, Error::Parameter { field: Field::Attribution, .. }), "{error}");
    assert!(error.to_string().contains("cuda makes no maps; set `device: cpu`"), "{error}");
    assert_eq!(driver.calls(), before);
}

/// A residual block and attention over images of 50 by 46: more than 2,048 pixels, so that statistics have several parts and products
/// other tiles for two images than for one; 25 by 23 tokens, of which the last tiles are partly filled.
#[test]
fn large_images_batch_invariance() {
    if !compiled() {
        return;
    }
    let weights = scope(&[
        ("in.weight", &[40, 8, 3, 3], 1),
        ("in.bias", &[40], 2),
        ("norm.weight", &[40], 3),
        ("norm.bias", &[40], 4),
        ("down.weight", &[40, 40, 3, 3], 5),
        ("down.bias", &[40], 6),
        ("q.weight", &[40, 40], 7),
        ("k.weight", &[40, 40], 8),
        ("v.weight", &[40, 40], 9),
        ("up.weight", &[40, 80, 3, 3], 10),
        ("up.bias", &[40], 11),
        ("out.weight", &[4, 40, 3, 3], 12),
        ("out.bias", &[4], 13),
    ]);
    let (height, width) = (50, 46);
    let graph = |batch| {
        let s = |part: &str| weights.pp(part);
        let mut b = Builder::new();
        let (x, time) = (b.input("x", &[batch, height, width, 8]), b.input("time", &[batch, 40]));
        let x = b.conv2d(x, &s("in"), 40, 3, 1);
        let h = b.group_norm(x, &s("norm"), 8, 1e-5);
        let h = b.activation(h, Activation::Silu);
        let h = b.conv2d(h, &s("down"), 40, 3, 2);
        let h = b.broadcast_add(h, time);
        let tokens = b.reshape(h, &[batch, 25 * 23, 40]);
        let [q, k, v] = ["q", "k", "v"].map(|part| b.linear_no_bias(tokens, &s(part), 40));
        let a = b.attention(q, k, v, 1, false);
        let a = b.add(tokens, a);
        let a = b.reshape(a, &[batch, 25, 23, 40]);
        let large = b.upsample(a, height, width);
        let joined = b.concat(large, x);
        let h = b.conv2d(joined, &s("up"), 40, 3, 1);
        let h = b.add(h, x);
        let y = b.conv2d(h, &s("out"), 4, 3, 1);
        b.output("y", y);
        b.finish().unwrap()
    };
    let (x, time) = (values(2 * height * width * 8, 20), values(2 * 40, 21));
    let device = device(&Arc::new(PtxDriver::new()), false);
    let run = |batch: usize, x: &[f32], time: &[f32]| -> Vec<f32> {
        outputs(device.compile(graph(batch)).unwrap().as_mut(), &[x, time]).remove(0)
    };
    let all = run(2, &x, &time);
    for r in 0..2 {
        let alone = run(1, &x[r * x.len() / 2..][..x.len() / 2], &time[r * 40..][..40]);
        assert!(alone.iter().all(|v| v.is_finite()) && alone.iter().any(|v| *v != 0.0));
        assert!(alone == all[r * alone.len()..][..alone.len()], "image {r}");
    }
}

/// Four images of one request are those of four requests, in another order too.
#[test]
fn four_images_request() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let mut request = request();
    (request.steps, request.num_images) = (2, 4);
    let together = generate(&pipeline(&model, None).1, &request);
    assert_eq!(together.seeds, [7, 8, 9, 10]);
    let (_, alone) = pipeline(&model, None);
    request.num_images = 1;
    for k in [2, 0, 3, 1] {
        request.seed = 7 + k as u64;
        assert_eq!(generate(&alone, &request).images[0], together.images[k], "image {k}");
    }
    assert_ne!(together.images[0], together.images[1]);
}

/// Between the first step and the last a whole request only launches graphs and waits for events.
#[test]
fn launched_steps() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let (driver, pipeline) = pipeline(&model, None);
    let request = request();
    pipeline.prepare(&pipeline.workload_shape(&request).unwrap()).unwrap();
    let mut seen = Vec::new();
    let mut tell = |progress: Progress| {
        if progress.stage == Stage::Denoise && progress.done > 0 {
            seen.push(driver.calls());
        }
    };
    pipeline.generate_with(&request, Callbacks::new().with_progress(&mut tell)).unwrap();
    assert_eq!(seen.len(), 4);
    // The first step is told when the third is enqueued, the last two once it is known whether all was finite.
    let graph_launches: Vec<u64> = seen.iter().map(|calls| calls.graph_launches - seen[0].graph_launches).collect();
    assert_eq!(graph_launches, [0, 1, 1, 1]);
    for (i, calls) in seen.iter().enumerate() {
        let mut same = CallCounts { graph_launches: calls.graph_launches, waits: calls.waits, ..seen[0] };
        if i >= 2 {
            (same.copies, same.synchronizations) = (calls.copies, calls.synchronizations);
        }
        assert_eq!(*calls, same);
    }
}

/// Noise for which a denoise loop has no room makes a request run step by step; schedulers that add none are not affected.
#[test]
fn noise_beyond_memory() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    // 64 steps of 3x2 latents of 4 channels, f32.
    let room = 64 * 3 * 2 * 4 * 4;
    let mut request = request();
    (request.steps, request.capture_intermediates) = (2, true);
    let run = |noise, request: &Request| {
        let (driver, pipeline) = pipeline(&model, noise);
        // The upload of weights waits for events, too; it is over when the first stage begins.
        let mut loaded = None;
        let mut tell = |_: Progress| _ = loaded.get_or_insert_with(|| driver.calls().waits);
        let output = pipeline.generate_with(request, Callbacks::new().with_progress(&mut tell)).unwrap();
        (driver.calls().waits - loaded.unwrap(), driver.held(), output)
    };
    let (waits, most, whole) = run(None, &request);
    assert_eq!(waits, 1, "all steps on the device end with an event");
    let (waits, held, enough) = run(Some(room), &request);
    assert_eq!((waits, held, &enough.images), (1, most, &whole.images));
    let (waits, held, less) = run(Some(room - 1), &request);
    assert_eq!(waits, 0, "no step is the device's");
    assert!(held < most);
    // The host's arithmetic of the same numbers: f32 apart from the order in which it adds.
    assert_eq!(less.step_seconds.len(), 2);
    for (stage, values) in &less.intermediates {
        let apart = relative(&values.data, &whole.intermediates[stage].data);
        println!("{stage}: {apart:.1e}");
        assert!(apart <= 3e-3, "{stage}: {apart:.1e}");
    }
    assert_eq!(less.intermediates["noise"], whole.intermediates["noise"]);
    request.scheduler = Some(SchedulerKind::Euler);
    assert_eq!(run(Some(0), &request).0, 1, "without noise all steps are");
}
