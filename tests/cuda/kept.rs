//! Results that a request leaves on the device for later ones, and inputs that change there between two steps.

use super::common::{Model, request};
use super::ptx::PtxDriver;
use super::{compiled, values};
use braid::device::cuda::CudaDevice;
use braid::device::cuda::driver::Driver;
use braid::inputs::image::Image;
use braid::pipeline::{Callbacks, ImagePrompt, LivePrompts, LiveScales, Progress, Reference, ReferenceImage, Stage};
use braid::tensor::DType;
use braid::{Pipeline, Request};
use std::sync::Arc;

fn on(driver: PtxDriver, model: &Model, cache_bytes: u64) -> (Arc<PtxDriver>, Pipeline) {
    let driver = Arc::new(driver);
    let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
    let options = model.options().with_max_cache_bytes(cache_bytes);
    (driver, Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap())
}

fn pipeline(model: &Model, cache_bytes: u64) -> (Arc<PtxDriver>, Pipeline) {
    on(PtxDriver::new(), model, cache_bytes)
}

/// A request whose prompt and reference are of that number.
fn small(number: u32) -> Request {
    let mut request = request().with_steps(2);
    (request.width, request.height) = (Some(16), Some(16));
    request.prompt = format!("{number} boats");
    let embedding = ReferenceImage::Embedding(values(24, number));
    request.image_prompts = vec![ImagePrompt::default().with_reference(embedding)];
    request
}

/// The images of a request, and the bytes that went up and down for its conditioning.
fn condition(driver: &PtxDriver, pipeline: &Pipeline, request: &Request) -> (Vec<Image>, [u64; 2]) {
    let mut at = [[0; 2]; 2];
    let tell = |progress: Progress| {
        if progress.stage == Stage::Condition {
            at[progress.done] = driver.moved();
        }
    };
    let output = pipeline.generate_with(request, Callbacks::new().with_progress(tell)).unwrap();
    (output.images, [0, 1].map(|way| at[1][way] - at[0][way]))
}

/// A conditioning that was computed before is not computed again, and nothing is moved for it, whatever has run in between.
#[test]
fn conditionings() {
    if !compiled() {
        return;
    }
    let model = Model::folder();
    let (driver, kept) = pipeline(&model, 1 << 30);
    let (_, none) = pipeline(&model, 0);
    let requests = [1, 2].map(small);
    let wanted = requests.each_ref().map(|request| none.generate(request).unwrap().images);
    for again in [false, true] {
        for (request, wanted) in requests.iter().zip(&wanted) {
            let (images, moved) = condition(&driver, &kept, request);
            assert!(images == *wanted && (moved == [0, 0]) == again, "{moved:?}, {again}");
        }
    }
    let (held, used) = (driver.held(), kept.device_memory_used());
    assert!(held >= used && held - used < held / 100, "{held} bytes held, {used} told");
    kept.clear_cache();
    assert_eq!((condition(&driver, &kept, &requests[0]).0, driver.held() < held), (wanted[0].clone(), true));
    drop(kept);
    assert_eq!(driver.held(), 0);
}

/// Kept results give way to what a request needs, and where there is no memory for them, they are not kept.
#[test]
fn short_memory() {
    if !compiled() {
        return;
    }
    let model = Model::folder();
    let (_, roomy) = pipeline(&model, 0);
    let large = small(1).with_width(32);
    let estimate =
        |request: &Request| roomy.estimate(&roomy.workload_shape(request).unwrap()).unwrap().unwrap().peak_resident();
    let (first, most) = (estimate(&small(1)), estimate(&large));
    assert!(first < most);
    let wanted = [small(1), small(2), large.clone()].map(|request| roomy.generate(&request).unwrap().images);
    for room in [first, first + 4096, most] {
        let (_, pipeline) = on(PtxDriver::new().room(room), &model, 1 << 30);
        for (request, wanted) in [small(1), small(2), large.clone()].iter().zip(&wanted) {
            if room < most && request.width == large.width {
                continue;
            }
            assert_eq!(pipeline.generate(request).unwrap().images, *wanted, "{room} bytes");
        }
    }
}

/// A session's conditioning outlasts the requests of others, which use the same executables, and is freed with it.
#[test]
fn sessions() {
    if !compiled() {
        return;
    }
    let model = Model::folder();
    let (driver, pipeline) = pipeline(&model, 0);
    let requests = [1, 2].map(small);
    let wanted = requests.each_ref().map(|request| pipeline.generate(request).unwrap().images);
    let held = driver.held();
    let session = pipeline.session(&requests[0]).unwrap();
    assert!(driver.held() > held);
    for (request, wanted) in requests.iter().zip(&wanted) {
        assert_eq!(pipeline.generate(request).unwrap().images, *wanted);
    }
    let (images, moved) = condition(&driver, &pipeline, &requests[0]);
    assert!(images == wanted[0] && moved == [0, 0], "{moved:?}");
    let other = requests[0].clone().with_seed(5).with_guidance_scale(2.0).with_steps(3);
    let images = session.generate(&other).unwrap().images;
    drop(session);
    assert_eq!(driver.held(), held);
    assert_eq!(pipeline.generate(&other).unwrap().images, images);
}

/// Scales that change while a captured graph makes the steps: from the step that is told on, with nothing allocated or captured.
#[test]
fn live_scales() {
    if !compiled() {
        return;
    }
    let model = Model::folder();
    let (driver, pipeline) = pipeline(&model, 1 << 30);
    let request = small(1).with_steps(5);
    let whole = pipeline.generate(&request).unwrap().images;
    // The decoder, which runs once in a request, is captured in the second one.
    assert_eq!(pipeline.generate(&request).unwrap().images, whole);
    let before = driver.calls();
    let live = LiveScales::new();
    let tell = |progress: Progress| {
        if progress.stage == Stage::Denoise && progress.done == 1 {
            live.set(0, 0.0).unwrap();
        }
    };
    let callbacks = Callbacks::new().with_live_scales(&live).with_progress(tell);
    let output = pipeline.generate_with(&request, callbacks).unwrap();
    let calls = driver.calls();
    assert_eq!((calls.allocations, calls.captures), (before.allocations, before.captures));
    let [change] = &output.scale_changes[0][..] else { panic!("{:?}", output.scale_changes) };
    assert!((1..5).contains(&change.step), "{change:?}");
    let mut ends = request.clone();
    ends.image_prompts[0].end = change.step as f64 / 5.0;
    let wanted = pipeline.generate(&ends).unwrap().images;
    assert!(output.images == wanted && wanted != whole);
    assert_eq!(pipeline.generate(&request.clone().with_scale_change(change.step, 0, 0.0)).unwrap().images, wanted);
    // The next image begins with the request's own scales again.
    assert_eq!(pipeline.generate(&request).unwrap().images, whole);
}

/// Prompts and references that change while a captured graph makes the steps: from the step that is told on, with nothing allocated or
/// captured, where nothing is kept of the request's own.
#[test]
fn live_prompts() {
    if !compiled() {
        return;
    }
    let model = Model::folder();
    let (driver, pipeline) = pipeline(&model, 0);
    let (first, second) = (small(1).with_steps(5), small(2).with_steps(5));
    let [before, after] = [&first, &second].map(|request| pipeline.generate(request).unwrap().images);
    let prepared = pipeline.prepare_prompts(&first, second.prompts()).unwrap();
    let live_at = |at: usize| {
        let live = LivePrompts::new();
        let tell = |progress: Progress| {
            if progress.stage == Stage::Denoise && progress.done == at {
                live.set(&prepared);
            }
        };
        let callbacks = Callbacks::new().with_live_prompts(&live).with_progress(tell);
        pipeline.generate_with(&first, callbacks).unwrap()
    };
    assert_eq!(live_at(0).images, after);
    let calls = driver.calls();
    let output = live_at(1);
    let now = driver.calls();
    assert_eq!((now.allocations, now.captures), (calls.allocations, calls.captures));
    let [change] = &output.prompt_changes[0][..] else { panic!("{:?}", output.prompt_changes) };
    assert!((1..5).contains(&change.step), "{change:?}");
    let mut again = first.clone();
    again.prompt_changes.clone_from(&output.prompt_changes[0]);
    assert_eq!(pipeline.generate(&again).unwrap().images, output.images);
    assert!(output.images != before && output.images != after);
    // A reference without weight is an adapter that ends; the second image of a request begins with its own prompts again.
    let Reference { image, .. } = &second.image_prompts[0].references[0];
    let weightless = first.prompts().with_references(0, [Reference::new(image.clone()).with_weight(0.0)]);
    let mut ends = first.clone().with_steps(2).with_seed(first.seed + 1);
    ends.image_prompts[0].end = 0.5;
    let planned = first.with_steps(2).with_num_images(2).with_prompt_change(1, weightless);
    let drawn = pipeline.generate(&planned).unwrap().images;
    assert_eq!(drawn[1], pipeline.generate(&ends).unwrap().images[0]);
}
