//! Requests that repeat a part of an earlier one: what was computed then is not computed again.

use super::common::{Model, request};
use super::counting::{Counting, Counts};
use braid::pipeline::{Callbacks, CancelToken, ImagePrompt};
use braid::schedulers::TimestepSpacing;
use braid::{
    Engine, EngineOptions, Error, Image, LongPrompts, Pipeline, PipelineOptions, Request, Session, SubmitOptions,
    Ticket,
};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The first inputs of what is counted: text encoders, image encoders, the parts of the conditioning, the VAE's encoder.
const KINDS: [&str; 6] = ["ids", "pixels", "timesteps", "text", "image_embeds.0", "image"];

type Runs = Counts<{ KINDS.len() }>;

/// A pipeline, and its counts.
struct Case {
    pipeline: Pipeline,
    runs: Runs,
}

impl Case {
    fn new(options: &PipelineOptions) -> Self {
        let runs = Runs::default();
        let device = Counting::new(runs.clone(), |graph| {
            graph.inputs.first().and_then(|(name, _)| KINDS.iter().position(|kind| kind == name)).map(|kind| (kind, 1))
        });
        Self { pipeline: Pipeline::load_with_device(options, Some(Box::new(device))).unwrap(), runs }
    }

    /// The runs of each kind for a request whose images are those of a pipeline that has drawn nothing before.
    fn all_runs(&self, options: &PipelineOptions, request: &Request) -> [usize; KINDS.len()] {
        let (images, runs) = self.count(|pipeline| pipeline.generate(request).unwrap().images);
        assert_eq!(images, Pipeline::load(options).unwrap().generate(request).unwrap().images);
        runs
    }

    /// Those of text encoders and image encoders.
    fn runs(&self, options: &PipelineOptions, request: &Request) -> [usize; 2] {
        let [texts, images, ..] = self.all_runs(options, request);
        [texts, images]
    }

    /// Those of the conditioning: time, text, image.
    fn conditioned(&self, options: &PipelineOptions, request: &Request) -> [usize; 3] {
        let [_, _, time, text, image, _] = self.all_runs(options, request);
        [time, text, image]
    }

    /// The runs of each kind in some work.
    fn count<'a, T>(&'a self, work: impl FnOnce(&'a Pipeline) -> T) -> (T, [usize; KINDS.len()]) {
        self.runs.iter().for_each(|count| count.store(0, Ordering::SeqCst));
        let result = work(&self.pipeline);
        (result, std::array::from_fn(|kind| self.runs[kind].load(Ordering::SeqCst)))
    }
}

fn picture(seed: u8) -> Image {
    let rgb = (0..40 * 30 * 3).map(|i| (i as u8).wrapping_mul(seed)).collect();
    Image::new(40, 30, rgb).unwrap()
}

fn image(seed: u8) -> ImagePrompt {
    ImagePrompt::new(picture(seed))
}

#[test]
fn prompts_and_references() {
    let model = Model::folder();
    let options = model.options();
    let case = Case::new(&options);
    let mut request = request();
    (request.steps, request.image_prompts) = (1, vec![image(3)]);
    request.negative_prompt = Some("fog".into());
    // Both encoders on both prompts.
    assert_eq!(case.runs(&options, &request), [4, 1]);
    assert_eq!(case.runs(&options, &request), [0, 0]);
    (request.seed, request.steps, request.guidance_scale) = (9, 2, 3.0);
    request.image_prompts = vec![image(3).with_scale(0.5)];
    assert_eq!(case.runs(&options, &request), [0, 0]);
    request.prompt = "a boat".into();
    assert_eq!(case.runs(&options, &request), [2, 0]);
    request.image_prompts = vec![image(5)];
    assert_eq!(case.runs(&options, &request), [0, 1]);
    let [a, b] = [5, 3].map(|seed| image(seed).references.remove(0));
    request.image_prompts[0].references = vec![a, b];
    assert_eq!(case.runs(&options, &request), [0, 0]);
    // The prompt by fewer layers, not the negative one.
    request.clip_skip = 1;
    assert_eq!(case.runs(&options, &request), [2, 0]);
    request.negative_prompt = Some("rain".into());
    assert_eq!(case.runs(&options, &request), [2, 0]);
    request.image_prompts = vec![image(5).with_resize((31, 17))];
    assert_eq!(case.runs(&options, &request), [0, 1]);
    case.pipeline.clear_cache();
    assert_eq!(case.runs(&options, &request), [4, 1]);
}

/// Nothing is kept where nothing may be, and no more than may.
#[test]
fn bounded() {
    let model = Model::folder();
    let mut request = request();
    (request.steps, request.image_prompts) = (1, vec![image(3)]);
    request.negative_prompt = Some("fog".into());
    for (bytes, again) in [(0, [4, 1]), (1 << 30, [0, 0])] {
        let options = model.options().with_max_cache_bytes(bytes);
        let case = Case::new(&options);
        assert_eq!(case.runs(&options, &request), [4, 1]);
        assert_eq!(case.runs(&options, &request), again, "{bytes} bytes");
    }
}

/// The most rows of text, or images, that the device of [`Together`] takes at once.
const MOST: usize = 4;

/// A pipeline whose encoders take several rows at once.
struct Together {
    pipeline: Pipeline,
    runs: Counts<{ 2 * (MOST + 1) }>,
}

impl Together {
    fn new(options: &PipelineOptions) -> Self {
        let runs = Counts::default();
        let device = Counting::new(runs.clone(), |graph| {
            let (name, id) = graph.inputs.first()?;
            let kind = KINDS[..2].iter().position(|kind| kind == name)?;
            Some((kind * (MOST + 1) + graph.node(*id).shape[0], 1))
        });
        let device = Box::new(device.with_encoder_rows(MOST));
        Self { pipeline: Pipeline::load_with_device(options, Some(device)).unwrap(), runs }
    }

    fn take(&self) -> [Vec<(usize, usize)>; 2] {
        taken(&self.runs)
    }
}

/// The runs of text encoders and of the image encoder since the last call, as pairs of rows and how often as many ran.
fn taken(runs: &Counts<{ 2 * (MOST + 1) }>) -> [Vec<(usize, usize)>; 2] {
    [0, 1].map(|kind| {
        let count = |rows: usize| runs[kind * (MOST + 1) + rows].swap(0, Ordering::SeqCst);
        (1..=MOST).map(|rows| (rows, count(rows))).filter(|(_, runs)| *runs > 0).collect()
    })
}

/// Rows of one request go through each encoder together where a device takes several, filled up to a power of two; what is known is left out,
/// and the bytes are those of one row at a time.
#[test]
fn rows_together() {
    let model = Model::folder();
    let options = model.options();
    let (together, alone) = (Together::new(&options), Pipeline::load(&options).unwrap());
    let check = |request: &Request, wanted: [Vec<(usize, usize)>; 2]| {
        let [got, want] = [&together.pipeline, &alone].map(|pipeline| pipeline.generate(request).unwrap());
        assert!(got.images == want.images && got.intermediates == want.intermediates, "{}", request.prompt);
        assert_eq!(together.take(), wanted, "{}", request.prompt);
    };
    let mut request = request().with_capture_intermediates(true);
    (request.steps, request.long_prompts) = (1, LongPrompts::Chunks);
    request.negative_prompt = Some("fog".into());
    request.image_prompts = vec![image(3).with_reference(picture(5)).with_negative_image(picture(7))];
    // Both prompts, and three images in the place of four.
    check(&request, [vec![(2, 2)], vec![(4, 1)]]);
    check(&request, [vec![], vec![]]);
    // One row is new, and one image.
    request.prompt = "a boat".into();
    request.image_prompts = vec![image(9)];
    check(&request, [vec![(1, 2)], vec![(1, 1)]]);
    // Three rows and six are twice four and the rest; a reference that occurs twice goes through once.
    let negative = "rain ".repeat(90) + &"snow ".repeat(130);
    (request.prompt, request.negative_prompt) = ("stone ".repeat(90), Some(negative));
    request.image_prompts = vec![image(11).with_reference(picture(11))];
    check(&request, [vec![(1, 2), (4, 4)], vec![(1, 1)]]);
    // The prompt leaves layers out, so it has executables of its own.
    request = request.with_clip_skip(1);
    (request.prompt, request.negative_prompt) = ("a hill".into(), Some("snow".into()));
    check(&request, [vec![(1, 4)], vec![]]);
}

/// Rows of requests that begin together go through each encoder together; one that cannot be, and one that is stopped, concern no other.
#[test]
fn requests_encoded_together() {
    let model = Model::folder();
    let options = model.options().with_max_batch(4).with_max_cache_bytes(0);
    let (together, alone) = (Together::new(&options), Pipeline::load(&options).unwrap());
    let requests = [3u8, 5, 0, 7].map(|seed| {
        let mut request = request().with_steps(usize::from(seed > 0)).with_seed(seed.into());
        (request.prompt, request.negative_prompt) = (format!("{seed} boats"), Some("fog".into()));
        request.image_prompts = vec![image(seed)];
        request
    });
    let all = together.pipeline.generate_batch(&requests);
    assert_eq!(together.take(), [vec![(4, 2)], vec![(4, 1)]]);
    for (result, request) in all.iter().zip(&requests) {
        match result {
            Ok(output) => assert_eq!(output.images, alone.generate(request).unwrap().images),
            Err(error) => assert!(request.steps == 0 && error.to_string().starts_with("steps: "), "{error}"),
        }
    }
    assert_eq!(all.iter().filter(|result| result.is_ok()).count(), 3);
    // More than there is room for: three begin at once, of which one is stopped and costs nothing, and the last one, whose prompts and
    // image are those of the first, after them.
    let more: Vec<_> = [&requests[..2], &requests[3..], &requests[..1]].concat();
    let pipeline = Together::new(&options.clone().with_max_batch(3));
    let stopped = CancelToken::new();
    stopped.cancel();
    let mut results = Vec::new();
    let callbacks = |i: usize| if i == 1 { Callbacks::new().with_cancel(&stopped) } else { Callbacks::new() };
    let jobs = more.iter().enumerate().map(|(i, request)| (request.clone(), callbacks(i)));
    pipeline
        .pipeline
        .generate_batch_with(jobs, |number, result| results.push((number, result.map(|output| output.images))));
    results.sort_by_key(|(number, _)| *number);
    for ((number, result), request) in results.into_iter().zip(&more) {
        match result {
            Ok(images) => assert_eq!(images, alone.generate(request).unwrap().images),
            Err(error) => assert!(number == 1 && matches!(error, Error::Cancelled), "{error}"),
        }
    }
    assert_eq!(pipeline.take(), [vec![(4, 2)], vec![(2, 1)]]);
}

/// Requests whose rows fill the encoders' room beside those of the first one stay in the queue: one of a higher priority begins before them,
/// those that are stopped or late by then never begin, and what none of the first has room for is not encoded.
#[test]
fn queue_behind_requests_encoded_together() {
    let model = Model::folder();
    let options = model.options().with_max_batch(8).with_max_cache_bytes(0);
    let Together { pipeline, runs } = Together::new(&options);
    // The first run begins with all four of them.
    let gathered = EngineOptions::default().with_gather(Duration::from_secs(3600)).with_max_running(4);
    let engine = Arc::new(Engine::new(pipeline, gathered).unwrap());
    let (begun, tickets) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::<Ticket>::new())));
    let request = |name: &str| {
        let mut request = request().with_steps(1);
        (request.prompt, request.negative_prompt) = (format!("{name} boats"), Some(format!("{name} fogs")));
        request
    };
    let note = |name: &'static str| {
        let begun = begun.clone();
        SubmitOptions::new().with_progress(move |_| {
            let mut begun = begun.lock().unwrap();
            if !begun.contains(&name) {
                begun.push(name);
            }
        })
    };
    let deadline = Instant::now() + Duration::from_millis(150);
    let (of_first, weak, known) = (begun.clone(), Arc::downgrade(&engine), tickets.clone());
    let (urgent, mut urgent_options) = (request("urgent"), Some(note("urgent").with_priority(1)));
    let first = SubmitOptions::new().with_progress(move |_| {
        let Some(options) = urgent_options.take() else { return };
        of_first.lock().unwrap().push("first");
        let urgent = weak.upgrade().unwrap().submit_with(urgent.clone(), options).unwrap();
        let mut tickets = known.lock().unwrap();
        tickets[1].cancel();
        tickets.push(urgent);
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    });
    let mut submitted = tickets.lock().unwrap();
    let first = engine.submit_with(request("first"), first).unwrap();
    for (name, options) in [("second", note("second")), ("stopped", note("stopped")), ("late", note("late"))] {
        let options = if name == "late" { options.with_deadline(deadline) } else { options };
        submitted.push(engine.submit_with(request(name), options).unwrap());
    }
    drop(submitted);
    first.wait().unwrap();
    let results: Vec<_> = std::mem::take(&mut *tickets.lock().unwrap()).into_iter().map(Ticket::wait).collect();
    assert!(matches!(results.as_slice(), [Ok(_), Err(Error::Cancelled), Err(Error::Late), Ok(_)]), "{results:?}");
    assert_eq!(*begun.lock().unwrap(), ["first", "urgent", "second"]);
    // Two rows of the first and two of the second, then those of the urgent one.
    assert_eq!(taken(&runs)[0], [(2, 2), (4, 2)]);
}

/// The text encoders' updates by LoRAs count.
#[test]
fn scales_of_loras() {
    let model = Model::golden("diffusers", "lora-text");
    let mut options = model.options().with_lora(model.path("text.safetensors"));
    (options.adapters, options.clip_vision) = (Vec::new(), None);
    let case = Case::new(&options);
    let mut request = request().with_lora_scales([1.0]);
    (request.steps, request.guidance_scale) = (1, 1.0);
    request.image_prompts.clear();
    let first = case.runs(&options, &request);
    assert!(first[0] >= 2, "{first:?}");
    assert_eq!(case.runs(&options, &request), [0, 0]);
    request.lora_scales = vec![0.5];
    assert_eq!(case.runs(&options, &request), first);
}

type Change = fn(&mut Request);

/// The parts of the conditioning that each difference makes anew, one after the other: time, text, image.
const CHANGES: [(&str, [usize; 3], Change); 18] = [
    ("the first", [1, 1, 1], |_| {}),
    ("the same", [0, 0, 0], |_| {}),
    ("another seed, more images", [0, 0, 0], |r| (r.seed, r.num_images) = (9, 2)),
    ("guidance", [0, 0, 0], |r| (r.guidance_scale, r.guidance_rescale) = (3.0, 0.5)),
    ("a scale", [0, 0, 0], |r| r.image_prompts[0].scales = 0.3.into()),
    ("a part of the steps", [0, 0, 0], |r| r.image_prompts[0].end = 0.5),
    ("the weight of the one reference", [0, 0, 0], |r| r.image_prompts[0].references[0].weight = 0.5),
    ("a mask", [0, 0, 0], |r| {
        let mask = Image::new(2, 1, vec![255, 255, 255, 0, 0, 0]).unwrap();
        r.image_prompts[0].references[0].mask = Some(mask);
    }),
    ("steps", [1, 0, 0], |r| r.steps = 3),
    ("timesteps", [1, 0, 0], |r| r.timestep_spacing = Some(TimestepSpacing::Trailing)),
    ("a size", [1, 0, 0], |r| r.width = Some(48)),
    ("a prompt", [1, 1, 0], |r| r.prompt = "a boat".into()),
    ("a negative prompt", [1, 1, 0], |r| r.negative_prompt = Some("rain".into())),
    ("a reference", [0, 0, 1], |r| r.image_prompts = vec![image(5)]),
    ("two references", [0, 0, 1], |r| r.image_prompts[0].references.extend(image(3).references)),
    ("the weight of one of them", [0, 0, 1], |r| r.image_prompts[0].references[1].weight = 0.5),
    ("no guidance", [1, 1, 1], |r| r.guidance_scale = 1.0),
    ("no reference", [0, 0, 0], |r| r.image_prompts.clear()),
];

fn first_request() -> Request {
    let mut request = request();
    (request.steps, request.image_prompts) = (2, vec![image(3)]);
    request.negative_prompt = Some("fog".into());
    request
}

/// Each part of the conditioning is computed once for the values that it follows from, the scale of a LoRA among them.
#[test]
fn conditionings() {
    let model = Model::golden("diffusers", "lora-kohya");
    let mut options = model.options().with_lora(model.path("kohya.safetensors"));
    options.threads = Some(1);
    let case = Case::new(&options);
    let mut request = first_request();
    for (what, wanted, change) in CHANGES {
        change(&mut request);
        assert_eq!(case.conditioned(&options, &request), wanted, "{what}");
    }
    // Everything of the first is there still, for its scale of the LoRA.
    let again = first_request();
    assert_eq!(case.conditioned(&options, &again), [0; 3]);
    let other = again.clone().with_lora_scales([0.5]);
    assert_eq!(case.conditioned(&options, &other), [1; 3]);
    assert_eq!(case.conditioned(&options, &again), [0; 3]);
    case.pipeline.clear_cache();
    assert_eq!(case.conditioned(&options, &again), [1; 3]);
}

/// Whatever the cache has room for, from nothing to all, the images are the same.
#[test]
fn evictions() {
    let model = Model::folder();
    let first = first_request().with_steps(1);
    let mut second = first.clone();
    (second.prompt, second.image_prompts) = ("a boat".into(), vec![image(5)]);
    for bytes in [0, 1 << 13, 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 30] {
        let options = model.options().with_max_cache_bytes(bytes);
        let case = Case::new(&options);
        let runs = [&first, &second, &first, &first, &second, &first].map(|r| case.conditioned(&options, r));
        let all: usize = runs.iter().flatten().sum();
        let wanted = match bytes {
            0 => 18..=18,
            1_073_741_824 => 6..=6,
            _ => 6..=18,
        };
        assert!(wanted.contains(&all), "{bytes} bytes: {runs:?}");
    }
}

/// An image to begin with is encoded once, and again for another size or mask.
#[test]
fn images_to_begin_with() {
    let model = Model::folder();
    let options = model.options();
    let case = Case::new(&options);
    let encoded = |request: &Request| case.all_runs(&options, request)[5];
    let begin = |seed: u8| Image::new(32, 32, (0..32 * 32 * 3).map(|i| (i as u8) ^ seed).collect()).unwrap();
    let mut request = request().with_init_image(begin(0)).with_strength(0.7);
    assert_eq!((encoded(&request), encoded(&request)), (1, 0));
    (request.seed, request.steps) = (4, 3);
    assert_eq!(encoded(&request), 0);
    request.mask = Some(begin(3));
    assert_eq!((encoded(&request), encoded(&request)), (1, 0));
    request.mask = Some(begin(7));
    assert_eq!((encoded(&request), encoded(&request)), (1, 0));
    request.init_image = Some(begin(1));
    assert_eq!(encoded(&request), 1);
    request.width = Some(48);
    assert_eq!((encoded(&request), encoded(&request)), (1, 0));
}

/// A session draws at the cost of the steps, even where the cache keeps nothing, beside other requests, and gives what the pipeline gives.
#[test]
fn sessions() {
    let model = Model::folder();
    let options = model.options().with_max_cache_bytes(0);
    let case = Case::new(&options);
    let mut request = first_request();
    request.init_image = Some(Image::new(32, 32, vec![90; 32 * 32 * 3]).unwrap());
    let (session, runs) = case.count(|pipeline| pipeline.session(&request).unwrap());
    assert_eq!(runs, [4, 1, 1, 1, 1, 1]);
    assert_eq!(session.request().prompt, request.prompt);
    let mut other = request.clone();
    (other.prompt, other.image_prompts) = ("a boat".into(), vec![image(5)]);
    let alone = |request: &Request| Pipeline::load(&options).unwrap().generate(request).unwrap().images;
    let drawn = |request: &Request| {
        let (output, runs) = case.count(|_| session.generate(request).unwrap());
        assert_eq!(output.images, alone(request));
        runs
    };
    let none = [0; KINDS.len()];
    assert_eq!(drawn(&request), none);
    let (_, runs) = case.count(|pipeline| pipeline.generate(&other).unwrap());
    assert_eq!(runs, [2, 1, 1, 1, 1, 0]);
    let mut draw = request.clone().with_seed(3).with_num_images(2).with_guidance_scale(8.0);
    draw.image_prompts[0].scales = 0.2.into();
    assert_eq!(drawn(&draw), none);
    // The embeddings of the timesteps alone are new.
    assert_eq!(drawn(&draw.clone().with_steps(5)), [0, 0, 1, 0, 0, 0]);
    // Another prompt is another request.
    assert_eq!(drawn(&other), [2, 1, 1, 1, 1, 0]);
    // It holds what it has when all else is forgotten.
    case.pipeline.clear_cache();
    assert_eq!(drawn(&request), none);
    drop(session);
    assert_eq!(case.all_runs(&options, &request), [4, 1, 1, 1, 1, 1]);
}

/// Sessions of one pipeline in several threads, an engine's requests between them, with a pipeline that they share.
#[test]
fn sessions_beside_others() {
    let model = Model::folder();
    let pipeline = Arc::new(model.load().unwrap());
    let requests = [3, 5].map(|seed| {
        let mut request = request();
        request.image_prompts = vec![image(seed)];
        request
    });
    let wanted = requests.each_ref().map(|request| pipeline.generate(request).unwrap().images);
    pipeline.clear_cache();
    let engine = Engine::new(pipeline.clone(), EngineOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for (request, wanted) in requests.iter().zip(&wanted) {
            let (pipeline, engine) = (pipeline.clone(), &engine);
            scope.spawn(move || {
                let session = Session::new(pipeline, request).unwrap();
                for _ in 0..4 {
                    let ticket = engine.submit(session.request().clone()).unwrap();
                    assert_eq!(session.generate(request).unwrap().images, *wanted);
                    assert_eq!(ticket.wait().unwrap().images, *wanted);
                }
            });
        }
    });
    let error = pipeline.session(&request().with_steps(0)).unwrap_err().to_string();
    assert_eq!(error, "steps: 0 given; at least 1 is needed");
}
