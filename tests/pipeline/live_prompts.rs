//! Prompts and references that change while an image is under way: from the step on at which they do, and as in a request that says so.

use super::common::{Model, request};
use super::counting::{Counting, Counts};
use super::{compiled, refused};
use braid::error::Field;
use braid::pipeline::{Callbacks, Output, Progress, Stage};
use braid::schedulers::SchedulerKind;
use braid::{
    Combine, Engine, EngineOptions, Error, Image, LivePrompts, LiveScales, LongPrompts, Pipeline, PreparedPrompts,
    Prompts, Reference, ReferenceImage, Request, SubmitOptions,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

const STEPS: usize = 5;

fn load(model: &Model, max_batch: usize) -> Pipeline {
    Pipeline::load(&model.options().with_max_batch(max_batch)).unwrap()
}

/// An image as a reference.
fn reference(seed: u8) -> Reference {
    let rgb = (0..40 * 30 * 3).map(|i| (i as u8).wrapping_mul(seed)).collect();
    Reference::new(Image::new(40, 30, rgb).unwrap())
}

fn base() -> Request {
    let mut request = request().with_steps(STEPS);
    request.image_prompts[0].references = vec![reference(3)];
    request
}

/// Other words and another reference.
fn other() -> Prompts {
    base().prompts().with_prompt("a blue boat").with_negative_prompt("fog").with_references(0, [reference(5)])
}

/// The same request with those from the beginning.
fn whole(request: &Request, prompts: &Prompts) -> Request {
    let mut request = request.clone();
    (request.prompt, request.negative_prompt) = (prompts.prompt.clone(), prompts.negative_prompt.clone());
    request.image_prompts[0].references.clone_from(&prompts.references[0]);
    request
}

/// Sets prompts when image 0 has made `done` steps.
fn live(pipeline: &Pipeline, request: &Request, done: usize, prompts: &PreparedPrompts) -> Output {
    let live = LivePrompts::new();
    let tell = |progress: Progress| {
        if (progress.stage, progress.image, progress.done) == (Stage::Denoise, 0, done) {
            live.set(prompts);
        }
    };
    let callbacks = Callbacks::new().with_live_prompts(&live).with_progress(tell);
    pipeline.generate_with(request, callbacks).unwrap()
}

/// The step of each change of an image.
fn steps(output: &Output, image: usize) -> Vec<usize> {
    output.prompt_changes[image].iter().map(|change| change.step).collect()
}

/// A change at a step gives neither image whole, and the bytes of the request that plans it; before the first step it is the other request.
#[test]
fn exchanged_between_steps() {
    let model = Model::folder();
    let pipeline = load(&model, 4);
    let (base, other) = (base(), Arc::new(other()));
    let draw = |request: &Request| pipeline.generate(request).unwrap().images;
    let (before, after) = (draw(&base), draw(&whole(&base, &other)));
    assert_ne!(before, after);
    let prepared = pipeline.prepare_prompts(&base, other.clone()).unwrap();
    assert_eq!(live(&pipeline, &base, 0, &prepared).images, after);
    let mut all = vec![before, after];
    for k in 1..STEPS {
        let output = live(&pipeline, &base, k, &prepared);
        assert_eq!(steps(&output, 0), [k]);
        assert_eq!(*output.prompt_changes[0][0].prompts, *other);
        let mut planned = base.clone();
        planned.prompt_changes.clone_from(&output.prompt_changes[0]);
        let again = pipeline.generate(&planned).unwrap();
        assert!(again.images == output.images && again.prompt_changes == output.prompt_changes, "step {k}");
        // From the other one, by way of the first.
        let back = whole(&base, &other).with_prompt_change(0, base.prompts()).with_prompt_change(k, other.clone());
        assert_eq!(draw(&back), output.images, "step {k}");
        assert!(!all.contains(&output.images), "step {k}");
        all.push(output.images);
    }
    // The same again changes nothing.
    let same = pipeline.prepare_prompts(&base, base.prompts()).unwrap();
    assert_eq!(live(&pipeline, &base, 2, &same).images, all[0]);
}

/// A reference whose weight becomes 0 at a step, whatever its image: that of an adapter that ends there. Scales stay what they were, and
/// those that are set act on the new reference.
#[test]
fn references_and_scales() {
    let model = Model::folder();
    let pipeline = load(&model, 4);
    let draw = |request: &Request| pipeline.generate(request).unwrap().images;
    let mut base = base();
    base.image_prompts[0].scales = 0.7.into();
    let weightless = base.prompts().with_references(0, [reference(5).with_weight(0.0)]);
    let weightless = pipeline.prepare_prompts(&base, weightless).unwrap();
    for k in 1..STEPS {
        let mut ends = base.clone();
        ends.image_prompts[0].end = k as f64 / STEPS as f64;
        assert_eq!(live(&pipeline, &base, k, &weightless).images, draw(&ends), "step {k}");
    }
    let half = base.prompts().with_references(0, [reference(5).with_weight(0.5)]);
    let planned = base.clone().with_prompt_change(2, half);
    let mut scaled = base.clone().with_prompt_change(2, base.prompts().with_references(0, [reference(5)]));
    assert_eq!(draw(&planned), draw(&scaled.clone().with_scale_change(2, 0, 0.35)));
    // A scale that was set before stays.
    scaled = scaled.with_scale_change(1, 0, 0.2);
    assert_eq!(draw(&scaled), draw(&scaled.clone().with_scale_change(2, 0, 0.2)));
    assert_ne!(draw(&scaled), draw(&scaled.clone().with_scale_change(2, 0, 0.7)));
}

/// Images of a batch, of two requests, changes of prompts and scales by two handles: each is that of its request alone with what was told.
/// Nothing is compiled, and nothing encoded but ahead.
#[test]
fn changes_in_a_batch() {
    const KINDS: [&str; 5] = ["ids", "pixels", "timesteps", "text", "image_embeds.0"];
    let model = Model::folder();
    let alone = load(&model, 1);
    let runs = Counts::<5>::default();
    let device = Counting::new(runs.clone(), |graph| {
        graph.inputs.first().and_then(|(name, _)| KINDS.iter().position(|kind| kind == name)).map(|kind| (kind, 1))
    });
    let options = model.options().with_max_batch(2);
    let together = Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap();
    for scheduler in [SchedulerKind::Dpmpp2M, SchedulerKind::EulerAncestral] {
        let mut changed = base().with_num_images(3).with_scheduler(scheduler).with_prompt_change(1, other());
        changed.negative_prompt = Some("rain".into());
        let neighbour = base().with_seed(50).with_steps(7);
        let last = changed.prompts().with_prompt("two green cups").with_references(0, [reference(9)]);
        let last = together.prepare_prompts(&changed, last).unwrap();
        let draw = || {
            let (prompts, scales, mut seen) = (LivePrompts::new(), LiveScales::new(), 0);
            let tell = |progress: Progress| {
                seen += usize::from(progress.stage == Stage::Denoise);
                // The first two images have begun, the third one has not.
                if seen == 8 {
                    prompts.set(&last);
                    scales.set(0, 0.4).unwrap();
                }
            };
            let callbacks = Callbacks::new().with_live_prompts(&prompts).with_live_scales(&scales).with_progress(tell);
            let mut outputs = [None, None];
            let jobs = [(changed.clone(), callbacks), (neighbour.clone(), Callbacks::new())];
            together.generate_batch_with(jobs, |number, result| outputs[number] = Some(result.unwrap()));
            outputs.map(Option::unwrap)
        };
        draw();
        runs.iter().for_each(|count| count.store(0, Ordering::SeqCst));
        let ([changes, plain], compilations) = compiled(draw);
        assert_eq!((compilations, runs.each_ref().map(|count| count.load(Ordering::SeqCst))), (0, [0; 5]));
        assert_eq!(plain.images, alone.generate(&neighbour).unwrap().images);
        assert!(plain.prompt_changes == [vec![]] && changes.prompt_changes.len() == 3);
        for (i, made) in changes.prompt_changes.iter().enumerate() {
            let live_at = if i < 2 { 1 } else { 0 };
            assert!(made.len() == 2 && *made[live_at].prompts == *last.prompts(), "{made:?}");
            let mut request = changed.clone().with_seed(changed.seed + i as u64).with_num_images(1);
            request.prompt_changes.clone_from(made);
            request.scale_changes.clone_from(&changes.scale_changes[i]);
            let output = alone.generate(&request).unwrap();
            assert!(output.images[0] == changes.images[i], "{scheduler}, image {i}");
            assert_eq!(output.prompt_changes, std::slice::from_ref(made));
        }
    }
}

/// Prompts are prepared while a request is under way, which goes on, and takes them up; the next one is as it was.
#[test]
fn prompts_of_a_ticket() {
    let model = Model::folder();
    let pipeline = Arc::new(load(&model, 1));
    let engine = Engine::new(pipeline.clone(), EngineOptions::default().with_max_running(1)).unwrap();
    let (begun, drawn) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let (barrier, last) = (begun.clone(), drawn.clone());
    let tell = move |progress: Progress| {
        if (progress.stage, progress.done) == (Stage::Denoise, 1) {
            barrier.wait();
        }
        last.fetch_or((progress.stage, progress.done) == (Stage::Denoise, 300), Ordering::SeqCst);
    };
    let long = base().with_steps(300);
    let running = engine.submit_with(long.clone(), SubmitOptions::new().with_progress(tell)).unwrap();
    let waiting = engine.submit(base()).unwrap();
    begun.wait();
    let prepared = pipeline.prepare_prompts(&base(), other()).unwrap();
    waiting.set_prompts(&prepared);
    let prepared = pipeline.prepare_prompts(&long, other()).unwrap();
    assert!(!drawn.load(Ordering::SeqCst), "preparing waited for the whole request");
    running.set_prompts(&prepared);
    // What cannot be is refused ahead, and concerns no request.
    let mut more = base().prompts();
    more.references[0].push(reference(7));
    let error = refused(pipeline.prepare_prompts(&long, more), "more references");
    assert!(matches!(&error, Error::Parameter { field: Field::ImagePrompts, .. }), "{error}");
    let output = running.wait().unwrap();
    let [change] = &output.prompt_changes[0][..] else { panic!("{:?}", output.prompt_changes) };
    assert!((1..300).contains(&change.step));
    let mut again = long;
    again.prompt_changes.clone_from(&output.prompt_changes[0]);
    assert_eq!(output.images, pipeline.generate(&again).unwrap().images);
    assert_eq!(waiting.wait().unwrap().images, pipeline.generate(&whole(&base(), &other())).unwrap().images);
}

/// Prompts for which there is no room are refused by the part that has none; a shape that was prepared with more has it.
#[test]
fn room() {
    let model = Model::folder();
    let pipeline = load(&model, 4);
    let mut base = base().with_long_prompts(LongPrompts::Chunks);
    base.image_prompts[0].references.push(reference(4).with_weight(0.5));
    let mask = |value: u8| Image::new(2, 1, vec![value, value, value, 255, 255, 255]).unwrap();
    let masked = |value: u8| [3, 4].map(|seed| reference(seed).with_mask(mask(value)));
    let mut each = base.clone();
    each.image_prompts[0].combine = Combine::Add;
    let mut with_masks = base.clone();
    with_masks.image_prompts[0].references = masked(0).to_vec();
    let mut one_mask = base.clone();
    one_mask.image_prompts[0].references.truncate(1);
    let no_mask = one_mask.prompts();
    one_mask.image_prompts[0].references[0].mask = Some(mask(0));
    let long = "a red fox in the snow, ".repeat(20);
    let three = [3, 4, 5].map(reference);
    let embedding = ReferenceImage::Embedding(vec![0.0; 23]);
    let cases: [(&Request, Prompts, Field, &str); 10] = [
        (&base, base.prompts().with_prompt(&long), Field::Prompt, "tokens of text"),
        (&base, base.prompts().with_negative_prompt(&long), Field::Prompt, "tokens of text"),
        (&base, base.prompts().with_references(0, three.clone()), Field::ImagePrompts, "tokens of references"),
        (&base, base.prompts().with_references(0, [] as [Reference; 0]), Field::ImagePrompts, "no adapter joins"),
        (&base, base.prompts().with_references(1, [reference(3)]), Field::ImagePrompts, "references for 2 adapters"),
        (&base, base.prompts().with_references(0, [embedding]), Field::ImagePrompts, "23 values"),
        (&each, each.prompts().with_references(0, three.clone()), Field::ImagePrompts, "stay as many"),
        (&with_masks, with_masks.prompts().with_references(0, masked(255)), Field::ReferenceMask, "other masks"),
        (&with_masks, base.prompts(), Field::ImagePrompts, "stay as many"),
        (&one_mask, no_mask, Field::ReferenceMask, "take no place"),
    ];
    for (request, prompts, field, text) in cases {
        let error = refused(pipeline.prepare_prompts(request, prompts.clone()), text);
        assert!(matches!(&error, Error::Parameter { field: f, .. } if *f == field), "{error}");
        assert!(error.to_string().contains(text), "{error}");
        // As a plan, too, before anything is drawn.
        let planned = refused(pipeline.generate(&request.clone().with_prompt_change(1, prompts)), text);
        assert_eq!(planned.to_string(), error.to_string());
    }
    let late = refused(pipeline.generate(&base.clone().with_prompt_change(STEPS, other())), "after the last step");
    assert_eq!(late.to_string(), "prompt_changes: a change at step 5, from 0, of an image of 5");
    // One reference in the place of two, then a shape with room for three and a longer prompt.
    let one = pipeline.prepare_prompts(&base, base.prompts().with_references(0, [reference(9)])).unwrap();
    let first = live(&pipeline, &base, 2, &one).images;
    let mut shape = pipeline.workload_shape(&base).unwrap();
    (shape.text_rows, shape.num_references) = (4, vec![3]);
    pipeline.prepare(&shape).unwrap();
    assert_eq!(live(&pipeline, &base, 2, &one).images, first);
    let more = base.prompts().with_prompt(long).with_references(0, three);
    let more = pipeline.prepare_prompts(&base, more).unwrap();
    let (output, compilations) = compiled(|| live(&pipeline, &base, 2, &more));
    assert_eq!((compilations, steps(&output, 0)), (0, vec![2]));
    assert_ne!(output.images, first);
}

/// Prompts that a request has no room for end that request alone, by name, where they are set in spite of it.
#[test]
fn prompts_of_another_request() {
    let model = Model::folder();
    let pipeline = load(&model, 4);
    let wanted = pipeline.generate(&base()).unwrap().images;
    let mut two = base();
    two.image_prompts[0].references.push(reference(4));
    let prepared = pipeline.prepare_prompts(&two, two.prompts()).unwrap();
    let live = LivePrompts::new();
    let tell = |progress: Progress| {
        if progress.stage == Stage::Denoise && progress.done == 2 {
            live.set(&prepared);
        }
    };
    let callbacks = Callbacks::new().with_live_prompts(&live).with_progress(tell);
    let jobs = [(base().with_num_images(2), callbacks), (base(), Callbacks::new())];
    let mut results = Vec::new();
    pipeline.generate_batch_with(jobs, |number, result| results.push((number, result)));
    results.sort_by_key(|(number, _)| *number);
    let error = results[0].1.as_ref().unwrap_err().to_string();
    assert!(error.starts_with("image_prompts: ") && error.contains("tokens of references"), "{error}");
    assert_eq!(results[1].1.as_ref().unwrap().images, wanted);
    // With other steps they are encoded anew, and give what the request says.
    let short = base().with_steps(3);
    let prepared = pipeline.prepare_prompts(&base(), other()).unwrap();
    let planned = short.clone().with_prompt_change(1, other());
    let at_one = self::live(&pipeline, &short, 1, &prepared);
    assert_eq!(at_one.images, pipeline.generate(&planned).unwrap().images);
}
