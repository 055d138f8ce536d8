//! Guidance in a part of the steps.

use super::common::{Model, request};
use super::counting::{Counting, Counts};
use super::{compiled, refused};
use braid::graph::Graph;
use braid::pipeline::{Callbacks, Preview};
use braid::schedulers::SchedulerKind;
use braid::{Image, Pipeline, Request};
use std::sync::atomic::Ordering;

/// A pipeline on the CPU with the rows of the model that it has evaluated.
fn counting(model: &Model, max_batch: usize) -> (Counts<1>, Pipeline) {
    let rows = Counts::default();
    let of_the_model = |graph: &Graph| {
        let denoiser = graph.inputs.first().filter(|(name, _)| name == "sample");
        denoiser.map(|(_, id)| (0, graph.node(*id).shape[0]))
    };
    let device = Counting::new(rows.clone(), of_the_model);
    let options = model.options().with_max_batch(max_batch);
    (rows, Pipeline::load_with_device(&options, Some(Box::new(device))).unwrap())
}

fn guided(interval: Option<(f64, f64)>) -> Request {
    let mut request = request().with_steps(5).with_guidance_scale(6.0);
    request.guidance_interval = interval;
    request
}

/// The images, and the rows that were evaluated for them.
fn draw((rows, pipeline): &(Counts<1>, Pipeline), request: &Request) -> (Vec<Image>, usize) {
    rows[0].store(0, Ordering::SeqCst);
    let images = pipeline.generate(request).unwrap().images;
    (images, rows[0].load(Ordering::SeqCst))
}

/// All steps, none, and some: as without an interval, as without guidance, and one row less for each step without it.
#[test]
fn rows_of_the_steps() {
    let model = Model::folder();
    let on = counting(&model, 4);
    let (whole, none) = (draw(&on, &guided(None)), draw(&on, &guided(None).with_guidance_scale(1.0)));
    assert!(whole.0 != none.0 && (whole.1, none.1) == (10, 5));
    assert_eq!(draw(&on, &guided(Some((0.0, 1.0)))), whole);
    // No step lies in between.
    for interval in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (0.21, 0.59)] {
        assert_eq!(draw(&on, &guided(Some(interval))).1, 5);
    }
    assert_eq!(draw(&on, &guided(Some((1.0, 1.0)))), none);
    for (interval, rows) in [((0.0, 0.4), 7), ((0.2, 0.8), 8), ((0.6, 1.0), 7)] {
        let (images, count) = draw(&on, &guided(Some(interval)));
        assert!(images != whole.0 && images != none.0 && count == rows, "{interval:?}: {count} rows");
    }
}

/// The first step without guidance begins with the latents that guidance has made; the ones before it are those of guidance.
#[test]
fn steps_before_the_end() {
    let model = Model::folder();
    let (_, pipeline) = counting(&model, 1);
    let previews = |interval: Option<(f64, f64)>, scale: f32| {
        let mut seen: Vec<Vec<u8>> = Vec::new();
        let show = |preview: Preview| seen.push(preview.pixels.into_rgb());
        let request = guided(interval).with_guidance_scale(scale);
        pipeline.generate_with(&request, Callbacks::new().with_preview(1, show)).unwrap();
        seen
    };
    let (whole, none) = (previews(None, 6.0), previews(None, 1.0));
    let (first, last) = (previews(Some((0.0, 0.6)), 6.0), previews(Some((0.6, 1.0)), 6.0));
    assert!(first[..3] == whole[..3] && first[3] != whole[3]);
    assert!(last[..3] == none[..3] && last[3] != none[3]);
}

/// Images that share evaluations with others, guided or not at the time, are those drawn alone, and nothing is compiled twice.
#[test]
fn intervals_in_a_batch() {
    let model = Model::folder();
    let (alone, together) = (counting(&model, 1).1, counting(&model, 4).1);
    let mut requests: Vec<_> = [None, Some((0.0, 0.4)), Some((0.2, 0.8)), Some((0.6, 1.0)), Some((0.0, 0.0))]
        .into_iter()
        .enumerate()
        .map(|(i, interval)| guided(interval).with_seed(i as u64).with_steps(5 + i % 2))
        .collect();
    requests[2].scheduler = Some(SchedulerKind::Dpmpp2M);
    requests[3].scheduler = Some(SchedulerKind::EulerAncestral);
    requests[3].image_prompts[0].end = 0.7;
    requests.push(guided(Some((0.4, 1.0))).with_num_images(3));
    requests.push(guided(Some((0.0, 0.6))).with_guidance_scale(1.0));
    let results = together.generate_batch(&requests);
    for (request, result) in requests.iter().zip(results) {
        assert!(result.unwrap().images == alone.generate(request).unwrap().images, "{:?}", request.guidance_interval);
    }
    let both = guided(Some((0.2, 0.8))).with_num_images(2);
    together.prepare(&together.workload_shape(&both).unwrap()).unwrap();
    together.generate(&both).unwrap();
    assert_eq!(compiled(|| together.generate(&both).unwrap()).1, 0);
    for interval in [(-0.1, 0.5), (0.5, 1.1), (0.6, 0.5), (f64::NAN, 1.0)] {
        let error = refused(alone.generate(&guided(Some(interval))), "an interval");
        assert!(error.to_string().starts_with("guidance_interval: "), "{error}");
    }
}
