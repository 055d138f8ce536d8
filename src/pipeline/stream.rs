//! Image to image from frames that follow one another.

use super::Pipeline;
use super::batch::{Batch, Left};
use super::cache_access::Run;
use super::callbacks::Callbacks;
use super::compile::Executables;
use super::fair_mutex::Wait;
use super::generate::with_cause;
use super::jobs::Jobs;
use super::live_prompts::{LivePrompts, PreparedPrompts};
use super::live_scales::LiveScales;
use super::request::{Output, Request};
use crate::error::{Error, Field, Message, Result};
use crate::inputs::image::Image;
use crate::setters::setters;
use std::collections::BTreeMap;
use std::iter::Fuse;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A frame that has been drawn.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Frame {
    /// Its number in the stream, from 0.
    pub number: u64,
    /// The result of its request, with one image.
    pub output: Output,
    /// The request that gives the same bytes alone: the image to begin with, the seed, prompts and scales as they were.
    pub request: Request,
    /// The time from when the stream took the image to begin with until the image was there.
    pub latency: Duration,
}

impl Frame {
    /// The image that was drawn.
    pub fn image(&self) -> &Image {
        &self.output.images[0]
    }
}

/// Draws each image of an iterator by a session's request, as image to image, in their order: an iterator of [`Frame`]s.
///
/// It does its work when the next frame is asked for, and takes an image only when there is room for it, so that a slow reader slows the
/// source down. An error is that of one frame ([`Error::Frame`]), and the next one is drawn. Between two frames, the pipeline is free for
/// other requests.
///
/// ```no_run
/// # fn camera() -> impl Iterator<Item = braid::Image> { std::iter::empty() }
/// # fn f(pipeline: &braid::Pipeline, first: braid::Image) -> braid::Result<()> {
/// let request = braid::Request::new("a garden at dawn").with_init_image(first).with_strength(0.5).with_steps(4);
/// let session = pipeline.session(&request.with_guidance_scale(1.0))?;
/// for frame in session.stream(camera())? {
///     let frame = frame?;
///     println!("{} after {:?}", frame.number, frame.latency);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Stream<'p, I> {
    pipeline: &'p Pipeline,
    /// The request without its image.
    request: Request,
    /// Width and height of the frames.
    size: [usize; 2],
    images: Fuse<I>,
    seed_per_frame: bool,
    overlap: bool,
    live_scales: Option<LiveScales>,
    live_prompts: Option<LivePrompts>,
    /// Those of the last frame, which the next one finds encoded.
    prompts: Option<PreparedPrompts>,
    batch: Batch<'static>,
    /// The frames under way, by number, with the time when they were taken.
    under_way: BTreeMap<usize, Instant>,
    /// The frame under way that came when the pipeline could not be used.
    waiting: Option<(usize, Box<Request>)>,
    /// The most frames under way.
    most: usize,
    /// The frames that are done and wait for earlier ones.
    done: BTreeMap<usize, Result<Frame>>,
    /// The frames that were taken, and those that were given.
    taken: usize,
    given: usize,
}

/// An attempt to take the next frame.
enum Taken {
    Frame(usize, Box<Request>),
    /// It cannot be drawn.
    Refused,
    /// There is none, or no room for it.
    Nothing,
}

impl<'p, I: Iterator<Item = Image>> Stream<'p, I> {
    /// Frames by a request that is held.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a request without an image to begin with, or of several images.
    pub(crate) fn new(pipeline: &'p Pipeline, request: &Request, images: I) -> Result<Self> {
        let mut request = request.clone();
        let Some(image) = request.init_image.take() else {
            let what = "a stream draws images from images; give the session's request one of the frames' size";
            return Err(Error::parameter(Field::InitImage, what));
        };
        if request.num_images != 1 {
            let what = format!("{} given; a frame is one image", request.num_images);
            return Err(Error::parameter(Field::NumImages, what));
        }
        Ok(Self {
            pipeline,
            request,
            size: [image.width(), image.height()],
            images: images.fuse(),
            seed_per_frame: false,
            overlap: false,
            live_scales: None,
            live_prompts: None,
            prompts: None,
            batch: Batch::default(),
            under_way: BTreeMap::new(),
            waiting: None,
            most: 1,
            done: BTreeMap::new(),
            taken: 0,
            given: 0,
        })
    }

    setters! {
        /// Sets whether frame i has the request's seed + i, and so noise of its own; by default all have the same.
        with_seed_per_frame(seed_per_frame: bool);
        /// Sets whether frames share evaluations, each a step behind the one before: as many are under way as a frame has steps, or as may
        /// share an evaluation ([`crate::PipelineOptions::max_batch`]). Frames come more often then, and each later; the bytes are the same.
        /// Kodaira et al. 2023, "StreamDiffusion: A Pipeline-level Solution for Real-time Interactive Generation", section 3.1.
        with_overlap(overlap: bool);
        /// Takes the scales of image prompts that are set by `live`, each frame those that are set when it begins.
        with_live_scales(live_scales: &LiveScales => Some(live_scales.clone()));
        /// Takes the prompts and references that are set by `live`, each frame those that are set when it begins. Prepared by
        /// [`crate::Session::prepare_prompts`] they cost the frame nothing.
        with_live_prompts(live_prompts: &LivePrompts => Some(live_prompts.clone()));
    }

    /// Takes the next frame where there is room for it. The image is asked for while the pipeline is free.
    fn take(&mut self) -> Taken {
        if let Some((number, request)) = self.waiting.take() {
            return Taken::Frame(number, request);
        }
        if self.under_way.len() >= self.most {
            return Taken::Nothing;
        }
        let Some(image) = self.images.next() else { return Taken::Nothing };
        let (number, begin) = (self.taken, Instant::now());
        self.taken += 1;
        match self.request_of(number as u64, image) {
            Ok(request) => {
                self.under_way.insert(number, begin);
                Taken::Frame(number, Box::new(request))
            }
            Err(error) => {
                self.done.insert(number, Err(of_frame(number, error)));
                Taken::Refused
            }
        }
    }

    /// The request of a frame, as prompts and scales are now.
    fn request_of(&mut self, number: u64, image: Image) -> Result<Request> {
        let ([width, height], [w, h]) = (self.size, [image.width(), image.height()]);
        if [w, h] != self.size {
            let what = Message::from(format!("{w}x{h} in a stream of {width}x{height}, which is the size of the "));
            return Err(Error::parameter(
                Field::InitImage,
                what.field(Field::InitImage).text(" of its session; resize it"),
            ));
        }
        if let Some(live) = &self.live_prompts {
            self.prompts = live.after(0).0;
        }
        let mut request = match &self.prompts {
            Some(prompts) => self.request.with_prompts(prompts.prompts())?,
            None => self.request.clone(),
        };
        for (adapter, scales) in self.live_scales.iter().flat_map(|live| live.after(0).0) {
            let prompt = request.image_prompts.get_mut(adapter).filter(|prompt| !prompt.references.is_empty());
            let Some(prompt) = prompt else {
                let what = format!("the stream has no image prompt for adapter {adapter}, whose scales were to change");
                return Err(Error::parameter(Field::ScaleChanges, what));
            };
            prompt.scales = scales;
        }
        if self.seed_per_frame {
            request.seed = request.seed.wrapping_add(number);
        }
        request.init_image = Some(image);
        Ok(request)
    }

    /// Makes steps of the frames under way, one of which may have just been taken, until there is room for another.
    fn work(&mut self, run: &Run<'p>, frame: Option<(usize, Box<Request>)>) {
        let pipeline = self.pipeline;
        let mut cache = run.lock();
        let mut frame = WaitingFrame(frame);
        let mut joins = frame.0.is_some();
        loop {
            let compiler = pipeline.compiler();
            let executables =
                &mut Executables { compiler, cache: &mut cache, joins: self.overlap, under_way: Vec::new() };
            let worked = self.batch.advance(executables, pipeline.encoders, &mut frame);
            if self.overlap {
                self.most = self.batch.most_staggered(executables).unwrap_or(self.most);
            }
            self.batch.take_left().into_iter().for_each(|left| self.leave(left));
            // Each frame that joins makes a step before the next one does.
            let joined = std::mem::replace(&mut joins, frame.0.is_some());
            if !worked || !joined && self.under_way.len() < self.most {
                return;
            }
            if self.batch.outlasts() {
                drop(cache);
                cache = run.lock();
            }
        }
    }

    /// Takes a frame's result out of the batch.
    fn leave(&mut self, left: Left<'static>) {
        let Left { ticket: number, result, job } = left;
        let latency = self.under_way.remove(&number).map(|begin| begin.elapsed()).unwrap_or_default();
        let frame = match result {
            Ok(output) => Ok(Frame { number: number as u64, output, request: job.request, latency }),
            Err(error) => Err(of_frame(number, with_cause(&self.pipeline.models, &job.callbacks.cancel, error))),
        };
        self.done.insert(number, frame);
    }
}

/// A frame that is to begin, until it is taken.
struct WaitingFrame(Option<(usize, Box<Request>)>);

impl Jobs<'static> for WaitingFrame {
    fn next(&mut self) -> Option<(usize, Request, Callbacks<'static>)> {
        self.0.take().map(|(number, request)| (number, *request, Callbacks::new()))
    }

    fn to_come(&mut self, _images: usize) -> Vec<Arc<Request>> {
        Vec::new()
    }
}

fn of_frame(number: usize, error: Error) -> Error {
    Error::Frame { number: number as u64, error: Box::new(error) }
}

impl<I: Iterator<Item = Image>> Iterator for Stream<'_, I> {
    type Item = Result<Frame>;

    /// The next frame; [`Error::Frame`] where it cannot be drawn. [`Error::InCallback`] in a callback of the pipeline, and
    /// [`Error::Cancelled`] by [`crate::CancelToken::scope`] while others use it: no frame is lost then.
    fn next(&mut self) -> Option<Result<Frame>> {
        loop {
            if let Some(frame) = self.done.remove(&self.given) {
                self.given += 1;
                return Some(frame);
            }
            let frame = match self.take() {
                Taken::Frame(number, request) => Some((number, request)),
                Taken::Refused => continue,
                Taken::Nothing if self.under_way.is_empty() => return None,
                Taken::Nothing => None,
            };
            match self.pipeline.cache.run(Wait::Long) {
                Ok(run) => self.work(&run, frame),
                Err(error) => {
                    self.waiting = frame;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl<I> std::fmt::Debug for Stream<'_, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({} frames taken, {} given)", self.taken, self.given)
    }
}
