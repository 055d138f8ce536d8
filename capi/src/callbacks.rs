//! Callbacks of a request.

use crate::edge::{Failure, Outcome};
use crate::image::braid_image;
use crate::params::read;
use crate::structs::{braid_callbacks, braid_finished_image, braid_preview, braid_progress};
use braid::{Callbacks, CancelToken, FinishedImage, Preview, Progress, Stage};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// The stages by their names in braid.h; their places are their numbers.
pub const STAGES: &[(&str, Stage)] = &[
    ("BRAID_STAGE_TEXT", Stage::Text),
    ("BRAID_STAGE_IMAGE", Stage::Image),
    ("BRAID_STAGE_ENCODE", Stage::Encode),
    ("BRAID_STAGE_CONDITION", Stage::Condition),
    ("BRAID_STAGE_DENOISE", Stage::Denoise),
    ("BRAID_STAGE_DECODE", Stage::Decode),
];

fn number(stage: Stage) -> i32 {
    STAGES.iter().position(|(_, known)| *known == stage).map_or(-1, |at| at as i32)
}

thread_local! {
    /// The callbacks that this thread is in.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread is in a callback.
pub(crate) fn is_inside() -> bool {
    INSIDE.with(Cell::get) > 0
}

/// Refuses a function that would wait, in a callback, for the request that the callback holds up.
///
/// # Errors
/// [`Failure::Argument`].
pub(crate) fn demand_outside(function: &str) -> Outcome<()> {
    if is_inside() {
        let what =
            format!("{function} was called from a callback of a request, for which it would wait; call it after");
        return Err(Failure::argument(what));
    }
    Ok(())
}

/// The functions of a request.
#[derive(Clone, Copy)]
pub(crate) struct Functions(braid_callbacks);

// SAFETY: braid.h says that functions and their data are used on other threads, by one at a time.
unsafe impl Send for Functions {}
// SAFETY: the same; calls go through `Gate`, which lets in one at a time, or through closures that are `FnMut`.
unsafe impl Sync for Functions {}

impl Functions {
    /// Reads the functions; none where the pointer is null.
    ///
    /// # Safety
    /// `given` is null or points to what braid.h asks for.
    pub(crate) unsafe fn read(given: *const braid_callbacks) -> Outcome<Option<Self>> {
        if given.is_null() {
            return Ok(None);
        }
        // SAFETY: as the caller promises.
        Self::of(unsafe { read(given, "callbacks") }?).map(Some)
    }

    /// Checks the functions.
    ///
    /// # Errors
    /// [`Failure::Argument`].
    pub(crate) fn of(given: braid_callbacks) -> Outcome<Self> {
        if given.on_preview.is_some() && given.preview_every == 0 {
            return Err(Failure::argument("preview_every: 0 given; at least 1 is needed"));
        }
        Ok(Self(given))
    }

    pub(crate) fn has_progress(&self) -> bool {
        self.0.on_progress.is_some()
    }

    pub(crate) fn has_image(&self) -> bool {
        self.0.on_image.is_some()
    }

    /// The evaluations from one preview to the next, where previews are asked for.
    pub(crate) fn preview_every(&self) -> Option<usize> {
        self.0.on_preview.map(|_| self.0.preview_every)
    }

    /// A field that an engine has no use for, and what to do in its place.
    pub(crate) fn not_for_engines(&self) -> Option<(&'static str, &'static str)> {
        let fields = [
            (self.0.cancel.is_null(), ("cancel", "leave it NULL and call braid_ticket_cancel")),
            (self.0.live_scales.is_null(), ("live_scales", "leave it NULL and call braid_ticket_set_scales")),
            (self.0.live_prompts.is_null(), ("live_prompts", "leave it NULL and call braid_ticket_set_prompts")),
            (self.0.deadline_ms < 0, ("deadline_ms", "leave it -1 and set that of braid_submit_options")),
        ];
        fields.into_iter().find(|(absent, _)| !absent).map(|(_, names)| names)
    }

    /// Tells of progress, and returns whether the request is to stop.
    pub(crate) fn progress(&self, progress: Progress) -> bool {
        let Some(function) = self.0.on_progress else { return false };
        let told = braid_progress {
            struct_size: size_of::<braid_progress>(),
            image: progress.image,
            num_images: progress.num_images,
            done: progress.done,
            steps: progress.steps,
            stage: number(progress.stage),
            reserved: 0,
        };
        // SAFETY: the function and its data are as braid.h asks for.
        inside(|| unsafe { function(&raw const told, self.0.user_data) }) != 0
    }

    /// Shows a preview, and returns whether the request is to stop.
    pub(crate) fn preview(&self, preview: &Preview) -> bool {
        let Some(function) = self.0.on_preview else { return false };
        let shown = braid_preview {
            struct_size: size_of::<braid_preview>(),
            pixels: braid_image::of(&preview.pixels),
            image: preview.image,
            done: preview.done,
            steps: preview.steps,
        };
        // SAFETY: the function and its data are as braid.h asks for.
        inside(|| unsafe { function(&raw const shown, self.0.user_data) }) != 0
    }

    /// Hands over an image that is done, and returns whether the request is to stop.
    pub(crate) fn image(&self, finished: &FinishedImage<'_>) -> bool {
        let Some(function) = self.0.on_image else { return false };
        let given = braid_finished_image {
            struct_size: size_of::<braid_finished_image>(),
            image: braid_image::of(finished.image),
            number: finished.number,
            seed: finished.seed,
            upcast_vae: i32::from(finished.upcast_vae),
            reserved: 0,
        };
        // SAFETY: the function and its data are as braid.h asks for.
        inside(|| unsafe { function(&raw const given, self.0.user_data) }) != 0
    }

    /// The library's callbacks, which set the request's token where a function stops it.
    ///
    /// # Safety
    /// The caller's handles were not freed; functions and data are as braid.h asks for until the request ends.
    pub(crate) unsafe fn callbacks<'a>(self) -> Callbacks<'a> {
        // SAFETY: as the caller promises.
        let (cancel, scales, prompts) =
            unsafe { (self.0.cancel.as_ref(), self.0.live_scales.as_ref(), self.0.live_prompts.as_ref()) };
        let cancel = cancel.map(|token| token.0.clone()).unwrap_or_default();
        let stop = |cancel: &CancelToken, stops: bool| {
            if stops {
                cancel.cancel();
            }
        };
        let mut callbacks = Callbacks::new().with_cancel(&cancel);
        callbacks.deadline = deadline(self.0.deadline_ms);
        if self.has_progress() {
            let cancel = cancel.clone();
            callbacks = callbacks.with_progress(move |progress| stop(&cancel, self.progress(progress)));
        }
        if let Some(every) = self.preview_every() {
            let cancel = cancel.clone();
            callbacks = callbacks.with_preview(every, move |preview| stop(&cancel, self.preview(&preview)));
        }
        if self.has_image() {
            callbacks = callbacks.with_image(move |finished| stop(&cancel, self.image(&finished)));
        }
        if let Some(live) = scales {
            callbacks = callbacks.with_live_scales(&live.0);
        }
        if let Some(live) = prompts {
            callbacks = callbacks.with_live_prompts(&live.0);
        }
        callbacks
    }
}

/// The library's callbacks of a request; none where the pointer is null.
///
/// # Errors
/// [`Failure::Argument`].
///
/// # Safety
/// As of [`Functions::read`] and [`Functions::callbacks`].
pub(crate) unsafe fn callbacks<'a>(given: *const braid_callbacks) -> Outcome<Callbacks<'a>> {
    // SAFETY: as the caller promises.
    unsafe { Ok(Functions::read(given)?.map_or_else(Callbacks::new, |functions| functions.callbacks())) }
}

/// The time so many milliseconds from now; none where they are negative, or where no clock reaches it.
pub(crate) fn deadline(after_ms: i64) -> Option<Instant> {
    u64::try_from(after_ms).ok().and_then(|after| Instant::now().checked_add(Duration::from_millis(after)))
}

/// Runs a caller's function, in which [`is_inside`] holds.
pub(crate) fn inside<T>(call: impl FnOnce() -> T) -> T {
    INSIDE.with(|inside| inside.set(inside.get() + 1));
    // It cannot unwind: what a function throws ends the process.
    let result = call();
    INSIDE.with(|inside| inside.set(inside.get() - 1));
    result
}
