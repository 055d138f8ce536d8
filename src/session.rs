//! Requests that are drawn again from one prepared conditioning.

use crate::error::Result;
use crate::inputs::image::Image;
use crate::pipeline::{Callbacks, Held, Output, Pipeline, PreparedPrompts, Prompts, Request, Stream};
use std::ops::Deref;
use std::sync::Arc;

/// A request's prompts, references and sizes as the model takes them, held to be drawn again: with another seed, other scales, steps or
/// guidance an image costs its steps and its decoding.
///
/// `P` is `&Pipeline` or `Arc<Pipeline>`. The pipeline is free between two images, and any request to it, an [`crate::Engine`]'s too, finds
/// what a session holds, whatever [`crate::PipelineOptions::max_cache_bytes`] says. The text's keys and values, the largest part, take
/// 102 MB in the published model for a guided prompt of 77 tokens, on a GPU in its own memory.
///
/// ```no_run
/// # fn main() -> braid::Result<()> {
/// # let pipeline = braid::Pipeline::load(&braid::PipelineOptions::new("sdxl.safetensors"))?;
/// let session = pipeline.session(&braid::Request::new("a garden at dawn"))?;
/// for seed in 0..4 {
///     let request = session.request().clone().with_seed(seed);
///     session.generate(&request)?.images[0].save(format!("{seed}.png"))?;
/// }
/// # Ok(())
/// # }
/// ```
pub struct Session<P> {
    pipeline: P,
    request: Request,
    held: Held,
}

impl Pipeline {
    /// Prepares a request whose image is to be drawn more than once: compiles what it runs, and runs its stages up to the conditioning.
    ///
    /// # Errors
    /// As [`Pipeline::generate_with`].
    pub fn session(&self, request: &Request) -> Result<Session<&Self>> {
        Session::new(self, request)
    }
}

impl<P: Deref<Target = Pipeline>> Session<P> {
    /// As [`Pipeline::session`], with a pipeline that the session owns or shares.
    ///
    /// # Errors
    /// As [`Pipeline::generate_with`].
    pub fn new(pipeline: P, request: &Request) -> Result<Self> {
        let held = pipeline.hold(request)?;
        Ok(Self { pipeline, request: request.clone(), held })
    }

    /// The request that was prepared.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Generates the images of a request, the same as [`Pipeline::generate`] does. It is meant to be [`Session::request`] with other values
    /// of what costs nothing: seed, number of images, scales, start and end of an adapter, masks, guidance above 1. Other steps or another
    /// scheduler cost the embeddings of their timesteps; whatever else differs is computed as for a request of its own.
    ///
    /// # Errors
    /// As [`Pipeline::generate_with`].
    pub fn generate(&self, request: &Request) -> Result<Output> {
        self.pipeline.generate(request)
    }

    /// The same with callbacks.
    ///
    /// # Errors
    /// As [`Pipeline::generate_with`].
    pub fn generate_with(&self, request: &Request, callbacks: Callbacks<'_>) -> Result<Output> {
        self.pipeline.generate_with(request, callbacks)
    }

    /// Draws each image of an iterator by the request, whose [`Request::init_image`] is one of their size: image to image, frame by frame.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a request without an image to begin with, or of several images.
    pub fn stream<I: IntoIterator<Item = Image>>(&self, images: I) -> Result<Stream<'_, I::IntoIter>> {
        Stream::new(&self.pipeline, &self.request, images.into_iter())
    }

    /// Encodes prompts and references that are to take the place of the request's own; see [`Pipeline::prepare_prompts`].
    ///
    /// # Errors
    /// As [`Pipeline::prepare_prompts`].
    pub fn prepare_prompts(&self, prompts: impl Into<Arc<Prompts>>) -> Result<PreparedPrompts> {
        self.pipeline.prepare_prompts(&self.request, prompts)
    }
}

impl<P> std::fmt::Debug for Session<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?}, {} values)", self.request.prompt, self.held.len())
    }
}
