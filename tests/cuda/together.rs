//! Images that share evaluations on the device: each has the bytes that it has alone, whatever it shares them with.

use super::common::{Model, request};
use super::ptx::PtxDriver;
use super::{compiled, values};
use braid::device::cuda::CudaDevice;
use braid::device::cuda::driver::Driver;
use braid::pipeline::{Callbacks, ImagePrompt, Output, Progress, ReferenceImage, Stage};
use braid::schedulers::SchedulerKind;
use braid::tensor::DType;
use braid::{Engine, EngineOptions, Image, LongPrompts, Pipeline, Request, SubmitOptions};
use std::sync::{Arc, LazyLock, Mutex};

/// A pipeline that keeps nothing for later requests, so that each runs the conditioner.
fn pipeline(model: &Model, max_batch: usize, room: u64) -> (Arc<PtxDriver>, Pipeline) {
    let driver = Arc::new(PtxDriver::new().room(room));
    let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
    let options = model.options().with_max_batch(max_batch).with_max_cache_bytes(0);
    (driver, Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap())
}

fn embedding(seed: u32) -> ReferenceImage {
    ReferenceImage::Embedding(values(24, seed))
}

/// Guided, with a reference.
fn small(seed: u32) -> Request {
    let mut request = request().with_seed(seed.into()).with_steps(2).with_guidance_scale(4.0);
    (request.width, request.height) = (Some(16), Some(16));
    request.prompt = format!("{seed} boats");
    request.image_prompts = vec![ImagePrompt::default().with_reference(embedding(seed)).with_scale(0.8)];
    request
}

fn picture(add: u8) -> Image {
    Image::new(16, 16, (0..768).map(|i| (i / 3) as u8 ^ add).collect()).unwrap()
}

type Change = fn(&mut Request);

/// Requests that differ in what may differ within an evaluation.
const KINDS: [(&str, Change); 5] = [
    ("guided, a negative prompt, an image", |r| {
        (r.negative_prompt, r.image_prompts) =
            (Some("fog".into()), vec![ImagePrompt::new(picture(40)).with_scale(0.8)]);
    }),
    ("rescaled guidance, fresh noise", |r| {
        (r.guidance_scale, r.guidance_rescale) = (9.0, 0.6);
        r.scheduler = Some(SchedulerKind::EulerAncestral);
    }),
    ("no guidance, a longer prompt, two references, another scale", |r| {
        (r.guidance_scale, r.prompt, r.long_prompts) = (1.0, "stone ".repeat(60), LongPrompts::Chunks);
        r.image_prompts = vec![r.image_prompts.remove(0).with_reference(picture(50)).with_scale(0.3)];
    }),
    ("guidance and a reference for a part of the steps, history", |r| {
        (r.guidance_interval, r.image_prompts[0].end) = (Some((0.0, 0.4)), 0.7);
        (r.scheduler, r.steps) = (Some(SchedulerKind::Lms), 3);
    }),
    ("inpainting", |r| {
        (r.init_image, r.mask, r.strength) = (Some(picture(0)), Some(picture(90)), Some(0.7));
        (r.steps, r.scheduler) = (3, Some(SchedulerKind::Dpmpp2M));
    }),
];

fn kinds() -> Vec<(&'static str, Request)> {
    let of = |(i, (name, change)): (usize, &(&'static str, Change))| {
        let mut request = small(i as u32).with_capture_intermediates(true);
        change(&mut request);
        (*name, request)
    };
    KINDS.iter().enumerate().map(of).collect()
}

/// The results of all kinds, each drawn alone.
static ALONE: LazyLock<Vec<Output>> = LazyLock::new(|| {
    let (_, pipeline) = pipeline(&Model::folder(), 1, 8 << 30);
    kinds().into_iter().map(|(_, request)| pipeline.generate(&request).unwrap()).collect()
});

/// Images and everything on the way, to the bit.
fn assert_same(got: &Output, want: &Output, what: &str) {
    let bits = |data: &[f32]| data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(got.intermediates.keys().eq(want.intermediates.keys()), "{what}");
    for (name, tensor) in &got.intermediates {
        assert!(bits(&tensor.data) == bits(&want.intermediates[name].data), "{what}: {name} differs");
    }
    assert!(got.images == want.images, "{what}");
}

/// Requests of all kinds at once, so that most join others that are under way; what those that begin together encode goes through the
/// encoders together.
#[test]
fn requests_together() {
    if !compiled() {
        return;
    }
    let (_, pipeline) = pipeline(&Model::folder(), 3, 8 << 30);
    let requests: Vec<_> = kinds().into_iter().rev().map(|(_, request)| request).collect();
    let wanted = ALONE.iter().zip(KINDS).rev();
    for (result, (want, (name, _))) in pipeline.generate_batch(&requests).into_iter().zip(wanted) {
        assert_same(&result.unwrap(), want, name);
    }
}

/// A request that comes while another one is drawn joins it.
#[test]
fn joined_late() {
    if !compiled() {
        return;
    }
    let (_, pipeline) = pipeline(&Model::folder(), 3, 8 << 30);
    let pipeline = Arc::new(pipeline);
    let first = small(1).with_steps(5);
    let late = [small(2).with_steps(1), small(3).with_steps(1).with_guidance_scale(1.0)];
    let wanted = [&first, &late[0], &late[1]].map(|request| pipeline.generate(request).unwrap().images);
    let engine = Arc::new(Engine::new(pipeline, EngineOptions::default()).unwrap());
    let (told, tickets) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let tell = |who: usize| {
        let told = told.clone();
        move |p: Progress| {
            if p.stage == Stage::Denoise {
                told.lock().unwrap().push((who, p.done));
            }
        }
    };
    let (note, weak, joining) = (tell(0), Arc::downgrade(&engine), tickets.clone());
    let mut others: Vec<_> = late.iter().cloned().zip([1, 2].map(&tell)).collect();
    let callback = move |p: Progress| {
        note(p);
        if p.stage == Stage::Denoise && p.done == 1 {
            for (request, note) in others.drain(..) {
                let engine = weak.upgrade().unwrap();
                let options = SubmitOptions::new().with_progress(note);
                joining.lock().unwrap().push(engine.submit_with(request, options).unwrap());
            }
        }
    };
    let ticket = engine.submit_with(first, SubmitOptions::new().with_progress(callback)).unwrap();
    assert!(ticket.wait().unwrap().images == wanted[0]);
    let tickets = std::mem::take(&mut *tickets.lock().unwrap());
    assert_eq!(tickets.len(), 2);
    for (ticket, wanted) in tickets.into_iter().zip(&wanted[1..]) {
        assert!(ticket.wait().unwrap().images == *wanted);
    }
    // Both had begun when the next step was told.
    let told = told.lock().unwrap();
    let at = |step: (usize, usize)| told.iter().position(|told| *told == step).unwrap();
    assert!(at((1, 0)) < at((0, 2)) && at((2, 0)) < at((0, 2)), "{told:?}");
}

/// The estimate decides how many images share evaluations: as many as there is memory for.
#[test]
fn planned_memory() {
    if !compiled() {
        return;
    }
    let model = Model::folder();
    let request = small(1).with_steps(1).with_num_images(2);
    let (_, roomy) = pipeline(&model, 2, 8 << 30);
    let peak = |images: usize| {
        let mut shape = roomy.workload_shape(&request).unwrap();
        shape.num_images = images;
        roomy.estimate(&shape).unwrap().unwrap().peak_resident()
    };
    assert!(peak(1) < peak(2) && peak(2) == peak(3));
    let wanted = roomy.generate(&request).unwrap().images;
    let launches = [peak(1), peak(2)].map(|room| {
        let (driver, pipeline) = pipeline(&model, 2, room);
        assert!(pipeline.generate(&request).unwrap().images == wanted, "{room} bytes");
        driver.calls().graph_launches
    });
    // A step of each image, or of both; the first is not captured yet.
    assert_eq!(launches[0] - launches[1], 1);
    // What was prepared for two images serves one, too.
    let (driver, prepared) = pipeline(&model, 2, peak(2));
    prepared.prepare(&prepared.workload_shape(&request).unwrap()).unwrap();
    let before = driver.calls();
    assert!(prepared.generate(&request.with_num_images(1)).unwrap().images == wanted[..1]);
    let calls = driver.calls();
    assert_eq!((calls.allocations, calls.captures), (before.allocations, before.captures));
}

/// Guided images beside unguided ones, with other numbers of references and rows of text, and images that have guidance in a part of their
/// steps: the estimate counts a loop for each number of rows, all of them with room for the largest request. They take just that, and
/// nothing more is compiled or captured, whatever is drawn together.
#[test]
fn planned_memory_of_mixed_rows() {
    if !compiled() {
        return;
    }
    let model = Model::folder();
    let (driver, mixed) = pipeline(&model, 2, 8 << 30);
    let requests: Vec<Request> = kinds().into_iter().map(|(_, request)| request).take(4).collect();
    let mut shape = mixed.workload_shape(&requests[2]).unwrap();
    // Each of its 60 words is two tokens.
    assert_eq!(
        (shape.do_cfg, shape.unguided, shape.text_rows, shape.num_references.as_slice(), shape.encoded_images),
        (false, false, 2, &[2][..], 1)
    );
    assert!(mixed.workload_shape(&requests[3]).unwrap().unguided);
    (shape.do_cfg, shape.num_images, shape.encoded_images) = (true, 2, 2);
    let equal = mixed.estimate(&shape).unwrap().unwrap();
    shape.unguided = true;
    let estimate = mixed.estimate(&shape).unwrap().unwrap();
    assert!(estimate.denoise > equal.denoise && estimate.condition > equal.condition);
    mixed.prepare(&shape).unwrap();
    let (held, before) = (driver.held(), driver.calls());
    assert_eq!(held as u64, estimate.peak_resident() - estimate.staging);
    let outputs: Vec<_> = mixed.generate_batch(&requests).into_iter().map(Result::unwrap).collect();
    let after = driver.calls();
    // Of each request's conditioning its three parts are copied, for as long as it is under way.
    assert_eq!((after.allocations - before.allocations, after.captures), (3 * requests.len() as u64, before.captures));
    assert_eq!(driver.held(), held);
    for ((got, want), (name, _)) in outputs.iter().zip(ALONE.iter()).zip(KINDS) {
        assert_same(got, want, name);
    }
}

/// Memory that is gone once the first request has begun, so that there is none to keep the next one's conditioning, or for a loop of two
/// images: loops make way for others, and images go on there.
#[test]
fn memory_that_is_gone() {
    if !compiled() {
        return;
    }
    let model = Model::folder();
    // A step is told when the one two after it is on its way.
    let requests = [small(0).with_steps(5), small(1).with_steps(1)];
    let (_, roomy) = pipeline(&model, 3, 8 << 30);
    let wanted: Vec<_> = requests.iter().map(|request| roomy.generate(request).unwrap().images).collect();
    let denoise = |images: usize| {
        let mut shape = roomy.workload_shape(&requests[0]).unwrap();
        shape.num_images = images;
        roomy.estimate(&shape).unwrap().unwrap().denoise
    };
    for left in [4096, denoise(2) - denoise(1) - 4096] {
        let (driver, pipeline) = pipeline(&model, 3, 8 << 30);
        let mut taken = None;
        let take = |p: Progress| {
            if p.stage == Stage::Denoise && p.done == 1 && taken.is_none() {
                let room = driver.memory_info().unwrap().free - left;
                taken = Some(driver.allocate(room as usize).unwrap());
            }
        };
        let mut callbacks = Some(Callbacks::new().with_progress(take));
        let jobs = requests.iter().map(|r| (r.clone(), callbacks.take().unwrap_or_default()));
        let mut results = Vec::new();
        pipeline.generate_batch_with(jobs, |number, result| results.push((number, result.unwrap().images)));
        results.sort_by_key(|(number, _)| *number);
        assert!(results.into_iter().map(|(_, images)| images).eq(wanted.iter().cloned()), "{left} bytes are left");
        drop(callbacks);
        driver.free(taken.unwrap());
        drop(pipeline);
        assert_eq!(driver.held(), 0);
    }
}
