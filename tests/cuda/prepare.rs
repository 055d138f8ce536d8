//! Executables that were prepared ahead serve the requests.

use super::common;
use super::compiled;
use super::ptx::PtxDriver;
use braid::device::cuda::CudaDevice;
use braid::device::cuda::driver::Driver;
use braid::inputs::image::Image;
use braid::pipeline::{
    Callbacks, CancelToken, EncoderResidency, ImagePrompt, Output, Progress, ReferenceImage, Scales, Stage,
};
use braid::schedulers::SchedulerKind;
use braid::tensor::DType;
use braid::{Error, Pipeline, Request};
use std::sync::Arc;

/// A pipeline that keeps nothing for later requests, which takes memory of its own.
fn pipeline(model: &common::Model) -> (Arc<PtxDriver>, Pipeline) {
    let driver = Arc::new(PtxDriver::new());
    let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
    let options = model.options().with_max_cache_bytes(0);
    (driver, Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap())
}

fn embedding(seed: u32) -> ReferenceImage {
    ReferenceImage::Embedding(super::values(24, seed))
}

fn generate(pipeline: &Pipeline, request: &Request) -> Output {
    pipeline.generate(request).unwrap()
}

/// The same with an image to begin with and a mask; the estimate counts the VAE's encoder, and only where it runs.
#[test]
fn prepared_image_to_image() {
    if !compiled() {
        return;
    }
    let (driver, prepared) = pipeline(&common::Model::folder());
    let mut request = common::request();
    request.image_prompts.clear();
    let without = prepared.estimate(&prepared.workload_shape(&request).unwrap()).unwrap().unwrap();
    let picture = |add: u8| Image::new(16, 16, (0..768).map(|i| (i / 3) as u8 ^ add).collect()).unwrap();
    request.init_image = Some(picture(0));
    let shape = prepared.workload_shape(&request).unwrap();
    let estimate = prepared.estimate(&shape).unwrap().unwrap();
    assert!(without.encode == 0 && estimate.encode > 0, "{estimate:?}");
    assert_eq!(estimate.denoise, without.denoise);
    prepared.prepare(&shape).unwrap();
    assert!(estimate.peak_resident() >= driver.held() as u64, "{estimate:?}, {} held", driver.held());
    let before = driver.calls();
    let mut images = Vec::new();
    let changes: [&dyn Fn(&mut Request); 5] = [
        &|r| r.seed = 1,
        &|r| r.init_image = Some(picture(90)),
        &|r| (r.strength, r.steps) = (Some(1.0), 3),
        &|r| r.mask = Some(picture(0)),
        &|r| r.mask = Some(picture(200)),
    ];
    for change in changes {
        change(&mut request);
        images.push(generate(&prepared, &request).images.remove(0));
        let calls = driver.calls();
        assert_eq!((calls.allocations, calls.captures), (before.allocations, before.captures));
    }
    assert!(images.windows(2).all(|pair| pair[0] != pair[1]));
}

/// In tiles the estimate of decoder and encoder is that of a tile, whatever the image, and it holds.
#[test]
fn memory_of_tiles() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let estimate = |tile: Option<usize>, side: usize| {
        let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_cublaslt(false);
        let mut options = model.options();
        options.vae_tiling = tile;
        let pipeline = Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap();
        let mut request = common::request();
        request.image_prompts.clear();
        (request.width, request.height) = (Some(side), Some(side));
        request.init_image = Some(Image::new(1, 1, vec![0; 3]).unwrap());
        pipeline.estimate(&pipeline.workload_shape(&request).unwrap()).unwrap().unwrap()
    };
    let (whole, tiled, tile) = (estimate(None, 512), estimate(Some(64), 512), estimate(None, 64));
    assert_eq!((tiled.decode, tiled.encode), (tile.decode, tile.encode));
    assert_eq!((tiled.denoise, tiled.text), (whole.denoise, whole.text));
    println!("decoder {} bytes whole, {} in tiles of 1/64 of the pixels", whole.decode, tiled.decode);
    assert!(whole.decode > 20 * tiled.decode && whole.encode > 20 * tiled.encode, "{whole:?} {tiled:?}");
}

/// After `prepare` nothing is allocated or captured, whatever changes within the shape, and the images are those of a
/// pipeline that prepared nothing.
#[test]
fn prepared_request() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let (driver, prepared) = pipeline(&model);
    let (_, cold) = pipeline(&model);
    let mut request = common::request();
    request.image_prompts = vec![ImagePrompt::default().with_reference(embedding(1)).with_reference(embedding(2))];
    request.steps = 2;
    let mut shape = prepared.workload_shape(&request).unwrap();
    assert_eq!((shape.do_cfg, shape.steps, shape.text_rows, shape.num_references.as_slice()), (true, 2, 1, &[2][..]));
    assert!(!shape.encodes_images);
    shape.encodes_images = true;
    prepared.prepare(&shape).unwrap();
    let before = driver.calls();
    let same = |what: &str, request: &Request| {
        let got = generate(&prepared, request);
        let calls = driver.calls();
        assert_eq!((calls.allocations, calls.captures), (before.allocations, before.captures), "{what}");
        got
    };
    let first = same("the request itself", &request);
    let mut other = |what: &str, change: &dyn Fn(&mut Request)| {
        change(&mut request);
        assert_ne!(same(what, &request).images, first.images, "{what}");
    };
    other("a scale and prompts", &|r| {
        r.image_prompts[0].scales = 0.3.into();
        (r.prompt, r.negative_prompt) = ("two cats on a mat".into(), Some("rain".into()));
    });
    other("a scale for each block, guidance and another scheduler", &|r| {
        r.image_prompts[0].scales = Scales::parse(r#"{"mid": 0.5}"#, 1.0).unwrap();
        (r.guidance_scale, r.guidance_rescale) = (3.0, 0.5);
        (r.scheduler, r.seed) = (Some(SchedulerKind::EulerAncestral), 9);
    });
    let image = Image::new(8, 8, (0..192).collect()).unwrap();
    other("an image", &|r| r.image_prompts = vec![ImagePrompt::new(image.clone())]);
    // Fewer tokens and steps than there is room for.
    other("fewer", &|r| (r.image_prompts, r.steps) = (vec![ImagePrompt::default().with_reference(embedding(3))], 1));
    let (few, exact) = (generate(&prepared, &request), generate(&cold, &request));
    assert_eq!(few.images, exact.images);
    assert_eq!(few.step_seconds.len(), 1);
    prepared.clear_cache();
    drop(prepared);
    assert_eq!(driver.held(), 0);
}

#[test]
fn impossible_shape() {
    let model = common::Model::folder();
    let (_, pipeline) = pipeline(&model);
    let fails = |change: &dyn Fn(&mut braid::pipeline::WorkloadShape), part: &str| {
        let mut shape = pipeline.workload_shape(&common::request()).unwrap();
        change(&mut shape);
        let text = pipeline.prepare(&shape).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    fails(&|s| s.width = Some(33), "width: ");
    fails(&|s| s.steps = 0, "steps: ");
    fails(&|s| s.text_rows = 33, "33 rows");
    fails(&|s| s.num_references = vec![1, 1], "2 image prompts for 1 adapter");
    fails(&|s| s.num_references = vec![usize::MAX], "more references");
}

/// The encoders stay where there is room for all, go where there is not, and what does not fit at all is refused before
/// anything is loaded.
#[test]
fn encoder_residency() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let mut request = common::request();
    request.steps = 1;
    let with = |room: u64, encoders: EncoderResidency| {
        let driver = Arc::new(PtxDriver::new().room(room));
        let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
        let mut options = model.options().with_max_cache_bytes(0);
        options.encoders = encoders;
        (driver, Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap())
    };
    let (_, roomy) = with(8 << 30, EncoderResidency::Auto);
    let estimate = roomy.estimate(&roomy.workload_shape(&request).unwrap()).unwrap().unwrap();
    let (kept, freed) = (estimate.peak_resident(), estimate.peak_offloaded());
    assert!(estimate.image == 0 && 0 < freed && freed < kept, "{estimate:?}");
    let (all, pipeline) = with(kept, EncoderResidency::Auto);
    let images = generate(&pipeline, &request).images;
    let (few, pipeline) = with(kept - 1, EncoderResidency::Auto);
    assert_eq!(generate(&pipeline, &request).images, images);
    let gone = (all.held() - few.held()) as u64;
    assert!(gone > 0 && gone <= estimate.text, "{gone} of {estimate:?}");
    // No more is needed than was said.
    let (least, pipeline) = with(freed, EncoderResidency::Auto);
    assert_eq!(generate(&pipeline, &request).images, images);
    assert_eq!(least.held(), few.held());
    // As was asked for, though there is room.
    let (free, pipeline) = with(kept, EncoderResidency::Free);
    pipeline.prepare(&pipeline.workload_shape(&request).unwrap()).unwrap();
    assert_eq!(free.held(), few.held());
    let refused = |request: &Request, room, encoders, part: &str| {
        let (driver, pipeline) = with(room, encoders);
        for text in [
            pipeline.generate(request).map(|_| ()).unwrap_err().to_string(),
            pipeline.prepare(&pipeline.workload_shape(request).unwrap()).unwrap_err().to_string(),
        ] {
            assert!(text.starts_with("out of memory in loading: ") && text.contains(part), "{text}");
            assert_eq!(text.contains("vae_tiling"), part.contains("vae_tiling"), "{text}");
        }
        assert_eq!(driver.calls().allocations, 0);
    };
    refused(&request, kept - 1, EncoderResidency::Keep, "`encoders: free` would fit");
    refused(&request, freed - 1, EncoderResidency::Auto, "24x24 (width x height) would fit");
    refused(&request, 1000, EncoderResidency::Free, "`device: cpu`");
    assert_eq!(model.load().unwrap().estimate(&roomy.workload_shape(&request).unwrap()).unwrap(), None);
    // An image that would fit if the VAE worked in tiles is told so, and only such a one.
    let wide = request.clone().with_width(1024);
    let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_cublaslt(false);
    let options = model.options().with_vae_tiling(512);
    let tiled = Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap();
    let need = |pipeline: &Pipeline| {
        pipeline.estimate(&pipeline.workload_shape(&wide).unwrap()).unwrap().unwrap().peak_offloaded()
    };
    let (whole, tiled) = (need(&roomy), need(&tiled));
    assert!(tiled < whole, "{tiled} {whole}");
    refused(&wide, tiled, EncoderResidency::Auto, "would fit, this size with vae_tiling");
    refused(&wide, tiled - 1, EncoderResidency::Auto, "(width x height) would fit");
}

/// A request is planned whole: what it runs is compiled before its first stage, also without being prepared. Encoders that are
/// freed after use are not held together with what comes after them, so their stages compile.
#[test]
fn everything_is_compiled_before_the_first_stage() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let mut request = common::request();
    request.steps = 2;
    for (encoders, ready) in [(EncoderResidency::Keep, true), (EncoderResidency::Free, false)] {
        let driver = Arc::new(PtxDriver::new());
        let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
        let mut options = model.options().with_max_cache_bytes(0);
        options.encoders = encoders;
        let pipeline = Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap();
        let mut first = None;
        let mut note = |_: Progress| {
            first.get_or_insert_with(|| driver.calls().allocations);
        };
        pipeline.generate_with(&request, Callbacks::new().with_progress(&mut note)).unwrap();
        let all = driver.calls().allocations;
        assert!(first.is_some_and(|first| first > 0 && (first == all) == ready), "{first:?} of {all}, {encoders:?}");
    }
}

/// Progress is told for every step in order, and a cancelled request ends within two.
#[test]
fn progress_and_cancellation() {
    if !compiled() {
        return;
    }
    let model = common::Model::folder();
    let (driver, pipeline) = pipeline(&model);
    let mut request = common::request();
    request.steps = 6;
    let mut done = Vec::new();
    let mut tell = |progress: braid::pipeline::Progress| {
        if progress.stage == Stage::Denoise {
            done.push((progress.done, progress.steps));
        }
    };
    let whole = pipeline.generate_with(&request, Callbacks::new().with_progress(&mut tell)).unwrap();
    assert_eq!(done, (0..=6).map(|step| (step, 6)).collect::<Vec<_>>());
    assert_eq!(whole.step_seconds.len(), 6);
    let cancel = CancelToken::new();
    let mut launches = 0;
    let mut tell = |progress: braid::pipeline::Progress| {
        if progress.stage == Stage::Denoise && progress.done == 2 {
            cancel.cancel();
            launches = driver.calls().graph_launches;
        }
    };
    let result = pipeline.generate_with(&request, Callbacks::new().with_progress(&mut tell).with_cancel(&cancel));
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(driver.calls().graph_launches <= launches + 2);
    assert_eq!(generate(&pipeline, &request).images, whole.images);
}
