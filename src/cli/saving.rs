//! Images of a request, written one by one as each is done.

use super::failure::{Failure, Outcome};
use super::flag::Generated;
use super::metadata::png_metadata;
use super::options::Options;
use super::record::Provenance;
use super::{system, terminal};
use crate::error::escape;
use crate::pipeline::{FinishedImage, Pipeline};
use crate::schedulers::SchedulerKind;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Instant;

/// The parts that all images of a command share.
pub struct Saving<'a> {
    pipeline: &'a Pipeline,
    /// Made with the first image, when the weights have been read anyway.
    provenance: OnceLock<Provenance>,
}

impl<'a> Saving<'a> {
    /// Images of that pipeline.
    pub fn new(pipeline: &'a Pipeline) -> Self {
        Self { pipeline, provenance: OnceLock::new() }
    }

    /// The images of a request, with the files that they go to.
    pub fn of(&'a self, options: &'a Options, names: &'a [PathBuf]) -> Result<SavedImages<'a>, Failure> {
        let scheduler = self.pipeline.scheduler_config(&options.request)?.kind();
        Ok(SavedImages { common: self, options, names, scheduler, seconds: 0.0, failure: None })
    }
}

/// The images of a request that have been written, so far.
pub struct SavedImages<'a> {
    common: &'a Saving<'a>,
    options: &'a Options,
    names: &'a [PathBuf],
    /// The scheduler of the request.
    pub scheduler: SchedulerKind,
    /// The time that it took.
    pub seconds: f64,
    failure: Option<Failure>,
}

impl SavedImages<'_> {
    /// Writes an image and tells of it; `false` where that failed, which [`Self::outcome`] tells.
    pub fn save(&mut self, image: &FinishedImage<'_>) -> bool {
        let begin = Instant::now();
        let saved = self.write(image);
        self.seconds += begin.elapsed().as_secs_f64();
        let is_saved = saved.is_ok();
        // The first failure is the one that is told.
        self.failure = self.failure.take().or(saved.err());
        is_saved
    }

    fn write(&self, image: &FinishedImage<'_>) -> Outcome {
        let Some(name) = self.names.get(image.number) else { return Ok(()) };
        let (pipeline, options, pixels) = (self.common.pipeline, self.options, image.image);
        let (width, height, metadata) = (pixels.width(), pixels.height(), options.metadata);
        let FinishedImage { number, seed, upcast_vae, .. } = *image;
        let generated = Generated { scheduler: self.scheduler, number, seed, upcast_vae, width, height, metadata };
        let provenance =
            self.common.provenance.get_or_init(|| system::reading(|| Provenance::new(pipeline, options.record_hashes)));
        pixels.save_with_metadata(name, &png_metadata(options, &generated, provenance))?;
        if options.json {
            return Ok(());
        }
        let name = escape(&name.to_string_lossy());
        terminal::print(&format!("{name}  {width}x{height}, seed {}\n", image.seed))
    }

    /// The first failure to write an image.
    pub fn outcome(&mut self) -> Outcome {
        self.failure.take().map_or(Ok(()), Err)
    }
}
