//! Many requests, many pipelines, many threads: memory stays where it is and bytes stay the same. The section on load of the catalogue
//! (docs/reliability.md).

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/memory.rs"]
mod memory;

use braid::error::Error;
use braid::inputs::image::Image;
use braid::pipeline::{Callbacks, CancelToken, ImagePrompt, Progress, ReferenceImage, Stage};
use braid::{Engine, EngineOptions, Pipeline, Request, Ticket};
use common::{Model, generate, request};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// One test at a time: they look at the memory and the threads of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn small() -> Request {
    let mut r = request();
    (r.width, r.height) = (Some(16), Some(24));
    r
}

/// The files that are mapped.
fn mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter(|line| line.contains('/')).count()
}

/// The files that are open.
fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// The threads of pipelines; the tests' own come and go.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.map(name).filter(|name| name.starts_with("braid")).count()
}

/// The anonymous memory of this process in bytes, which mapped files are no part of; 0 where that is not known.
fn anonymous() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.map_or(0, |l| l.trim().trim_end_matches("kB").trim().parse::<i64>().unwrap() * 1024)
}

/// All that the process holds.
struct Held {
    /// Bytes of its allocations, to the byte.
    allocated: i64,
    /// The memory that no file backs, however it was taken, in pages.
    anonymous: i64,
    mapped: usize,
    open: usize,
    threads: usize,
}

impl Held {
    fn now() -> Self {
        Self { allocated: memory::held(), anonymous: anonymous(), mapped: mapped(), open: open(), threads: threads() }
    }

    /// Holds that nothing was added. The thread that begins the next test allocates two or three thousand bytes.
    #[track_caller]
    fn demand_no_more(&self) {
        // A thread that is joined may stand in the list for a moment yet.
        let patience = std::time::Instant::now();
        while threads() > self.threads && patience.elapsed().as_secs() < 10 {
            std::thread::yield_now();
        }
        let now = Self::now();
        let more = [now.allocated - self.allocated, now.anonymous - self.anonymous];
        println!("{more:?} bytes more");
        assert!(more[0] < 8000, "{} bytes more are allocated", more[0]);
        // The allocator keeps pages that are partly free.
        assert!(more[1] < 4 << 20, "{} bytes more of anonymous memory", more[1]);
        let handles = |held: &Self| [held.mapped, held.open, held.threads];
        let more = handles(&now).into_iter().zip(handles(self)).any(|(now, before)| now > before);
        assert!(!more, "files mapped, files open, threads: {:?}, {:?} before", handles(&now), handles(self));
    }
}

/// All that is held after `warm` times of `work`, which fill caches; then it is done `count` times more.
fn again_and_again(warm: usize, count: usize, mut work: impl FnMut(usize)) -> Held {
    (0..warm).for_each(&mut work);
    let before = Held::now();
    (warm..warm + count).for_each(&mut work);
    before
}

#[test]
fn load_1000_images() {
    let _turn = alone();
    let pipeline = Model::folder().load().unwrap();
    let mut r = small();
    let mut held = Vec::with_capacity(1000);
    let before = again_and_again(20, 1000, |i| {
        r.seed = i as u64;
        generate(&pipeline, &r).unwrap();
        if i >= 20 {
            held.push(pipeline.device_memory_used());
        }
    });
    before.demand_no_more();
    assert!(held.len() == 1000 && held.iter().all(|bytes| *bytes == held[0]), "the device's memory drifts");
}

#[test]
fn load_mixed_resolutions() {
    let _turn = alone();
    let pipeline = Model::folder().load().unwrap();
    let sizes: Vec<(usize, usize)> = (0..30).map(|i| (16 + i % 6 * 8, 16 + i / 6 * 8)).collect();
    let mut r = small();
    r.steps = 1;
    let mut round = || -> Vec<usize> {
        let mut bytes = Vec::new();
        for &(w, h) in &sizes {
            (r.width, r.height) = (Some(w), Some(h));
            assert_eq!(generate(&pipeline, &r).unwrap().len(), w * h * 3);
            bytes.push(pipeline.device_memory_used());
        }
        bytes
    };
    round();
    let first = round();
    let before = Held::now();
    // A cache that grows would hold more each time.
    assert_eq!(round(), first);
    before.demand_no_more();
    pipeline.clear_cache();
    assert_eq!(pipeline.device_memory_used(), 0);
    (r.width, r.height) = (Some(56), Some(48));
    generate(&pipeline, &r).unwrap();
    let largest = pipeline.device_memory_used();
    let most = first.iter().max().unwrap();
    // Eighteen are kept: loops and decoders of nine sizes, where nothing else has to do anything again.
    assert!(*most < 6 * largest, "{most} bytes for all sizes, {largest} for the largest");
}

/// A token that is set at any of the points at which a request looks: within each operation, between steps, in each stage. The cancel is
/// always seen, and what it left does not show in the request after it.
#[test]
fn load_cancel_storm() {
    /// Of about 4,600 looks every so manieth is one that finds it set.
    const STRIDE: usize = 101;
    let _turn = alone();
    let pipeline = Model::folder().load().unwrap();
    let mut r = small();
    r.steps = 4;
    let want = generate(&pipeline, &r).unwrap();
    let (mut stopped, before) = (0, Held::now());
    for look in (0..).step_by(STRIDE) {
        let token = CancelToken::set_at_look(look);
        let result = pipeline.generate_with(&r, Callbacks::new().with_cancel(&token));
        match result {
            Err(Error::Cancelled) => stopped += 1,
            Ok(output) => {
                assert_eq!(output.images[0].rgb(), want);
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    // A look that does not stop the request lets it be whole.
    assert!(stopped > 30, "{stopped} were stopped");
    assert_eq!(generate(&pipeline, &r).unwrap(), want);
    before.demand_no_more();
}

/// Everything that a request tells, in order.
fn told(pipeline: &Pipeline, r: &Request) -> Vec<Progress> {
    let mut all = Vec::new();
    let mut note = |p| all.push(p);
    pipeline.generate_with(r, Callbacks::new().with_progress(&mut note)).unwrap();
    all
}

/// Whatever is under way, a cancel stops before the next step, and a panic of the caller's own function harms no one else.
#[test]
fn load_cancel_or_panic_at_every_point() {
    let _turn = alone();
    let pipeline = Model::folder().load().unwrap();
    let mut r = small();
    r.num_images = 2;
    let want = generate(&pipeline, &r).unwrap();
    let all = told(&pipeline, &r);
    assert_eq!(all.iter().filter(|p| p.stage == Stage::Denoise && p.done > 0).count(), 4);
    let before = Held::now();
    for stop in 0..all.len() {
        let token = CancelToken::new();
        let mut seen = 0;
        let mut cancel = |_| {
            seen += 1;
            if seen == stop + 1 {
                token.cancel();
            }
        };
        let result = pipeline.generate_with(&r, Callbacks::new().with_progress(&mut cancel).with_cancel(&token));
        match result {
            Err(Error::Cancelled) => {}
            // The last decoding is over before it could look.
            Ok(_) => assert!(stop + 2 >= all.len(), "{stop} of {}", all.len()),
            Err(other) => panic!("{other}"),
        }
        assert!(seen <= stop + 2, "{} more steps after a cancel", seen - stop - 1);

        let mut seen = 0;
        let mut fail = |_| {
            seen += 1;
            // As a panic, but without a message on the terminal.
            if seen == stop + 1 {
                std::panic::resume_unwind(Box::new("planned"));
            }
        };
        let result =
            catch_unwind(AssertUnwindSafe(|| pipeline.generate_with(&r, Callbacks::new().with_progress(&mut fail))));
        assert_eq!(result.unwrap_err().downcast_ref(), Some(&"planned"));
    }
    assert_eq!(generate(&pipeline, &r).unwrap(), want);
    before.demand_no_more();
    assert!(pipeline.device_memory_used() > 0);
    let token = CancelToken::new();
    token.cancel();
    let early = pipeline.generate_with(&r, Callbacks::new().with_cancel(&token));
    assert!(matches!(early, Err(Error::Cancelled)));
}

#[test]
fn load_two_pipelines_on_one_device() {
    const fn shared_by_threads<T: Send + Sync>() {}
    const { shared_by_threads::<Pipeline>() };
    const { shared_by_threads::<CancelToken>() };
    let _turn = alone();
    let model = Model::folder();
    let (one, two) = (model.load().unwrap(), Model::file().load().unwrap());
    let first = small();
    let mut second = first.clone();
    second.image_prompts.clear();
    second.width = Some(32);
    let want = [generate(&one, &first).unwrap(), generate(&two, &second).unwrap(), generate(&one, &second).unwrap()];
    std::thread::scope(|scope| {
        let repeat = |pipeline, r, want| move || (0..6).for_each(|_| assert_eq!(&generate(pipeline, r).unwrap(), want));
        scope.spawn(repeat(&one, &first, &want[0]));
        scope.spawn(repeat(&two, &second, &want[1]));
        scope.spawn(repeat(&one, &second, &want[2]));
    });
}

#[test]
fn load_and_unload_100_times() {
    let _turn = alone();
    let model = Model::folder();
    let mut options = model.options();
    options.threads = Some(2);
    let mut r = small();
    r.steps = 1;
    let mut want = None;
    let before = again_and_again(20, 100, |i| {
        options.mmap = i % 2 == 0;
        let pipeline = Pipeline::load(&options).unwrap();
        // Every tenth one also generates.
        if i % 10 == 0 {
            let got = generate(&pipeline, &r).unwrap();
            assert_eq!(*want.get_or_insert_with(|| got.clone()), got);
        }
    });
    before.demand_no_more();
}

/// Requests that are waited for, cancelled and forgotten; one is drawn at a time, so that each engine runs what the one before has run.
/// The tokenizers' regular expressions keep buffers of eight threads, and so nothing is added after the ninth engine.
#[test]
fn load_80_requests_of_ten_engines() {
    let _turn = alone();
    let pipeline = Arc::new(Model::folder().load().unwrap());
    let mut r = small();
    r.steps = 1;
    let want = generate(&pipeline, &r).unwrap();
    let before = again_and_again(9, 10, |_| {
        let engine = Engine::new(pipeline.clone(), EngineOptions::default().with_max_running(1)).unwrap();
        let tickets: Vec<Ticket> = (0..8).map(|_| engine.submit(r.clone()).unwrap()).collect();
        for (i, ticket) in tickets.into_iter().enumerate() {
            match i % 4 {
                0 | 1 => assert_eq!(ticket.wait().unwrap().images[0].rgb(), want),
                2 => ticket.cancel(),
                _ => {}
            }
        }
        engine.drain();
    });
    before.demand_no_more();
}

#[test]
fn load_same_seed_ten_times_and_batch_of_four() {
    let _turn = alone();
    let model = Model::folder();
    let mut options = model.options();
    let pipeline = model.load().unwrap();
    let mut r = small();
    r.seed = u64::MAX - 1;
    r.num_images = 4;
    let four = generate(&pipeline, &r).unwrap();
    r.num_images = 1;
    let size = four.len() / 4;
    for (i, want) in four.chunks_exact(size).enumerate() {
        r.seed = (u64::MAX - 1).wrapping_add(i as u64);
        assert_eq!(generate(&pipeline, &r).unwrap(), want, "image {i}");
    }
    assert_ne!(four[..size], four[size..2 * size]);
    // Ten times, by one pipeline and by fresh ones of other numbers of threads.
    for (threads, times) in [(1, 10), (2, 3), (3, 3)] {
        options.threads = Some(threads);
        let other = Pipeline::load(&options).unwrap();
        for _ in 0..times {
            assert_eq!(generate(&other, &r).unwrap(), four[3 * size..], "{threads} threads");
        }
    }
    pipeline.clear_cache();
    assert_eq!(generate(&pipeline, &r).unwrap(), four[3 * size..]);
}

#[test]
fn embedding_in_place_of_image() {
    let _turn = alone();
    let model = Model::golden("diffusers", "euler-a-two-adapters");
    let options = braid::PipelineOptions::new(model.dir.path())
        .with_adapter(model.path("first.safetensors"))
        .with_adapter(model.path("second.bin"));
    let pipeline = Pipeline::load(&options).unwrap();
    let image = |seed: usize| {
        let rgb = (0..40 * 30 * 3).map(|i| (i * seed % 251) as u8).collect();
        Image::new(40, 30, rgb).unwrap()
    };
    let images = [image(7), image(11), image(13)];
    let prompts = |reference: &dyn Fn(&Image) -> ReferenceImage| {
        let [a, b, c] = images.each_ref().map(reference);
        vec![
            ImagePrompt::default().with_reference(a),
            ImagePrompt::default().with_reference(b).with_reference(c).with_scale(0.5),
        ]
    };
    let mut r = small();
    r.image_prompts = prompts(&|p| ReferenceImage::Image(p.clone()));
    let want = generate(&pipeline, &r).unwrap();
    r.image_prompts = prompts(&|p| ReferenceImage::Embedding(pipeline.encode_image(p).unwrap()));
    assert_eq!(generate(&pipeline, &r).unwrap(), want);
    r.image_prompts.swap(0, 1);
    assert_ne!(generate(&pipeline, &r).unwrap(), want);
}
