//! The compiled graphs of a pipeline, kept for the next request.

use super::content_cache::ContentCache;
use super::denoise_plan::{DenoisePlan, Placement};
use crate::device::{Compiled, DenoiseLoop, Executable, ImageDecoder, LoopSpec};
use crate::error::{Error, Result};
use crate::models::unet::{ConditioningPart, UnetShape};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

/// A text encoder of so many layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextEncoderKey {
    /// 0 or 1.
    pub(super) encoder: usize,
    /// The layers that run.
    pub(super) layers: usize,
    /// Whether tokens can be hidden from all.
    pub(super) masked: bool,
}

/// The key of a compiled executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ExecutableKey {
    TextEncoder(TextEncoderKey),
    ImageEncoder,
    /// The VAE's, by the height and width of the latents.
    VaeEncoder([usize; 2]),
    /// With [`DenoisePlan::conditioning`].
    Conditioner(ConditioningPart, DenoisePlan, Placement),
}

/// The key of a compiled denoise loop, besides the [`LoopSpec`] that it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoopKey {
    pub(super) shape: UnetShape,
    pub(super) placement: Placement,
}

/// Something compiled with its key, and when it was used last.
struct Entry<K, T: ?Sized> {
    key: K,
    used: u64,
    compiled: Box<T>,
}

/// The most recently used executables, loops and decoders.
#[derive(Default)]
pub(super) struct ExecutableCache {
    executables: Vec<Entry<ExecutableKey, dyn Executable>>,
    loops: Vec<Entry<LoopKey, dyn DenoiseLoop>>,
    /// By the height and width of the latents.
    decoders: Vec<Entry<[usize; 2], dyn ImageDecoder>>,
    /// Counts the uses.
    clock: u64,
    /// The clock where the request under way began.
    begun: u64,
    /// The image encoder's hidden states of a zero image.
    pub(super) zero_image: Option<Arc<[f32]>>,
    /// Results of earlier requests.
    pub(super) contents: ContentCache,
    /// The plans that were prepared for, newest last.
    plans: Vec<DenoisePlan>,
    /// Whether encoders are freed once they have done their work.
    pub(super) free_encoders: bool,
    /// Whether requests are under way beside the one at work, so that their executables stay.
    pub(super) is_beside: bool,
    /// The images at once that were asked for, and those that there is memory for, by the height and width of their latents.
    limits: HashMap<[usize; 2], [usize; 2]>,
}

/// The target of the debug events about executables: `held`, the bytes that all of them hold (on a GPU with their weights), and
/// where one was compiled `seconds`, the time that it took.
pub const EXECUTABLES: &str = "braid::executables";

/// The most that are kept: those of two resolutions with all their stages, or of one with eight numbers of images at once.
const KEPT: usize = 18;
/// The most plans that are remembered.
const PLANS: usize = 4;

impl ExecutableCache {
    /// Begins a request: where memory is short, what it uses is kept before what earlier requests left.
    pub(super) fn begin_request(&mut self) {
        self.begun = self.clock + 1;
    }

    /// The executable for `key`, compiled by `compile` where it is not there.
    pub(super) fn executable(
        &mut self,
        key: ExecutableKey,
        compile: impl Fn() -> Result<Box<dyn Executable>>,
    ) -> Result<&mut dyn Executable> {
        let at = match self.executables.iter().position(|entry| entry.key == key) {
            Some(at) => at,
            None => {
                let (compiled, seconds) = self.compile(compile)?;
                self.executables.push(Entry { key, used: 0, compiled });
                self.report(seconds);
                self.executables.len() - 1
            }
        };
        self.clock += 1;
        let entry = &mut self.executables[at];
        entry.used = self.clock;
        Ok(entry.compiled.as_mut())
    }

    /// The denoise loop for `key` that accepts `spec`, compiled by `compile` where it is not there.
    pub(super) fn denoise_loop(
        &mut self,
        key: LoopKey,
        spec: &LoopSpec,
        compile: impl Fn() -> Result<Box<dyn DenoiseLoop>>,
    ) -> Result<&mut dyn DenoiseLoop> {
        let at = match self.position(&key, spec) {
            Some(at) => at,
            None => {
                let (compiled, seconds) = self.compile(compile)?;
                self.loops.push(Entry { key, used: 0, compiled });
                self.report(seconds);
                self.loops.len() - 1
            }
        };
        self.clock += 1;
        let entry = &mut self.loops[at];
        entry.used = self.clock;
        Ok(entry.compiled.as_mut())
    }

    /// The decoder for latents of that height and width, compiled by `compile` where it is not there.
    pub(super) fn decoder(
        &mut self,
        latent: [usize; 2],
        compile: impl Fn() -> Result<Box<dyn ImageDecoder>>,
    ) -> Result<&mut dyn ImageDecoder> {
        let at = match self.decoders.iter().position(|entry| entry.key == latent) {
            Some(at) => at,
            None => {
                let (compiled, seconds) = self.compile(compile)?;
                self.decoders.push(Entry { key: latent, used: 0, compiled });
                self.report(seconds);
                self.decoders.len() - 1
            }
        };
        self.clock += 1;
        let entry = &mut self.decoders[at];
        entry.used = self.clock;
        Ok(entry.compiled.as_mut())
    }

    /// Remembers that there is memory for no more than so many images of that height and width at once.
    pub(super) fn limit_images(&mut self, latent: [usize; 2], images: usize) {
        self.plan_images(latent, usize::MAX, images);
    }

    /// Remembers that so many images of that height and width at once were asked for, and that there is memory for so many of them.
    pub(super) fn plan_images(&mut self, latent: [usize; 2], asked: usize, images: usize) {
        self.limits.insert(latent, [asked, images.max(1)]);
    }

    /// Whether it is known how many of so many images of that height and width at once there is memory for.
    pub(super) fn has_planned(&self, latent: [usize; 2], images: usize) -> bool {
        self.limits.get(&latent).is_some_and(|[asked, _]| *asked >= images)
    }

    /// The most images of that height and width that memory had room for.
    pub(super) fn images_limit(&self, latent: [usize; 2]) -> usize {
        let known = self.limits.get(&latent).filter(|[asked, images]| images < asked);
        known.map_or(usize::MAX, |[_, images]| *images)
    }

    fn position(&self, key: &LoopKey, spec: &LoopSpec) -> Option<usize> {
        self.loops.iter().position(|entry| entry.key == *key && entry.compiled.accepts(spec))
    }

    /// Whether the decoder and the denoise loop are there, the latter of as many rows or more.
    pub(super) fn has(&self, key: &LoopKey, spec: &LoopSpec) -> bool {
        let latent = [key.shape.height, key.shape.width];
        let serves = |entry: &Entry<LoopKey, dyn DenoiseLoop>| {
            let LoopKey { shape, placement } = &entry.key;
            let same =
                *placement == key.placement && UnetShape { batch: key.shape.batch, ..shape.clone() } == key.shape;
            same && shape.batch >= key.shape.batch && entry.compiled.accepts(spec)
        };
        self.loops.iter().any(serves) && self.decoders.iter().any(|entry| entry.key == latent)
    }

    /// Compiles, freeing older executables where memory is short; also returns the seconds that it took.
    fn compile<T: ?Sized>(&mut self, compile: impl Fn() -> Result<Box<T>>) -> Result<(Box<T>, f64)> {
        if self.all().count() >= KEPT {
            let oldest = self.uses().min().unwrap_or(0);
            self.retain(|used| used > oldest);
        }
        let begin = Instant::now();
        let mut compiled = compile();
        if let Err(Error::Memory { .. }) = compiled
            && self.contents.release_device()
        {
            compiled = compile();
        }
        // What earlier requests left makes room, then all the rest.
        let all = (!self.is_beside).then_some(u64::MAX);
        for newest in std::iter::once(self.begun).chain(all) {
            if let Err(Error::Memory { .. }) = compiled
                && self.uses().any(|used| used < newest)
            {
                self.retain(|used| used >= newest);
                self.plans.clear();
                compiled = compile();
            }
        }
        Ok((compiled?, begin.elapsed().as_secs_f64()))
    }

    fn report(&self, seconds: f64) {
        tracing::debug!(target: EXECUTABLES, seconds, held = self.bytes() as u64, "compiled an executable");
    }

    fn all(&self) -> impl Iterator<Item = &dyn Compiled> {
        let executables = self.executables.iter().map(|entry| entry.compiled.as_ref() as &dyn Compiled);
        let loops = self.loops.iter().map(|entry| entry.compiled.as_ref() as &dyn Compiled);
        executables.chain(loops).chain(self.decoders.iter().map(|entry| entry.compiled.as_ref() as &dyn Compiled))
    }

    fn uses(&self) -> impl Iterator<Item = u64> {
        let executables = self.executables.iter().map(|entry| entry.used);
        let loops = self.loops.iter().map(|entry| entry.used);
        executables.chain(loops).chain(self.decoders.iter().map(|entry| entry.used))
    }

    /// Drops all but those whose last use is to be kept.
    fn retain(&mut self, kept: impl Fn(u64) -> bool) {
        self.executables.retain(|entry| kept(entry.used));
        self.loops.retain(|entry| kept(entry.used));
        self.decoders.retain(|entry| kept(entry.used));
    }

    /// Frees the encoders, where that was decided.
    pub(super) fn release_encoders(&mut self) {
        if self.free_encoders {
            self.executables.retain(|entry| matches!(entry.key, ExecutableKey::Conditioner(..)));
            tracing::debug!(target: EXECUTABLES, held = self.bytes() as u64, "freed the encoders");
        }
    }

    /// Remembers that everything for this plan is there.
    pub(super) fn prepared(&mut self, plan: DenoisePlan) {
        self.plans.retain(|p| *p != plan);
        if self.plans.len() == PLANS {
            self.plans.remove(0);
        }
        self.plans.push(plan);
    }

    /// The newest plan that was prepared for and covers this one; else this one.
    pub(super) fn covering_plan(&self, plan: DenoisePlan) -> DenoisePlan {
        self.plans.iter().rev().find(|prepared| prepared.covers(&plan)).cloned().unwrap_or(plan)
    }

    /// The bytes that all of them hold: what they share counts once.
    pub(super) fn bytes(&self) -> usize {
        let (mut all, mut seen) = (0, HashSet::new());
        for compiled in self.all() {
            all += compiled.bytes();
            for (piece, bytes) in compiled.shared() {
                if !seen.insert(piece) {
                    all -= bytes;
                }
            }
        }
        all
    }

    /// Frees all of them.
    pub(super) fn clear(&mut self) {
        self.retain(|_| false);
        self.zero_image = None;
        self.contents.clear();
        self.plans.clear();
        self.limits.clear();
    }
}

#[cfg(test)]
mod tests {
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
        ExecutableKey::TextEncoder(TextEncoderKey { encoder: 0, layers, masked: false })
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
                .denoise_loop(key, &LoopSpec { max_steps, varying: 1..1, noise: false, row_axes: Vec::new() }, compile)
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
        let spec = LoopSpec { max_steps: 4, varying: 1..1, noise: false, row_axes: Vec::new() };
        let key = |batch, placement| LoopKey { shape: UnetShape { batch, ..plan().shape }, placement };
        let compile = || Ok(Box::new(Fake(Graph::default(), vec![0; 4])) as Box<dyn DenoiseLoop>);
        cache.denoise_loop(key(4, Placement::Device), &spec, compile).unwrap();
        assert!(!cache.has(&key(2, Placement::Device), &spec));
        let decoder = || Ok(Box::new(Fake(Graph::default(), Vec::new())) as Box<dyn ImageDecoder>);
        cache.decoder([plan().shape.height, plan().shape.width], decoder).unwrap();
        assert!([2, 4].iter().all(|rows| cache.has(&key(*rows, Placement::Device), &spec)));
        assert!(!cache.has(&key(5, Placement::Device), &spec) && !cache.has(&key(2, Placement::Host), &spec));
        assert!(!cache.has(&key(2, Placement::Device), &LoopSpec { max_steps: 5, ..spec }));
        let known = |cache: &ExecutableCache, images| (cache.has_planned([8, 16], images), cache.images_limit([8, 16]));
        assert_eq!(known(&cache, 1), (false, usize::MAX));
        cache.plan_images([8, 16], 4, 4);
        assert_eq!((known(&cache, 4), known(&cache, 5)), ((true, usize::MAX), (false, usize::MAX)));
        cache.plan_images([8, 16], 5, 3);
        assert_eq!((known(&cache, 5), known(&cache, 6)), ((true, 3), (false, 3)));
        cache.limit_images([8, 16], 0);
        assert_eq!(known(&cache, 64), (true, 1));
    }

    impl ImageDecoder for Fake {
        fn decode(&mut self, _: &TensorRef<'_>, _: bool) -> Result<DecodedImage> {
            panic!("nothing runs")
        }
    }
}
