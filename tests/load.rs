//! Many requests, many pipelines, many threads: memory stays where it is and bytes stay the same. The section on load of the catalogue
//! (docs/reliability.md).

#![allow(clippy::unwrap_used)]

mod common;

use braid::error::Error;
use braid::inputs::image::Image;
use braid::pipeline::{Callbacks, CancelToken, ImagePrompt, Progress, ReferenceImage, Stage};
use braid::{Pipeline, Request};
use common::{Model, generate, request};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// Anonymous memory of this process in bytes, which mapped files are no part of; 0 where that is not known.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.map_or(0, |l| l.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024)
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, |d| d.count())
}

/// The anonymous memory that `work` adds, after a first part that fills caches.
fn growth(warm: usize, count: usize, mut work: impl FnMut(usize)) -> u64 {
    (0..warm).for_each(&mut work);
    let before = anonymous();
    (warm..warm + count).for_each(&mut work);
    anonymous().saturating_sub(before)
}

#[test]
fn load_1000_images() {
    let _turn = alone();
    let pipeline = Model::folder().load().unwrap();
    let mut r = small();
    let mut held = Vec::new();
    let grown = growth(20, 1000, |i| {
        r.seed = i as u64;
        generate(&pipeline, &r).unwrap();
        if i >= 20 {
            held.push(pipeline.device_memory_used());
        }
    });
    // A leak of one image, one latent or one executable would be megabytes.
    assert!(grown < 2 << 20, "{grown} bytes more after {} images", held.len());
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
    let before = anonymous();
    // A cache that grows would hold more each time.
    assert_eq!(round(), first);
    let grown = anonymous().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
    pipeline.clear_cache();
    assert_eq!(pipeline.device_memory_used(), 0);
    (r.width, r.height) = (Some(56), Some(48));
    generate(&pipeline, &r).unwrap();
    let largest = pipeline.device_memory_used();
    let most = first.iter().max().unwrap();
    // Eighteen are kept: loops and decoders of nine sizes, where nothing else has to do anything again.
    assert!(*most < 6 * largest, "{most} bytes for all sizes, {largest} for the largest");
}

#[test]
fn load_cancel_storm() {
    let _turn = alone();
    let pipeline = Model::folder().load().unwrap();
    let mut r = small();
    r.steps = 4;
    let want = generate(&pipeline, &r).unwrap();
    let begin = std::time::Instant::now();
    generate(&pipeline, &r).unwrap();
    let whole = begin.elapsed().as_micros() as u64;
    let (mut requests, mut stopped, mut random) = (0, 0, 12345u64);
    // On a busy machine the thread that cancels may come late again and again.
    while requests < 40 || stopped <= 5 {
        requests += 1;
        assert!(requests <= 2000, "{stopped} of 2000 were stopped");
        let token = CancelToken::new();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let wait = Duration::from_micros((random >> 33) % (whole * 3 / 2));
        let result = std::thread::scope(|scope| {
            let other = token.clone();
            scope.spawn(move || {
                std::thread::sleep(wait);
                other.cancel();
            });
            pipeline.generate_with(&r, Callbacks::new().with_cancel(&token))
        });
        match result {
            Ok(output) => assert_eq!(output.images[0].rgb(), want),
            Err(Error::Cancelled) => stopped += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(generate(&pipeline, &r).unwrap(), want);
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
    let count = threads();
    let mut r = small();
    r.steps = 1;
    let mut want = None;
    let grown = growth(20, 100, |i| {
        options.mmap = i % 2 == 0;
        let pipeline = Pipeline::load(&options).unwrap();
        // Every tenth one also generates.
        if i % 10 == 0 {
            let got = generate(&pipeline, &r).unwrap();
            assert_eq!(*want.get_or_insert_with(|| got.clone()), got);
        }
    });
    assert!(grown < 4 << 20, "{grown} bytes more");
    // A joined thread may stand in the list for a moment yet.
    let patience = std::time::Instant::now();
    while threads() != count && patience.elapsed().as_secs() < 10 {
        std::thread::yield_now();
    }
    assert_eq!(threads(), count);
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
