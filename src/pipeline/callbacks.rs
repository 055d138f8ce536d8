//! Callbacks of a request under way.

use super::live_prompts::LivePrompts;
use super::live_scales::LiveScales;
use super::preview::{Preview, Previewer};
use super::request::Progress;
use crate::cancel::CancelToken;
use crate::inputs::image::Image;
use std::time::Instant;

/// An image of a request that is done, while others may be under way.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct FinishedImage<'i> {
    /// The image itself.
    pub image: &'i Image,
    /// Its number among those of its request, from 0.
    pub number: usize,
    /// Its seed.
    pub seed: u64,
    /// As [`super::Output::upcast_vae`].
    pub upcast_vae: bool,
}

/// The callback of images that are done.
type OnImage<'a> = Box<dyn FnMut(FinishedImage<'_>) + Send + 'a>;

/// Callbacks of a request: its progress, previews, images, changes of scales and prompts, and its cancellation.
#[derive(Default)]
#[non_exhaustive]
pub struct Callbacks<'a> {
    /// Called when a stage begins and after each of its steps.
    pub on_progress: Option<Box<dyn FnMut(Progress) + Send + 'a>>,
    /// Called with previews, after each so many model evaluations.
    pub(super) on_preview: Option<Previewer<'a>>,
    /// Called with each image that is done.
    pub(super) on_image: Option<OnImage<'a>>,
    /// Stops the request.
    pub cancel: CancelToken,
    /// A request that has not begun by then, as earlier ones are drawn, fails with [`crate::Error::Late`].
    pub deadline: Option<Instant>,
    /// Sets scales while the request runs.
    pub(super) live_scales: Option<LiveScales>,
    /// Exchanges prompts while the request runs.
    pub(super) live_prompts: Option<LivePrompts>,
}

impl<'a> Callbacks<'a> {
    /// No callback, and a token that nobody sets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `progress` when a stage begins and after each of its steps.
    #[must_use]
    pub fn with_progress(mut self, progress: impl FnMut(Progress) + Send + 'a) -> Self {
        self.on_progress = Some(Box::new(progress));
        self
    }

    /// Calls `show` with a preview of the image under way after each `every` model evaluations, at least 1: the clean latents that the
    /// model predicts, in the colours that a matrix gives them, one pixel a latent, or with [`crate::PipelineOptions::taesd`] decoded by it.
    /// Nothing about the images changes; a GPU waits for these steps alone.
    #[must_use]
    pub fn with_preview(mut self, every: usize, show: impl FnMut(Preview) + Send + 'a) -> Self {
        self.on_preview = Some(Previewer { every, show: Box::new(show) });
        self
    }

    /// Calls `take` with each image as soon as it is done, so that what ends the request later does not lose it. The output has all of them
    /// once more.
    #[must_use]
    pub fn with_image(mut self, take: impl FnMut(FinishedImage<'_>) + Send + 'a) -> Self {
        self.on_image = Some(Box::new(take));
        self
    }

    /// Stops once `cancel` is set: on the CPU within a step, on a GPU at the next one.
    #[must_use]
    pub fn with_cancel(mut self, cancel: &CancelToken) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Sets the time by which the request must have begun.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Takes the scales of image prompts that are set by `live` while the request runs.
    #[must_use]
    pub fn with_live_scales(mut self, live: &LiveScales) -> Self {
        self.live_scales = Some(live.clone());
        self
    }

    /// Takes the prompts and references that are set by `live` while the request runs.
    #[must_use]
    pub fn with_live_prompts(mut self, live: &LivePrompts) -> Self {
        self.live_prompts = Some(live.clone());
        self
    }

    /// Whether the deadline is past.
    pub(super) fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Whether the request is neither late nor stopped.
    pub(super) fn may_begin(&self) -> bool {
        !self.is_late() && self.cancel.check().is_ok()
    }

    pub(super) fn report(&mut self, progress: Progress) {
        if let Some(call) = &mut self.on_progress {
            call(progress);
        }
    }
}
