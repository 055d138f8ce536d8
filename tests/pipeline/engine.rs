//! Requests in an engine's queue.

use super::common::{Model, request};
use braid::{Engine, EngineOptions, Error, FinishedImage, Pipeline, SubmitOptions, TicketStatus};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

/// Each request gives the images that it gives alone, one by one and together, whatever else is in the queue; one that is wrong concerns no
/// other.
#[test]
fn same_images() {
    let model = Model::folder();
    let pipeline = Arc::new(Pipeline::load(&model.options()).unwrap());
    let requests: Vec<_> = (0..5)
        .map(|i| {
            let mut request = request();
            (request.seed, request.steps, request.num_images) = (i, 2 + i as usize % 3, 1 + i as usize % 2);
            request.guidance_scale = if i == 3 { 1.0 } else { 5.0 };
            request
        })
        .collect();
    let alone: Vec<_> = requests.iter().map(|request| pipeline.generate(request).unwrap().images).collect();
    let engine = Engine::new(pipeline, EngineOptions::default()).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let mut wrong = request();
    wrong.width = Some(8 * 1000 + 1);
    let tickets: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let (told, taken) = (told.clone(), Arc::new(Mutex::new(Vec::new())));
            let count = move |_| _ = told.fetch_add(1, Ordering::SeqCst);
            let of_worker = taken.clone();
            let take = move |image: FinishedImage<'_>| of_worker.lock().unwrap().push(image.image.clone());
            let options = SubmitOptions::new().with_progress(count).with_image(take);
            (engine.submit_with(request, options).unwrap(), taken)
        })
        .collect();
    let wrong = engine.submit(wrong);
    for ((ticket, taken), images) in tickets.into_iter().zip(alone) {
        assert_eq!(ticket.wait().unwrap().images, images);
        assert_eq!(*taken.lock().unwrap(), images);
    }
    let wrong = wrong.and_then(|ticket| ticket.wait());
    assert!(matches!(wrong, Err(Error::Parameter { .. })), "{wrong:?}");
    assert!(told.load(Ordering::SeqCst) > 5 * 2);
}

/// A request is stopped while it is drawn; the next one is drawn.
#[test]
fn stopped_request() {
    let model = Model::folder();
    let engine = Engine::new(Pipeline::load(&model.options()).unwrap(), EngineOptions::default()).unwrap();
    let mut long = request();
    long.steps = 900;
    let (begun, both) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
    let (barrier, count) = (begun.clone(), both.clone());
    let tell = move |progress: braid::Progress| {
        if progress.stage == braid::Stage::Denoise && progress.done == 1 {
            barrier.wait();
        }
        count.fetch_max(progress.done, Ordering::SeqCst);
    };
    let ticket = engine.submit_with(long, SubmitOptions::new().with_progress(tell)).unwrap();
    begun.wait();
    assert!(matches!(ticket.status(), TicketStatus::Running { progress: Some(_) }));
    let next = engine.submit(request()).unwrap();
    ticket.cancel();
    assert!(matches!(ticket.wait(), Err(Error::Cancelled)));
    assert!(both.load(Ordering::SeqCst) < 900);
    assert_eq!(next.wait().unwrap().images.len(), 1);
    engine.drain();
}
