//! Calls to a pipeline that is at work for another one, from other threads and from its own callbacks.

use super::requests::Change;
use super::stopped::{Watched, denoised_rows};
use super::*;
use braid::error::Field;
use braid::{Callbacks, CancelToken};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Holds up evaluations of a denoiser while it is closed.
#[derive(Default)]
struct Gate {
    /// Whether it is closed, and the evaluations that it has held up.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.state.lock().unwrap() = (closed, 0);
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| state.0).unwrap());
    }

    /// Waits until an evaluation is held up.
    fn until_held(&self) {
        drop(self.changed.wait_while(self.state.lock().unwrap(), |state| state.1 == 0).unwrap());
    }
}

fn gated(model: &Model) -> (Arc<Gate>, Pipeline) {
    let gate = Arc::new(Gate::default());
    let of_device = gate.clone();
    let pipeline = Watched::load(&model.options(), move |graph| {
        if denoised_rows(graph).is_some() {
            of_device.pass();
        }
    });
    (gate, pipeline)
}

fn picture() -> Image {
    Image::new(32, 32, (0..32 * 32 * 3).map(|i| (i % 251) as u8).collect()).unwrap()
}

/// Waits until so many calls wait for the one at work.
fn until_waiting(pipeline: &Pipeline, count: usize) {
    while !matches!(pipeline.try_generate(&request()), Err(Error::Busy { waiting }) if waiting == count) {
        std::thread::yield_now();
    }
}

/// While a request is drawn nobody waits for it who need not.
#[test]
fn calls_beside_a_request() {
    let model = Model::folder();
    let (gate, pipeline) = gated(&model);
    let whole = generate(&pipeline, &request()).unwrap();
    let (held, shape) = (pipeline.device_memory_used(), pipeline.workload_shape(&request()).unwrap());
    assert!(held > 0);
    let cancel = CancelToken::new();
    gate.set(true);
    std::thread::scope(|scope| {
        let drawn = scope.spawn(|| generate(&pipeline, &request()).unwrap());
        gate.until_held();
        assert!(matches!(pipeline.try_generate(&request()), Err(Error::Busy { waiting: 0 })));
        assert_eq!(pipeline.device_memory_used(), held);
        // Refused as far as that goes without the executables.
        let wrong: [(Field, Change<'_>); 5] = [
            (Field::Steps, &|r| r.steps = 0),
            (Field::Width, &|r| r.width = Some(9)),
            (Field::ClipSkip, &|r| r.clip_skip = 99),
            (Field::ImagePrompts, &|r| r.image_prompts.push(ImagePrompt::default())),
            (Field::Noise, &|r| r.noise = Some(vec![0.0; 7])),
        ];
        for (field, change) in wrong {
            let mut bad = request();
            change(&mut bad);
            let error = refused(pipeline.generate(&bad), field.name());
            assert!(matches!(error, Error::Parameter { field: named, .. } if named == field), "{field}: {error}");
        }
        for wait in [Duration::ZERO, Duration::from_millis(20)] {
            let callbacks = Callbacks::new().with_deadline(Instant::now() + wait);
            assert!(matches!(pipeline.generate_with(&request(), callbacks), Err(Error::Late)));
        }
        // A waiting call that is cancelled comes back, whatever is drawn.
        let waiting = [
            scope.spawn(|| pipeline.generate_with(&request(), Callbacks::new().with_cancel(&cancel)).map(drop)),
            scope.spawn(|| cancel.scope(|| pipeline.encode_image(&picture())).map(drop)),
            scope.spawn(|| cancel.scope(|| pipeline.prepare(&shape))),
            scope.spawn(|| cancel.scope(|| pipeline.session(&request()).map(drop))),
            scope.spawn(|| cancel.scope(|| pipeline.generate_batch(&[request()])).remove(0).map(drop)),
        ];
        until_waiting(&pipeline, 5);
        cancel.cancel();
        for call in waiting {
            assert!(matches!(call.join().unwrap(), Err(Error::Cancelled)));
        }
        let prompts = cancel.scope(|| pipeline.prepare_prompts(&request(), request().prompts()));
        assert!(matches!(prompts, Err(Error::Cancelled)));
        until_waiting(&pipeline, 0);
        // Cleared when the request is done.
        pipeline.clear_cache();
        assert_eq!(pipeline.device_memory_used(), held);
        gate.set(false);
        assert_eq!(drawn.join().unwrap(), whole);
    });
    assert_eq!(pipeline.device_memory_used(), 0);
    assert_eq!(pipeline.try_generate(&request()).unwrap().images[0].rgb(), whole);
    // Freed at once, whoever is to stop.
    cancel.scope(|| pipeline.clear_cache());
    assert_eq!(pipeline.device_memory_used(), 0);
    let late = Callbacks::new().with_deadline(Instant::now());
    assert!(matches!(pipeline.generate_with(&request(), late), Err(Error::Late)));
    let in_time = Callbacks::new().with_deadline(Instant::now() + Duration::from_secs(3600));
    assert_eq!(pipeline.generate_with(&request(), in_time).unwrap().images[0].rgb(), whole);
}

/// Deadlines of requests of one call, each by its own.
#[test]
fn deadlines_in_a_batch() {
    let pipeline = Model::folder().load().unwrap();
    let whole = generate(&pipeline, &request()).unwrap();
    let jobs = [false, true, false].map(|late| {
        let callbacks = Callbacks::new();
        (request(), if late { callbacks.with_deadline(Instant::now()) } else { callbacks })
    });
    let mut results = [None, None, None];
    pipeline.generate_batch_with(jobs, |number, result| results[number] = Some(result));
    let [first, late, last] = results.map(Option::unwrap);
    assert!(matches!(late, Err(Error::Late)));
    assert!([first, last].into_iter().all(|result| result.unwrap().images[0].rgb() == whole));
}

/// Everything that waits for a pipeline, called in one of its callbacks.
fn call_in_callback(pipeline: &Pipeline, other: &Pipeline) {
    let in_callback = |result: braid::Result<()>, what: &str| {
        assert!(matches!(result, Err(Error::InCallback)), "{what}: {result:?}");
    };
    assert!(pipeline.is_in_callback() && !other.is_in_callback());
    let shape = pipeline.workload_shape(&request()).unwrap();
    in_callback(pipeline.generate(&request()).map(drop), "generate");
    in_callback(pipeline.try_generate(&request()).map(drop), "try_generate");
    in_callback(pipeline.generate_batch(&[request(), request()]).remove(1).map(drop), "generate_batch");
    in_callback(pipeline.encode_image(&picture()).map(drop), "encode_image");
    in_callback(pipeline.encode_references(0, &ImagePrompt::new(picture())).map(drop), "encode_references");
    in_callback(pipeline.prepare(&shape), "prepare");
    in_callback(pipeline.session(&request()).map(drop), "session");
    in_callback(pipeline.prepare_prompts(&request(), request().prompts()).map(drop), "prepare_prompts");
    // Another one may be used, and what waits for nobody.
    assert_eq!(other.generate(&request()).unwrap().images.len(), 1);
    let _ = pipeline.device_memory_used();
    pipeline.clear_cache();
}

/// A callback that calls its own pipeline gets an error in the place of a deadlock.
#[test]
fn calls_in_callbacks() {
    let model = Model::folder();
    let [pipeline, other] = [(); 2].map(|()| model.load().unwrap());
    let whole = generate(&pipeline, &request()).unwrap();
    let call = || call_in_callback(&pipeline, &other);
    let mut told = 0;
    let progress = Callbacks::new().with_progress(|_| {
        told += 1;
        call();
    });
    assert_eq!(pipeline.generate_with(&request(), progress).unwrap().images[0].rgb(), whole);
    assert!(told > 5 && !pipeline.is_in_callback());
    assert_eq!(pipeline.device_memory_used(), 0);
    let preview = Callbacks::new().with_preview(1, |_| call());
    assert_eq!(pipeline.generate_with(&request(), preview).unwrap().images[0].rgb(), whole);
    // The iterator of requests, and whoever takes the results.
    let requests = (0..2).map(|_| {
        call();
        (request(), Callbacks::new())
    });
    let mut done = 0;
    pipeline.generate_batch_with(requests, |_, result| {
        call();
        assert_eq!(result.unwrap().images[0].rgb(), whole);
        done += 1;
    });
    assert_eq!(done, 2);
    assert_eq!(generate(&pipeline, &request()).unwrap(), whole);
}

/// A stream's frame that is asked for in a callback comes when it is asked for again.
#[test]
fn frames_in_callbacks() {
    let pipeline = Model::folder().load().unwrap();
    let begun = request().with_init_image(picture()).with_strength(0.5);
    let session = pipeline.session(&begun).unwrap();
    let frames = || session.stream([picture(), picture()]).unwrap();
    let want: Vec<_> = frames().map(|frame| frame.unwrap().image().clone()).collect();
    let mut stream = frames();
    let mut got = vec![stream.next().unwrap().unwrap().image().clone()];
    let ask = Callbacks::new().with_progress(|_| assert!(matches!(stream.next(), Some(Err(Error::InCallback)))));
    pipeline.generate_with(&request(), ask).unwrap();
    got.extend(stream.map(|frame| frame.unwrap().image().clone()));
    assert_eq!(got, want);
}
