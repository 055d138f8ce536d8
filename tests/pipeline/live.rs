//! Scales that change while an image is under way: from the step on at which they do, and as in a request that says so.

use super::common::{Model, request};
use super::{compiled, refused};
use braid::pipeline::{Callbacks, LiveScales, Output, Progress, Stage};
use braid::schedulers::SchedulerKind;
use braid::{Engine, EngineOptions, Error, Pipeline, Request, Scales, SubmitOptions};
use std::sync::{Arc, Mutex};

const STEPS: usize = 5;

fn load(model: &Model, max_batch: usize) -> Pipeline {
    Pipeline::load(&model.options().with_max_batch(max_batch)).unwrap()
}

/// A request of that scale.
fn scaled(scale: f32) -> Request {
    let mut request = request().with_steps(STEPS);
    request.image_prompts[0].scales = scale.into();
    request
}

/// Sets scales when image 0 has made `done` steps.
fn live(pipeline: &Pipeline, request: &Request, done: usize, scales: &Scales) -> Output {
    let live = LiveScales::new();
    let tell = |progress: Progress| {
        if (progress.stage, progress.image, progress.done) == (Stage::Denoise, 0, done) {
            live.set(0, scales.clone()).unwrap();
        }
    };
    let callbacks = Callbacks::new().with_live_scales(&live).with_progress(tell);
    pipeline.generate_with(request, callbacks).unwrap()
}

/// An adapter that ends or begins at a step, by a part of the steps and by a scale that changes there: the same bytes.
#[test]
fn parts_of_the_steps() {
    let model = Model::folder();
    let pipeline = load(&model, 4);
    let draw = |request: &Request| pipeline.generate(request).unwrap().images;
    let whole = draw(&scaled(0.8));
    for k in 1..STEPS {
        let (mut ends, mut begins) = (scaled(0.8), scaled(0.8));
        (ends.image_prompts[0].end, begins.image_prompts[0].start) = (k as f64 / 5.0, k as f64 / 5.0);
        for (given, to, wanted) in [(scaled(0.8), 0.0f32, draw(&ends)), (scaled(0.0), 0.8, draw(&begins))] {
            assert_ne!(wanted, whole);
            let output = live(&pipeline, &given, k, &to.into());
            assert_eq!(output.images, wanted, "{to} from step {k} on");
            let told: Vec<_> = output.scale_changes.concat().iter().map(|c| (c.step, c.adapter)).collect();
            assert_eq!(told, [(k, 0)]);
            assert_eq!(draw(&given.with_scale_change(k, 0, to)), wanted, "{to} from step {k} on, as requested");
        }
    }
    // Before the first step it is the request's own.
    let blocks = Scales::parse(r#"{"mid": 0.5}"#, 0.9).unwrap();
    let mut own = scaled(0.0);
    own.image_prompts[0].scales = blocks.clone();
    assert_eq!(live(&pipeline, &scaled(0.3), 0, &blocks).images, draw(&own));
}

/// Images of a batch, of two requests, with schedulers of history and of fresh noise: each is that of its request alone with the changes
/// that were told, and nothing is compiled.
#[test]
fn changes_in_a_batch() {
    let model = Model::folder();
    let (alone, together) = (load(&model, 1), load(&model, 2));
    let blocks = Scales::parse(r#"{"mid": 0.4}"#, 1.0).unwrap();
    for scheduler in [SchedulerKind::Dpmpp2M, SchedulerKind::EulerAncestral, SchedulerKind::Heun] {
        let mut changed = scaled(1.0).with_num_images(3).with_scale_change(2, 0, 0.6);
        changed.scheduler = Some(scheduler);
        let other = scaled(0.7).with_seed(50).with_steps(7);
        let draw = || {
            let live = LiveScales::new();
            let mut seen = 0;
            let tell = |progress: Progress| {
                seen += usize::from(progress.stage == Stage::Denoise);
                // The first two images have begun, the third one has not.
                if seen == 5 || seen == 8 {
                    live.set(0, if seen == 5 { Scales::from(0.2) } else { blocks.clone() }).unwrap();
                }
            };
            let callbacks = Callbacks::new().with_live_scales(&live).with_progress(tell);
            let mut outputs = [None, None];
            let jobs = [(changed.clone(), callbacks), (other.clone(), Callbacks::new())];
            together.generate_batch_with(jobs, |number, result| outputs[number] = Some(result.unwrap()));
            outputs.map(Option::unwrap)
        };
        draw();
        let ([changes, plain], compilations) = compiled(draw);
        assert_eq!(compilations, 0);
        assert_eq!(plain.images, alone.generate(&other).unwrap().images);
        assert!(plain.scale_changes == [vec![]] && changes.scale_changes.len() == 3);
        for (i, made) in changes.scale_changes.iter().enumerate() {
            assert_eq!(made.len(), if i < 2 { 3 } else { 2 }, "{made:?}");
            let mut request = changed.clone().with_seed(changed.seed + i as u64).with_num_images(1);
            request.scale_changes.clone_from(made);
            let output = alone.generate(&request).unwrap();
            assert!(output.images[0] == changes.images[i], "{scheduler}, image {i}");
            assert_eq!(output.scale_changes, std::slice::from_ref(made));
        }
    }
}

/// A ticket sets scales of a request that waits, and of one that runs.
#[test]
fn scales_of_a_ticket() {
    let model = Model::folder();
    let pipeline = Arc::new(load(&model, 1));
    let engine = Engine::new(pipeline.clone(), EngineOptions::default().with_max_running(1)).unwrap();
    let gate = Arc::new(Mutex::new(()));
    let (closed, of_worker) = (gate.lock().unwrap(), gate.clone());
    let tell = move |progress: Progress| {
        if (progress.stage, progress.done) == (Stage::Denoise, 3) {
            drop(of_worker.lock().unwrap());
        }
    };
    let running = engine.submit_with(scaled(1.0), SubmitOptions::new().with_progress(tell)).unwrap();
    let waiting = engine.submit(scaled(1.0)).unwrap();
    waiting.set_scales(0, 0.3).unwrap();
    // The worker stands after step 3 or comes there; the change may count before, and is told.
    running.set_scales(0, 0.5).unwrap();
    assert!(running.set_scales(0, f32::NAN).is_err());
    drop(closed);
    let output = running.wait().unwrap();
    let [change] = &output.scale_changes[0][..] else { panic!("{:?}", output.scale_changes) };
    assert!(change.step <= 3);
    let alone = scaled(1.0).with_scale_change(change.step, 0, 0.5);
    assert_eq!(output.images, pipeline.generate(&alone).unwrap().images);
    assert_eq!(waiting.wait().unwrap().images, pipeline.generate(&scaled(0.3)).unwrap().images);
}

/// A change that cannot be ends its request, and no other.
#[test]
fn impossible_changes() {
    let model = Model::folder();
    let pipeline = load(&model, 4);
    let wanted = pipeline.generate(&scaled(1.0)).unwrap().images;
    for (adapter, scales) in [(1, Scales::from(1.0)), (0, Scales::parse("precise-style", 1.0).unwrap())] {
        let live = LiveScales::new();
        let tell = |progress: Progress| {
            if progress.stage == Stage::Denoise && progress.done == 2 {
                live.set(adapter, scales.clone()).unwrap();
            }
        };
        let callbacks = Callbacks::new().with_live_scales(&live).with_progress(tell);
        let jobs = [(scaled(1.0).with_num_images(2), callbacks), (scaled(1.0), Callbacks::new())];
        let mut results = Vec::new();
        pipeline.generate_batch_with(jobs, |number, result| results.push((number, result)));
        results.sort_by_key(|(number, _)| *number);
        let error = results[0].1.as_ref().unwrap_err();
        assert!(
            matches!(error, Error::Parameter { .. }) && error.to_string().starts_with("scale_changes: "),
            "{error}"
        );
        assert_eq!(results[1].1.as_ref().unwrap().images, wanted);
    }
    let late =
        refused(pipeline.generate(&scaled(1.0).with_scale_change(STEPS, 0, 0.5)), "a change after the last step");
    assert_eq!(late.to_string(), "scale_changes: a change at step 5, from 0, of an image of 5");
}
