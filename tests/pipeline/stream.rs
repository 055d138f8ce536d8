//! Image to image from frames that follow one another: each is that of its request alone, whatever is under way beside it.

use super::common::{Model, request};
use super::counting::{Counting, Counts};
use super::{compiled, refused};
use braid::error::Field;
use braid::schedulers::SchedulerKind;
use braid::{
    Engine, EngineOptions, Error, Frame, Image, ImagePrompt, LivePrompts, LiveScales, Pipeline, Reference, Request,
    Result, Session,
};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The first inputs of what is counted: text encoders, image encoder, the parts of the conditioning, and the denoiser.
const KINDS: [&str; 6] = ["ids", "pixels", "timesteps", "text", "image_embeds.0", "sample"];

/// A pipeline, and the runs of each kind.
fn counting(model: &Model, max_batch: usize) -> (Pipeline, Counts<6>) {
    let runs = Counts::default();
    let device = Counting::new(runs.clone(), |graph| {
        graph.inputs.first().and_then(|(name, _)| KINDS.iter().position(|kind| kind == name)).map(|kind| (kind, 1))
    });
    let options = model.options().with_max_batch(max_batch);
    (Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap(), runs)
}

/// The runs of each kind since the last call.
fn take(runs: &Counts<6>) -> [usize; 6] {
    runs.each_ref().map(|count| count.swap(0, Ordering::SeqCst))
}

fn picture(side: usize, seed: usize) -> Image {
    let rgb = (0..side * side * 3).map(|i| ((i + 77 * seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Image::new(side, side, rgb).unwrap()
}

fn reference(seed: usize) -> Reference {
    Reference::new(picture(40, 100 + seed))
}

/// Three steps on an image.
const STEPS: usize = 3;

fn base() -> Request {
    let mut request = request().with_steps(5).with_strength(0.6).with_init_image(picture(32, 0));
    (request.width, request.height) = (None, None);
    request.image_prompts = vec![ImagePrompt::default().with_reference(reference(1)).with_scale(0.8)];
    request
}

fn images(count: usize) -> impl Iterator<Item = Image> {
    (1..=count).map(|seed| picture(32, seed))
}

/// Frames in their order, each with the bytes of its request alone and of what that should be.
fn checked(
    alone: &Pipeline,
    frames: impl Iterator<Item = Result<Frame>>,
    wanted: impl Fn(usize) -> Request,
) -> Vec<Image> {
    let frames: Vec<Frame> = frames.map(Result::unwrap).collect();
    for (i, frame) in frames.iter().enumerate() {
        assert_eq!(frame.number, i as u64);
        let wanted = wanted(i);
        assert!(frame.request.init_image == wanted.init_image && frame.request.seed == wanted.seed, "frame {i}");
        let drawn = alone.generate(&wanted).unwrap();
        assert!(drawn.images == frame.output.images && *frame.image() == drawn.images[0], "frame {i}");
        assert_eq!(alone.generate(&frame.request).unwrap().images, drawn.images, "frame {i}");
        let steps = &frame.output.step_seconds;
        assert!(steps.len() == STEPS && frame.latency.as_secs_f64() + 1e-6 >= steps.iter().sum(), "frame {i}");
    }
    frames.into_iter().map(|frame| frame.output.images.into_iter().next().unwrap()).collect()
}

/// One frame after the other, and each a step behind the one before, as many as may: the bytes of each alone, from so many evaluations, with
/// nothing encoded or compiled again.
#[test]
fn frames_in_their_order() {
    const FRAMES: usize = 6;
    let model = Model::folder();
    let alone = Pipeline::load(&model.options().with_max_batch(1)).unwrap();
    for scheduler in [SchedulerKind::Lcm, SchedulerKind::Dpmpp2M] {
        let base = base().with_scheduler(scheduler);
        let wanted = |i: usize| base.clone().with_init_image(picture(32, i + 1));
        let mut all = Vec::new();
        // Of at most two at once, the third one joins when the first one is done, and so on.
        for (most, overlap, evaluations) in [(4, false, 18), (4, true, 8), (2, true, 10), (1, true, 18)] {
            let (pipeline, runs) = counting(&model, most);
            let session = pipeline.session(&base).unwrap();
            assert_eq!(take(&runs)[5], 0);
            let stream = || session.stream(images(FRAMES)).unwrap().with_overlap(overlap);
            all.push(checked(&alone, stream(), wanted));
            assert_eq!(take(&runs), [0, 0, 0, 0, 0, evaluations], "{scheduler}, {most}, {overlap}");
            let (again, compilations) = compiled(|| stream().map(|frame| frame.unwrap().image().clone()).collect());
            all.push(again);
            assert_eq!((compilations, take(&runs)), (0, [0, 0, 0, 0, 0, evaluations]));
        }
        assert!(all.iter().all(|images: &Vec<Image>| *images == all[0] && images.len() == FRAMES));
    }
}

/// The same noise for all frames, or a seed for each.
#[test]
fn seeds() {
    let model = Model::folder();
    let pipeline = Pipeline::load(&model.options().with_max_batch(4)).unwrap();
    let session = pipeline.session(&base()).unwrap();
    let same = || std::iter::repeat_n(picture(32, 3), 3);
    let wanted = |seeds: u64| move |i: usize| base().with_init_image(picture(32, 3)).with_seed(7 + seeds * i as u64);
    let fixed = checked(&pipeline, session.stream(same()).unwrap(), wanted(0));
    assert!(fixed[0] == fixed[1] && fixed[0] == fixed[2]);
    let stream = session.stream(same()).unwrap().with_seed_per_frame(true).with_overlap(true);
    let own = checked(&pipeline, stream, wanted(1));
    assert!(own[0] == fixed[0] && own[0] != own[1] && own[1] != own[2]);
}

/// Prompts, a reference and a scale that are set when frame k is taken count from this frame on, and for none before, also where earlier
/// ones are still under way; nothing is compiled, and nothing encoded but ahead.
#[test]
fn changes_between_frames() {
    let model = Model::folder();
    let alone = Pipeline::load(&model.options().with_max_batch(1)).unwrap();
    let (pipeline, runs) = counting(&model, 4);
    let session = pipeline.session(&base()).unwrap();
    let other = base().prompts().with_prompt("a blue boat").with_references(0, [reference(2)]);
    let prepared = session.prepare_prompts(other.clone()).unwrap();
    session.stream(images(4)).unwrap().with_overlap(true).for_each(|frame| drop(frame.unwrap()));
    take(&runs);
    let plain = |i: usize| base().with_init_image(picture(32, i + 1));
    for overlap in [false, true] {
        for k in [0, 1, 3] {
            let (prompts, scales) = (LivePrompts::new(), LiveScales::new());
            let set = |(i, image)| {
                if i == k {
                    prompts.set(&prepared);
                }
                if i == k + 1 {
                    scales.set(0, 0.3).unwrap();
                }
                image
            };
            let wanted = |i: usize| {
                let mut request = plain(i);
                if i >= k {
                    request.prompt.clone_from(&other.prompt);
                    request.image_prompts[0].references.clone_from(&other.references[0]);
                }
                if i > k {
                    request.image_prompts[0].scales = 0.3.into();
                }
                request
            };
            let stream = session.stream(images(5).enumerate().map(set)).unwrap().with_overlap(overlap);
            let stream = stream.with_live_prompts(&prompts).with_live_scales(&scales);
            let (frames, compilations) = compiled(|| stream.collect::<Vec<_>>());
            let evaluations = if overlap { 5 + STEPS - 1 } else { 5 * STEPS };
            assert_eq!((compilations, take(&runs)), (0, [0, 0, 0, 0, 0, evaluations]), "{overlap}, {k}");
            let drawn = checked(&alone, frames.into_iter(), wanted);
            let differs = |i: &usize| alone.generate(&plain(*i)).unwrap().images[0] != drawn[*i];
            assert!((0..5).filter(differs).eq(k..5), "{overlap}, {k}");
        }
    }
}

/// A wrong frame is told with its number, in its place, and the others are drawn.
#[test]
fn wrong_frames() {
    let model = Model::folder();
    let pipeline = Pipeline::load(&model.options().with_max_batch(4)).unwrap();
    let session = pipeline.session(&base()).unwrap();
    let wanted: Vec<_> = session.stream(images(6)).unwrap().map(|frame| frame.unwrap().image().clone()).collect();
    let fewer = pipeline.prepare_prompts(
        &{
            let mut request = base();
            request.image_prompts.clear();
            request
        },
        {
            let mut prompts = base().prompts();
            prompts.references.clear();
            prompts
        },
    );
    let (fewer, back) = (fewer.unwrap(), session.prepare_prompts(base().prompts()).unwrap());
    for overlap in [false, true] {
        let prompts = LivePrompts::new();
        let source = images(6).enumerate().map(|(i, image)| {
            match i {
                3 => prompts.set(&fewer),
                4 => prompts.set(&back),
                _ => {}
            }
            if i == 1 { picture(24, 5) } else { image }
        });
        let stream = session.stream(source).unwrap().with_overlap(overlap).with_live_prompts(&prompts);
        let frames: Vec<_> = stream.collect();
        assert_eq!(frames.len(), 6);
        for (i, (frame, wanted)) in frames.into_iter().zip(&wanted).enumerate() {
            match (i, frame) {
                (1 | 3, Err(error)) => {
                    let text = match i {
                        1 => {
                            "frame 1: init_image: 24x24 in a stream of 32x32, which is the size of the init_image of its session; resize it"
                        }
                        _ => {
                            "frame 3: image_prompts: references for 0 adapters in place of those of 1 image prompts; give as many"
                        }
                    };
                    assert_eq!(error.to_string(), text);
                    assert!(matches!(error, Error::Frame { number, .. } if number == i as u64));
                }
                (_, frame) => {
                    let frame = frame.unwrap();
                    assert!(frame.number == i as u64 && frame.image() == wanted, "frame {i}");
                }
            }
        }
        // Wrong for each frame, until it is set right.
        let scales = LiveScales::new();
        scales.set(1, 0.5).unwrap();
        let mut stream = session.stream(images(2)).unwrap().with_overlap(overlap).with_live_scales(&scales);
        for number in 0..2 {
            let error = refused(stream.next().unwrap(), "scales of an adapter that is not there").to_string();
            let text = "scale_changes: the stream has no image prompt for adapter 1, whose scales were to change";
            assert_eq!(error, format!("frame {number}: {text}"));
        }
        assert!(stream.next().is_none());
    }
    let field = |request: &Request| match refused(pipeline.session(request).unwrap().stream(images(1)), "no stream") {
        Error::Parameter { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(&base().with_num_images(2)), Field::NumImages);
    let mut text = base();
    (text.init_image, text.strength) = (None, None);
    assert_eq!(field(&text), Field::InitImage);
}

/// An image is taken from the source when there is room for it, and no sooner; a source that ends leaves nothing behind.
#[test]
fn source_is_not_read_ahead() {
    let model = Model::folder();
    let pipeline = Pipeline::load(&model.options().with_max_batch(4)).unwrap();
    let session = pipeline.session(&base()).unwrap();
    for (overlap, ahead) in [(false, 0), (true, STEPS - 1)] {
        let taken = Cell::new(0);
        let source = images(8).inspect(|_| taken.set(taken.get() + 1));
        let mut stream = session.stream(source).unwrap().with_overlap(overlap);
        assert_eq!(taken.get(), 0);
        for i in 0..8 {
            assert_eq!(stream.next().unwrap().unwrap().number, i as u64);
            assert_eq!(taken.get(), (i + 1 + ahead).min(8));
        }
        assert!(stream.next().is_none() && stream.next().is_none());
    }
    assert!(session.stream(images(0)).unwrap().next().is_none());
}

/// Two streams and other requests of one pipeline, each between the frames of the others.
#[test]
fn beside_other_requests() {
    let model = Model::folder();
    let alone = Pipeline::load(&model.options().with_max_batch(1)).unwrap();
    let pipeline = Arc::new(Pipeline::load(&model.options().with_max_batch(4)).unwrap());
    let engine = Engine::new(pipeline.clone(), EngineOptions::default()).unwrap();
    let session = Session::new(pipeline.clone(), &base()).unwrap();
    let other = request().with_prompt_change(1, request().prompts().with_prompt("a house"));
    let wanted = alone.generate(&other).unwrap().images;
    let plain = |i: usize| base().with_init_image(picture(32, i + 1));
    let mut beside = session.stream(images(6)).unwrap().with_seed_per_frame(true).with_overlap(true);
    let mut seen = Vec::new();
    let frames = session.stream(images(5)).unwrap().with_overlap(true).inspect(|_| {
        let ticket = engine.submit(other.clone()).unwrap();
        seen.push(beside.next().unwrap());
        assert_eq!(ticket.wait().unwrap().images, wanted);
        assert_eq!(pipeline.generate(&other).unwrap().images, wanted);
    });
    checked(&alone, frames, plain);
    assert_eq!(seen.len(), 5);
    checked(&alone, seen.into_iter(), |i| plain(i).with_seed(7 + i as u64));
    // A stream goes to another thread.
    std::thread::scope(|scope| {
        let stream = session.stream(images(3)).unwrap();
        let frames = scope.spawn(move || stream.map(Result::unwrap).collect::<Vec<_>>()).join().unwrap();
        checked(&alone, frames.into_iter().map(Ok), plain);
    });
}
