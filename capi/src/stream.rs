//! Streams: image to image from frames that follow one another.

use crate::callbacks::{demand_outside, inside};
use crate::edge::{LastError, Outcome};
use crate::image::braid_image;
use crate::output::braid_output;
use crate::params::read;
use crate::pointers::{borrow, free, give, null, store, switch};
use crate::session::{Shared, braid_session};
use crate::status::{BRAID_OK, braid_status};
use crate::structs::braid_stream_options;
use braid::{Frame, Image, Stream};
use std::ffi::{c_char, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

/// See braid.h.
pub type braid_image_source_fn = Option<unsafe extern "C" fn(*mut c_void) -> *mut braid_image>;

/// The images of a stream, which a function of the caller gives.
struct Source {
    function: unsafe extern "C" fn(*mut c_void) -> *mut braid_image,
    user_data: *mut c_void,
}

// SAFETY: braid.h says that the function is called on the threads that call braid_stream_next, by one at a time.
unsafe impl Send for Source {}

impl Iterator for Source {
    type Item = Image;

    fn next(&mut self) -> Option<Image> {
        // SAFETY: the function and its data are as braid.h asks for.
        let image = inside(|| unsafe { (self.function)(self.user_data) });
        // SAFETY: braid.h says that an image which it returns is the library's.
        (!image.is_null()).then(|| unsafe { Box::from_raw(image) }.0)
    }
}

/// A stream, which is at one frame at a time.
pub struct braid_stream {
    /// It borrows from the session, and is dropped before it.
    inner: Mutex<Stream<'static, Source>>,
    _session: Arc<Shared>,
    error: LastError,
}

/// A frame that was drawn.
pub struct braid_frame(Frame);

/// Handles may be shared between threads.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<braid_session>();
    is_shared::<braid_stream>();
};

/// A stream of a session's request with its settings.
///
/// # Errors
/// Those of [`braid::Session::stream`]; [`crate::edge::Failure::Argument`].
///
/// # Safety
/// `options` is null or as braid.h asks for.
unsafe fn new_stream(
    session: Arc<Shared>,
    source: Source,
    options: *const braid_stream_options,
) -> Outcome<braid_stream> {
    // SAFETY: `_session` keeps it where it is for longer than the stream.
    let borrowed: &'static Shared = unsafe { &*Arc::as_ptr(&session) };
    let mut inner = borrowed.stream(source)?;
    if !options.is_null() {
        // SAFETY: as the caller promises.
        let given = unsafe { read(options, "options") }?;
        inner = inner.with_seed_per_frame(switch(given.seed_per_frame, "options.seed_per_frame")?);
        inner = inner.with_overlap(switch(given.overlap, "options.overlap")?);
        // SAFETY: as the caller promises.
        let (scales, prompts) = unsafe { (given.live_scales.as_ref(), given.live_prompts.as_ref()) };
        if let Some(live) = scales {
            inner = inner.with_live_scales(&live.0);
        }
        if let Some(live) = prompts {
            inner = inner.with_live_prompts(&live.0);
        }
    }
    Ok(braid_stream { inner: Mutex::new(inner), _session: session, error: LastError::default() })
}

export! {
    fn braid_session_stream(
        session: *const braid_session,
        source: braid_image_source_fn,
        user_data: *mut c_void,
        options: *const braid_stream_options,
        stream: *mut *mut braid_stream,
    ) -> braid_status {
        give(stream, "stream", || {
            let session = borrow(session, "session")?;
            session.error.note(|| {
                let function = source.ok_or_else(|| null("source"))?;
                new_stream(session.inner.clone(), Source { function, user_data }, options)
            })
        })
    }

    fn braid_stream_next(stream: *const braid_stream, frame: *mut *mut braid_frame) -> braid_status {
        store(frame, null_mut(), "frame")?;
        let stream = borrow(stream, "stream")?;
        stream.error.note(|| {
            demand_outside("braid_stream_next")?;
            match stream.inner.lock().unwrap_or_else(PoisonError::into_inner).next() {
                Some(next) => store(frame, Box::into_raw(Box::new(braid_frame(next?))), "frame"),
                None => Ok(BRAID_OK),
            }
        })
    }

    fn braid_stream_last_error(stream: *const braid_stream, buffer: *mut c_char, size: usize) -> usize {
        borrow(stream, "stream")?.error.copy(buffer, size)
    }

    fn braid_stream_free(stream: *mut braid_stream) {
        // Its own source may be what this is called from.
        demand_outside("braid_stream_free")?;
        free(stream);
        Ok(())
    }

    fn braid_frame_number(frame: *const braid_frame) -> u64 {
        Ok(borrow(frame, "frame")?.0.number)
    }

    fn braid_frame_latency(frame: *const braid_frame) -> f64 {
        Ok(borrow(frame, "frame")?.0.latency.as_secs_f64())
    }

    fn braid_frame_output(frame: *const braid_frame) -> *const braid_output {
        Ok(braid_output::of(&borrow(frame, "frame")?.0.output))
    }

    fn braid_frame_free(frame: *mut braid_frame) {
        free(frame);
        Ok(())
    }
}
