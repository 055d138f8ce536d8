//! The compiled graphs of a pipeline, kept for the next request.

use super::content_cache::ContentCache;
use super::denoise_plan::{DenoisePlan, Placement};
use super::planned_loops::PlannedLoops;
use crate::device::{Compiled, DenoiseLoop, Executable, ImageDecoder, LoopSpec};
use crate::error::{Error, Result};
use crate::models::unet::{ConditioningPart, UnetShape};
use std::collections::HashSet;
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

/// Half of a VAE for latents of that height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VaeKey {
    pub(super) latent: [usize; 2],
    /// Whether it computes in f32 where the device's own type is another ([`crate::device::Device::upcast_vae`]).
    pub(super) upcast: bool,
}

impl VaeKey {
    /// In the device's own type.
    pub(super) fn new(latent: [usize; 2]) -> Self {
        Self { latent, upcast: false }
    }

    /// In f32.
    pub(super) fn upcast(latent: [usize; 2]) -> Self {
        Self { latent, upcast: true }
    }
}

/// The key of a compiled executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ExecutableKey {
    /// For so many rows.
    TextEncoder(TextEncoderKey, usize),
    /// For so many images.
    ImageEncoder(usize),
    VaeEncoder(VaeKey),
    /// With [`DenoisePlan::conditioning`].
    Conditioner(ConditioningPart, DenoisePlan, Placement),
}

impl ExecutableKey {
    /// Whether it is an encoder for several rows, which is small beside the one for one row, whose weights it reads.
    fn is_of_rows(&self) -> bool {
        matches!(self, Self::TextEncoder(_, 2..) | Self::ImageEncoder(2..))
    }
}

/// The key of a compiled denoise loop, besides the [`LoopSpec`] that it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoopKey {
    pub(super) shape: UnetShape,
    pub(super) placement: Placement,
}

/// The images of one height and width in latents at once: those that were asked for, and those that there is memory for.
struct PlannedImages {
    latent: [usize; 2],
    /// Their loops; absent where these were never planned.
    loops: Option<PlannedLoops>,
    asked: usize,
    images: usize,
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
    decoders: Vec<Entry<VaeKey, dyn ImageDecoder>>,
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
    /// The plans of images at once, of which the last one of each height and width holds.
    planned: Vec<PlannedImages>,
}

/// The target of the debug events about executables: `held`, the bytes that all of them hold (on a GPU with their weights), and
/// where one was compiled `seconds`, the time that it took.
pub const EXECUTABLES: &str = "braid::executables";

/// The most that are kept: those of two resolutions with all their stages, or of one with eight numbers of images at once.
const KEPT: usize = 18;
/// The loops among them.
const LOOPS: usize = 8;
/// The most plans that are remembered: those of four shapes, each with and without guidance.
const PLANS: usize = 8;
/// The most that are remembered of what was planned for images at once.
const PLANNED: usize = 32;

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
                if !key.is_of_rows() {
                    self.make_room();
                }
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
                self.make_room();
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

    /// The decoder for `key`, compiled by `compile` where it is not there.
    pub(super) fn decoder(
        &mut self,
        key: VaeKey,
        compile: impl Fn() -> Result<Box<dyn ImageDecoder>>,
    ) -> Result<&mut dyn ImageDecoder> {
        let at = match self.decoders.iter().position(|entry| entry.key == key) {
            Some(at) => at,
            None => {
                self.make_room();
                let (compiled, seconds) = self.compile(compile)?;
                self.decoders.push(Entry { key, used: 0, compiled });
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
        let loops = self.current(latent).and_then(|planned| planned.loops.clone());
        self.plan(PlannedImages { latent, loops, asked: usize::MAX, images });
    }

    /// Remembers that so many images at once were asked for that run these loops, and that there is memory for so many of them.
    pub(super) fn plan_images(&mut self, loops: PlannedLoops, asked: usize, images: usize) {
        let shape = &loops.plan().shape;
        self.plan(PlannedImages { latent: [shape.height, shape.width], loops: Some(loops), asked, images });
    }

    fn plan(&mut self, planned: PlannedImages) {
        self.planned.retain(|known| (known.latent, &known.loops) != (planned.latent, &planned.loops));
        if self.planned.len() == PLANNED {
            self.planned.remove(0);
        }
        self.planned.push(PlannedImages { images: planned.images.max(1), ..planned });
    }

    /// Whether it is known how many of so many images at once there is memory for that run these loops; it holds from now on then.
    pub(super) fn has_planned(&mut self, loops: &PlannedLoops, images: usize) -> bool {
        let serves = |known: &PlannedImages| {
            known.asked >= images && known.loops.as_ref().is_some_and(|known| known.serve(loops))
        };
        let Some(at) = self.planned.iter().rposition(serves) else { return false };
        let planned = self.planned.remove(at);
        self.planned.push(planned);
        true
    }

    /// The plan that holds for images of that height and width.
    fn current(&self, latent: [usize; 2]) -> Option<&PlannedImages> {
        self.planned.iter().rev().find(|planned| planned.latent == latent)
    }

    /// The most images of that height and width that memory had room for.
    pub(super) fn images_limit(&self, latent: [usize; 2]) -> usize {
        let known = self.current(latent).filter(|planned| planned.images < planned.asked);
        known.map_or(usize::MAX, |planned| planned.images)
    }

    /// The plan by which a group of images runs, in one of the loops that were planned where it has room there, and the fewest rows of an
    /// image.
    pub(super) fn widened(&self, group: &DenoisePlan) -> (DenoisePlan, usize) {
        let planned = self.current([group.shape.height, group.shape.width]);
        let loops = planned.and_then(|planned| planned.loops.as_ref());
        loops.map_or_else(|| (group.clone(), 1), |loops| (loops.widened(group), loops.image_rows()))
    }

    /// The most that are kept beside encoders for several rows, with room for more loops where more numbers of rows were planned.
    fn most_kept(&self) -> usize {
        let planned = self.planned.last();
        let loops = planned.and_then(|planned| Some(planned.loops.as_ref()?.plans(planned.images, 1, true).len()));
        KEPT + loops.unwrap_or(0).saturating_sub(LOOPS)
    }

    fn position(&self, key: &LoopKey, spec: &LoopSpec) -> Option<usize> {
        self.loops.iter().position(|entry| entry.key == *key && entry.compiled.accepts(spec))
    }

    /// Whether the decoder and the denoise loop are there, the latter of as many rows or more.
    pub(super) fn has(&self, key: &LoopKey, spec: &LoopSpec) -> bool {
        let decoder = VaeKey::new([key.shape.height, key.shape.width]);
        let serves = |entry: &Entry<LoopKey, dyn DenoiseLoop>| {
            let LoopKey { shape, placement } = &entry.key;
            let same =
                *placement == key.placement && UnetShape { batch: key.shape.batch, ..shape.clone() } == key.shape;
            same && shape.batch >= key.shape.batch && entry.compiled.accepts(spec)
        };
        self.loops.iter().any(serves) && self.decoders.iter().any(|entry| entry.key == decoder)
    }

    /// Drops those that were used longest ago, where one more would be too many.
    fn make_room(&mut self) {
        let of_rows = |cache: &Self| cache.executables.iter().filter(|entry| entry.key.is_of_rows()).count();
        while self.all().count() - of_rows(self) >= self.most_kept() {
            let oldest = self.uses().min().unwrap_or(0);
            self.retain(|used| used > oldest);
        }
    }

    /// Compiles, freeing older executables where memory is short; also returns the seconds that it took.
    fn compile<T: ?Sized>(&mut self, compile: impl Fn() -> Result<Box<T>>) -> Result<(Box<T>, f64)> {
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
        self.planned.clear();
    }
}

#[cfg(test)]
#[path = "executable_cache_tests.rs"]
mod tests;
