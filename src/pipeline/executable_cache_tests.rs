//! The cache of executables: evictions, memory that is shared, plans that were prepared for.

use super::super::content_cache::ContentHasher;
use super::super::denoise_plan::tests::plan;
use super::*;
use crate::device::{DecodedImage, DenoiseOutput, ImageInFlight, TensorData, TensorRef};
use crate::graph::Graph;

/// With the pieces that it shares.
struct Fake(Graph, Vec<u64>);

impl Compiled for Fake {
    fn bytes(&self) -> usize {
        10
    }

    fn shared(&self) -> Vec<(u64, usize)> {
        self.1.iter().map(|piece| (*piece, 3)).collect()
    }

    fn graph(&self) -> &Graph {
        &self.0
    }
}

impl Executable for Fake {
    fn run(&mut self, _: &[TensorData<'_>], _: &mut [&mut [f32]]) -> Result<()> {
        Ok(())
    }
}

fn fake() -> Result<Box<dyn Executable>> {
    Ok(Box::new(Fake(Graph::default(), Vec::new())))
}

fn key(layers: usize) -> ExecutableKey {
    ExecutableKey::TextEncoder(TextEncoderKey { encoder: 0, layers, masked: false }, 1)
}

fn has(cache: &ExecutableCache, layers: usize) -> bool {
    cache.executables.iter().any(|entry| entry.key == key(layers))
}

#[test]
fn cache_eviction_order() {
    let mut cache = ExecutableCache::default();
    for layers in 0..KEPT + 3 {
        cache.executable(key(layers), fake).unwrap();
        cache.executable(key(0), || panic!("the one in use was given up")).unwrap();
    }
    assert_eq!(cache.bytes(), KEPT * 10);
    assert!(!has(&cache, 1));
    // Encoders for several rows have room beside them, and so have loops for more numbers of rows.
    for rows in [2, 4, 6, 8] {
        cache.executable(ExecutableKey::ImageEncoder(rows), fake).unwrap();
    }
    assert_eq!(cache.bytes(), (KEPT + 4) * 10);
    cache.plan_images(PlannedLoops::new(&plan(), [&plan().with_rows(1)]), 6, 6);
    for layers in 0..KEPT + 9 {
        cache.executable(key(layers), fake).unwrap();
    }
    let of_one = cache.executables.iter().filter(|entry| !entry.key.is_of_rows()).count();
    assert_eq!(of_one, KEPT + 12 - LOOPS);
}

#[test]
fn shared_memory_counted_once() {
    let mut cache = ExecutableCache::default();
    for (layers, pieces) in [vec![7], vec![7, 8], vec![9], vec![]].into_iter().enumerate() {
        cache.executable(key(layers), || Ok(Box::new(Fake(Graph::default(), pieces.clone())))).unwrap();
    }
    assert_eq!(cache.bytes(), 4 * 10 - 3);
}

fn short() -> Result<Box<dyn Executable>> {
    Err(Error::Memory { stage: "decode", need: 2, have: 1, hint: "".into() })
}

/// A compilation that succeeds only at the given try.
fn at_try<'a>(number: usize, tries: &'a std::cell::Cell<usize>) -> impl Fn() -> Result<Box<dyn Executable>> + 'a {
    tries.set(0);
    move || {
        tries.set(tries.get() + 1);
        if tries.get() < number { short() } else { fake() }
    }
}

#[test]
fn out_of_memory_eviction() {
    let mut cache = ExecutableCache::default();
    cache.executable(key(0), fake).unwrap();
    cache.executable(key(1), fake).unwrap();
    let tries = std::cell::Cell::new(0);
    cache.executable(key(2), at_try(2, &tries)).unwrap();
    assert_eq!((tries.get(), cache.bytes()), (2, 10));
    // What does not fit alone is an error, at once where nothing can go.
    assert!(cache.executable(key(3), short).is_err());
    assert_eq!(cache.bytes(), 0);
}

#[test]
fn what_the_request_uses_goes_last() {
    let mut cache = ExecutableCache::default();
    cache.executable(key(0), fake).unwrap();
    cache.executable(key(1), fake).unwrap();
    cache.begin_request();
    cache.executable(key(1), fake).unwrap();
    let tries = std::cell::Cell::new(0);
    cache.executable(key(2), at_try(2, &tries)).unwrap();
    assert!(!has(&cache, 0) && has(&cache, 1) && has(&cache, 2));
    cache.executable(key(3), at_try(2, &tries)).unwrap();
    assert_eq!((tries.get(), cache.bytes()), (2, 10));
    cache.executable(key(4), fake).unwrap();
    cache.begin_request();
    cache.executable(key(4), fake).unwrap();
    cache.executable(key(5), at_try(3, &tries)).unwrap();
    assert_eq!((tries.get(), cache.bytes()), (3, 10));
}

/// Work beside requests under way frees what earlier ones left, and nothing of theirs.
#[test]
fn what_requests_under_way_use_stays() {
    let mut cache = ExecutableCache::default();
    cache.executable(key(0), fake).unwrap();
    cache.begin_request();
    cache.executable(key(1), fake).unwrap();
    cache.is_beside = true;
    let tries = std::cell::Cell::new(0);
    assert!(cache.executable(key(2), at_try(3, &tries)).is_err());
    assert!(tries.get() == 2 && !has(&cache, 0) && has(&cache, 1));
}

/// The newest plan that covers a request's, until memory was short or all was freed.
#[test]
fn prepared_plans() {
    let with = |max_steps| DenoisePlan { max_steps, ..plan() };
    let mut cache = ExecutableCache::default();
    [6, 9, 5].into_iter().for_each(|steps| cache.prepared(with(steps)));
    let found = |cache: &ExecutableCache, steps| cache.covering_plan(with(steps)).max_steps;
    assert_eq!([4, 6, 9, 10].map(|steps| found(&cache, steps)), [5, 9, 9, 10]);
    cache.prepared(with(6));
    assert_eq!(found(&cache, 4), 6);
    let tries = std::cell::Cell::new(0);
    cache.executable(key(0), fake).unwrap();
    cache.executable(key(1), at_try(2, &tries)).unwrap();
    assert_eq!(found(&cache, 4), 4);
    cache.prepared(with(6));
    let content = ContentHasher::new("test").key();
    cache.contents = ContentCache::new(4);
    cache.zero_image = Some(Arc::new([1.0]));
    cache.contents.put(content, Arc::new(1.0f32), 4);
    cache.clear();
    assert_eq!(found(&cache, 4), 4);
    assert!(cache.zero_image.is_none() && cache.contents.get::<f32>(content).is_none());
}

impl DenoiseLoop for Fake {
    /// Takes as many steps as it has pieces.
    fn accepts(&self, spec: &LoopSpec) -> bool {
        spec.max_steps <= self.1.len()
    }

    fn evaluate(&mut self, _: &mut [&mut ImageInFlight]) -> Result<usize> {
        panic!("nothing runs")
    }

    fn finish(&mut self, _: ImageInFlight) -> Result<DenoiseOutput> {
        panic!("nothing runs")
    }
}

/// One loop for each shape and placement, and another where it does not accept what is asked for.
#[test]
fn loops_by_shape_and_kind() {
    let mut cache = ExecutableCache::default();
    let mut find = |shape: UnetShape, placement, max_steps| {
        let compiled = std::cell::Cell::new(false);
        let key = LoopKey { shape, placement };
        let compile = || {
            compiled.set(true);
            Ok(Box::new(Fake(Graph::default(), vec![0; max_steps])) as Box<dyn DenoiseLoop>)
        };
        cache
            .denoise_loop(
                key,
                &LoopSpec { max_steps, varying: 1..1, noise: false, row_axes: Vec::new(), image_rows: 2 },
                compile,
            )
            .unwrap();
        compiled.get()
    };
    let shape = plan().shape;
    let wide = UnetShape { width: 32, ..shape.clone() };
    assert!(find(shape.clone(), Placement::Device, 4));
    assert!(!find(shape.clone(), Placement::Device, 3));
    assert!(find(shape.clone(), Placement::Device, 5));
    assert!(find(shape.clone(), Placement::Host, 4));
    assert!(find(wide.clone(), Placement::Device, 4));
    assert!(!find(wide, Placement::Device, 4) && !find(shape, Placement::Device, 5));
}
/// A loop of as many rows or more counts as there, with the decoder; and of images at once the most that was asked for is known.
#[test]
fn planned_images() {
    let mut cache = ExecutableCache::default();
    let spec = LoopSpec { max_steps: 4, varying: 1..1, noise: false, row_axes: Vec::new(), image_rows: 2 };
    let key = |batch, placement| LoopKey { shape: UnetShape { batch, ..plan().shape }, placement };
    let compile = || Ok(Box::new(Fake(Graph::default(), vec![0; 4])) as Box<dyn DenoiseLoop>);
    cache.denoise_loop(key(4, Placement::Device), &spec, compile).unwrap();
    assert!(!cache.has(&key(2, Placement::Device), &spec));
    let decoder = || Ok(Box::new(Fake(Graph::default(), Vec::new())) as Box<dyn ImageDecoder>);
    let latent = [plan().shape.height, plan().shape.width];
    cache.decoder(VaeKey::upcast(latent), decoder).unwrap();
    assert!(!cache.has(&key(2, Placement::Device), &spec));
    cache.decoder(VaeKey::new(latent), decoder).unwrap();
    assert!([2, 4].iter().all(|rows| cache.has(&key(*rows, Placement::Device), &spec)));
    assert!(!cache.has(&key(5, Placement::Device), &spec) && !cache.has(&key(2, Placement::Host), &spec));
    assert!(!cache.has(&key(2, Placement::Device), &LoopSpec { max_steps: 5, ..spec }));
    let loops = |tokens: usize| {
        let mut plan = plan();
        plan.shape.tokens *= tokens;
        PlannedLoops::new(&plan, [])
    };
    let known = |cache: &mut ExecutableCache, tokens, images| {
        (cache.has_planned(&loops(tokens), images), cache.images_limit(latent))
    };
    assert_eq!(known(&mut cache, 1, 1), (false, usize::MAX));
    cache.plan_images(loops(1), 4, 4);
    assert_eq!([4, 5].map(|images| known(&mut cache, 1, images)), [(true, usize::MAX), (false, usize::MAX)]);
    cache.plan_images(loops(1), 5, 3);
    assert_eq!([5, 6].map(|images| known(&mut cache, 1, images)), [(true, 3), (false, 3)]);
    // Longer prompts have a plan of their own, and groups run in the loops of the one that holds.
    let widened = |cache: &ExecutableCache| cache.widened(&plan()).0.shape.tokens / plan().shape.tokens;
    assert_eq!((known(&mut cache, 2, 1), widened(&cache)), ((false, 3), 1));
    cache.plan_images(loops(2), 5, 2);
    assert_eq!((cache.images_limit(latent), widened(&cache)), (2, 2));
    assert_eq!((known(&mut cache, 1, 5), widened(&cache)), ((true, 3), 1));
    cache.limit_images(latent, 0);
    assert_eq!((known(&mut cache, 1, 64), widened(&cache)), ((true, 1), 1));
}

impl ImageDecoder for Fake {
    fn decode(&mut self, _: &TensorRef<'_>, _: bool) -> Result<DecodedImage> {
        panic!("nothing runs")
    }
}
