//! Images that share evaluations of the UNet: each has the bytes that it has alone, whatever it shares them with.

use super::*;
use braid::LongPrompts;
use braid::error::Field;
use braid::pipeline::{Callbacks, CancelToken, Combine, Output, Preview, Progress, Reference, Stage};
use braid::schedulers::SchedulerKind;
use braid::tensor::DType;

fn picture(width: usize, height: usize, seed: usize) -> Image {
    let rgb = (0..width * height * 3).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Image::new(width, height, rgb).unwrap()
}

fn embedding(seed: usize) -> Reference {
    let values = (0..24).map(|i| ((i + 7 * seed) % 24) as f32 / 24.0).collect();
    Reference::from(ReferenceImage::Embedding(values))
}

/// White on its left half, or on its upper one.
fn half(left: bool) -> Image {
    let white = |i: usize| if left { i % 8 < 4 } else { i < 32 };
    Image::new(8, 8, (0..64).flat_map(|i| [u8::from(white(i)) * 255; 3]).collect()).unwrap()
}

fn masked(left: bool) -> Reference {
    embedding(3).with_mask(half(left))
}

/// Each image is handed over before the next one is done; what ends the request after the first one leaves that.
#[test]
fn images_as_they_are_done() {
    let model = Model::folder();
    let pipeline = Pipeline::load(&model.options().with_max_batch(1)).unwrap();
    let r = request().with_num_images(3);
    let (mut taken, last) = (Vec::new(), std::sync::atomic::AtomicUsize::new(9));
    let callbacks = Callbacks::new()
        .with_progress(|progress: Progress| last.store(progress.image, Ordering::Relaxed))
        .with_image(|done| taken.push((done.number, done.seed, done.image.clone(), last.load(Ordering::Relaxed))));
    let output = pipeline.generate_with(&r, callbacks).unwrap();
    let images = output.images.into_iter().zip(output.seeds).enumerate();
    let expected: Vec<_> = images.map(|(number, (image, seed))| (number, seed, image, number)).collect();
    assert!(taken == expected && taken.len() == 3);
    let (cancel, mut first) = (CancelToken::new(), Vec::new());
    let callbacks = Callbacks::new().with_cancel(&cancel).with_image(|done| {
        first.push(done.image.clone());
        cancel.cancel();
    });
    assert!(matches!(pipeline.generate_with(&r, callbacks), Err(Error::Cancelled)));
    assert!(first == [expected[0].2.clone()]);
}

type Change = fn(&mut Request);

/// Requests that differ in all that a request can, and how.
const KINDS: [(&str, Change); 14] = [
    ("guided", |_| {}),
    ("more steps, another seed", |r| (r.steps, r.seed) = (5, 70)),
    ("no guidance", |r| (r.guidance_scale, r.steps) = (1.0, 4)),
    ("rescaled guidance", |r| (r.guidance_scale, r.guidance_rescale) = (9.0, 0.7)),
    ("another prompt", |r| r.prompt = "a heap of stones".into()),
    ("a long prompt", |r| (r.prompt, r.long_prompts) = ("stone ".repeat(90), LongPrompts::Chunks)),
    ("fresh noise", |r| r.scheduler = Some(SchedulerKind::EulerAncestral)),
    ("two evaluations a step", |r| (r.scheduler, r.steps) = (Some(SchedulerKind::Heun), 3)),
    ("history", |r| (r.scheduler, r.steps) = (Some(SchedulerKind::Lms), 6)),
    ("two references", |r| r.image_prompts[0].references.push(embedding(2).with_weight(0.5))),
    ("a reference for a part of the steps", |r| (r.image_prompts[0].end, r.steps) = (0.5, 4)),
    ("an image to begin with", |r| (r.init_image, r.strength, r.steps) = (Some(picture(32, 32, 1)), Some(0.6), 5)),
    ("inpainting", |r| {
        (r.init_image, r.mask, r.strength) = (Some(picture(32, 32, 2)), Some(half(true)), Some(0.8));
        (r.steps, r.scheduler) = (5, Some(SchedulerKind::Dpmpp2M));
    }),
    ("without the adapter", |r| r.image_prompts.clear()),
];

/// Those that share no evaluation with the ones above, or with one another.
const APART: [(&str, Change); 5] = [
    ("another size", |r| r.width = Some(48)),
    ("a mask", |r| r.image_prompts[0].references = vec![masked(true)]),
    ("another mask", |r| r.image_prompts[0].references = vec![masked(false)]),
    ("two masks", |r| r.image_prompts[0].references = vec![masked(true), masked(false)]),
    ("a softmax each", |r| {
        r.image_prompts[0].references.push(embedding(2));
        r.image_prompts[0].combine = Combine::Add;
    }),
];

fn kinds() -> Vec<(&'static str, Request)> {
    let all = KINDS.iter().chain(&APART).enumerate();
    all.map(|(i, (name, change))| {
        let mut r = request().with_seed(i as u64).with_capture_intermediates(true);
        r.steps = 3;
        change(&mut r);
        (*name, r)
    })
    .collect()
}

/// With two threads each takes rows of its own where two images share an evaluation.
fn pipeline(model: &Model, max_batch: usize) -> Pipeline {
    Pipeline::load(&model.options().with_max_batch(max_batch).with_threads(2)).unwrap()
}

/// Images and everything on the way, to the bit.
fn assert_same(got: &Output, want: &Output, what: &str) {
    let bits = |data: &[f32]| data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(got.intermediates.keys().eq(want.intermediates.keys()), "{what}");
    for (name, tensor) in &got.intermediates {
        let want = &want.intermediates[name];
        assert!(tensor.shape == want.shape && bits(&tensor.data) == bits(&want.data), "{what}: {name} differs");
    }
    assert!(got.images == want.images && got.seeds == want.seeds, "{what}");
    assert_eq!(
        (got.step_seconds.len(), got.truncated_tokens),
        (want.step_seconds.len(), want.truncated_tokens),
        "{what}"
    );
}

/// Two, three and eight images of a request at once, all kinds of requests: the images are those drawn one at a time.
#[test]
fn images_of_a_request() {
    let model = Model::folder();
    let (alone, together) = (pipeline(&model, 1), pipeline(&model, 8));
    for (i, (name, request)) in kinds().into_iter().enumerate() {
        let request = request.with_num_images([2, 3, 8][i % 3]);
        let want = alone.generate(&request).unwrap();
        assert_eq!(want.images.len(), request.num_images);
        assert!(want.images[0] != want.images[1], "{name}");
        assert_same(&together.generate(&request).unwrap(), &want, name);
    }
}

/// Requests of all kinds at once, in two orders, two to eight at a time, so that most join others that are under way.
#[test]
fn requests_together() {
    let model = Model::folder();
    let alone = pipeline(&model, 1);
    let wanted: Vec<_> = kinds().into_iter().map(|(_, request)| alone.generate(&request).unwrap()).collect();
    for (most, reversed) in [(2, false), (3, true), (8, false)] {
        let pipeline = pipeline(&model, most);
        let mut all: Vec<_> = kinds().into_iter().zip(&wanted).collect();
        if reversed {
            all.reverse();
        }
        let requests: Vec<_> = all.iter().map(|((_, request), _)| request.clone()).collect();
        let outputs = pipeline.generate_batch(&requests);
        assert_eq!(outputs.len(), all.len());
        for (output, ((name, _), want)) in outputs.into_iter().zip(all) {
            assert_same(&output.unwrap(), want, &format!("{name}, {most} at a time"));
        }
    }
}

/// The same with products of bf16, and with LoRAs of one scale and of another.
#[test]
fn arithmetic_and_loras() {
    let model = Model::golden("diffusers", "lora-kohya");
    let options = model.options().with_lora(model.path("kohya.safetensors"));
    let with = |scale: f32, seed: u64| request().with_lora_scales([scale]).with_seed(seed).with_steps(3);
    let requests = [with(0.7, 1), with(0.7, 2), with(-0.5, 3), with(0.7, 4), with(0.0, 5)];
    for dtype in [None, Some(DType::BF16)] {
        let load = |most| {
            let options = match dtype {
                Some(dtype) => options.clone().with_dtype(dtype),
                None => options.clone(),
            };
            Pipeline::load(&options.with_max_batch(most)).unwrap()
        };
        let (alone, together) = (load(1), load(3));
        for (request, output) in requests.iter().zip(together.generate_batch(&requests)) {
            assert_same(&output.unwrap(), &alone.generate(request).unwrap(), &format!("{dtype:?}"));
        }
    }
}

/// An error of one request concerns no other, and leaves the order of results as it is.
#[test]
fn errors_concern_one_request() {
    let model = Model::folder();
    let pipeline = pipeline(&model, 4);
    let good = |seed| request().with_seed(seed).with_steps(4);
    let wanted: Vec<_> = (0..3).map(|seed| generate(&pipeline, &good(seed)).unwrap()).collect();
    let overflows = good(9).with_guidance_scale(f32::MAX).with_num_images(2);
    let requests = [good(0), good(9).with_steps(0), overflows, good(1), good(9).with_eta(7.0), good(2)];
    let results = pipeline.generate_batch(&requests);
    let bytes = |i: usize| results[i].as_ref().unwrap().images[0].rgb();
    assert!([0, 3, 5].map(bytes).into_iter().eq(wanted.iter().map(Vec::as_slice)));
    let error = |i: usize| results[i].as_ref().err().unwrap();
    assert!(matches!(error(1), Error::Parameter { field: Field::Steps, .. }), "{}", error(1));
    assert!(matches!(error(2), Error::NotFinite { .. }), "{}", error(2));
    assert!(matches!(error(4), Error::Parameter { field: Field::Eta, .. }), "{}", error(4));
    assert!(pipeline.generate_batch(&[]).is_empty());
}

/// Images of a batch advance together, each step of each is told once and in order; previews are those of the image alone.
#[test]
fn progress_and_previews() {
    let model = Model::folder();
    let request = request().with_steps(4).with_num_images(3);
    let run = |most: usize| {
        let (mut told, mut seen) = (Vec::new(), Vec::new());
        let mut tell = |p: Progress| {
            if p.stage == Stage::Denoise {
                told.push((p.image, p.done));
                assert_eq!((p.steps, p.num_images), (4, 3));
            }
        };
        let mut show = |p: Preview| seen.push((p.image, p.done, p.pixels.into_rgb()));
        let callbacks = Callbacks::new().with_progress(&mut tell).with_preview(2, &mut show);
        let output = pipeline(&model, most).generate_with(&request, callbacks).unwrap();
        assert_eq!(output.step_seconds.len(), 12);
        seen.sort();
        (told, seen)
    };
    let (told, seen) = run(2);
    let together = |images: [usize; 2]| (0..=4).flat_map(move |done| images.map(|image| (image, done)));
    let wanted: Vec<_> = together([0, 1]).chain((0..=4).map(|done| (2, done))).collect();
    assert_eq!(told, wanted);
    assert!(seen.len() == 6 && seen == run(1).1);
}

/// A request that is cancelled leaves its batch, which goes on.
#[test]
fn cancelled_within_a_batch() {
    let model = Model::folder();
    let pipeline = pipeline(&model, 3);
    let requests: Vec<_> = (0..3).map(|seed| request().with_seed(seed).with_steps(5)).collect();
    let wanted: Vec<_> = requests.iter().map(|request| generate(&pipeline, request).unwrap()).collect();
    let (cancel, mut results) = (CancelToken::new(), Vec::new());
    let tell = |p: Progress| {
        if p.stage == Stage::Denoise && p.done == 2 {
            cancel.cancel();
        }
    };
    let mut first = Some(Callbacks::new().with_progress(tell));
    let jobs = requests.iter().enumerate().map(|(i, request)| match i {
        0 => (request.clone(), first.take().unwrap()),
        1 => (request.clone(), Callbacks::new().with_cancel(&cancel)),
        _ => (request.clone(), Callbacks::new()),
    });
    pipeline.generate_batch_with(jobs, |number, result| results.push((number, result)));
    results.sort_by_key(|(number, _)| *number);
    for ((number, result), wanted) in results.iter().zip(&wanted) {
        match result {
            Err(Error::Cancelled) => assert_eq!(*number, 1),
            result => assert!(*number != 1 && result.as_ref().unwrap().images[0].rgb() == wanted.as_slice()),
        }
    }
    assert_eq!(results.len(), 3);
}

/// The executables of a request of several images are those that were prepared for it.
#[test]
fn prepared_batches() {
    let model = Model::folder();
    let pipeline = pipeline(&model, 4);
    let request = request().with_num_images(7);
    pipeline.prepare(&pipeline.workload_shape(&request).unwrap()).unwrap();
    assert_eq!(compiled(|| pipeline.generate(&request).unwrap()).1, 0);
    let error = refused(Pipeline::load(&model.options().with_max_batch(0)), "max_batch");
    assert_eq!(error.to_string(), "max_batch: 0 given; 1 to 64 is allowed");
}
