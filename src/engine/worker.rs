//! The thread that draws, and what it shares with those that submit.

use super::options::{EngineOptions, SubmitOptions};
use super::queue::Queue;
use super::state::TicketState;
use crate::error::{Error, Result};
use crate::pipeline::{Callbacks, FinishedImage, InOrder, Jobs, Output, Pipeline, Preview, Progress, Request, up_to};
use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

/// A way to draw requests; [`Pipeline`]'s, or that of a test.
pub(super) trait Runner: Send + Sync + 'static {
    /// Draws requests until `jobs` has none and all are done. `jobs` is asked again whenever there is room; `done` takes each result with
    /// the number of its job.
    fn run(&self, jobs: &mut dyn Jobs<'static>, done: &mut dyn FnMut(usize, Result<Output>));
}

impl Runner for Pipeline {
    fn run(&self, jobs: &mut dyn Jobs<'static>, done: &mut dyn FnMut(usize, Result<Output>)) {
        self.generate_jobs(jobs, done);
    }
}

/// A submitted request with everything that draws it.
pub(super) struct Job {
    pub(super) state: Arc<TicketState>,
    request: Arc<Request>,
    options: Mutex<SubmitOptions>,
    /// The message of a callback's panic.
    panicked: Mutex<Option<String>>,
}

/// The requests of a run, taken from the queue one by one.
struct Taken<'s> {
    shared: &'s Shared,
    /// Those under way, by their numbers.
    under_way: &'s RefCell<BTreeMap<usize, Arc<Job>>>,
    count: usize,
}

impl Jobs<'static> for Taken<'_> {
    fn next(&mut self) -> Option<(usize, Request, Callbacks<'static>)> {
        let job = self.shared.take()?;
        let number = self.count;
        self.count += 1;
        self.under_way.borrow_mut().insert(number, job.clone());
        Some((number, Request::clone(&job.request), job.callbacks()))
    }

    fn to_come(&mut self, images: usize) -> Vec<Arc<Request>> {
        self.shared.to_come(images)
    }
}

/// The part of an engine that its worker and its tickets share.
pub(super) struct Shared {
    options: EngineOptions,
    /// The thread that draws, once it does.
    worker: OnceLock<ThreadId>,
    inner: Mutex<Inner>,
    /// Told of every new request, and of the end.
    submitted: Condvar,
}

struct Inner {
    queue: Queue<Arc<Job>>,
    running: Vec<Arc<Job>>,
    next_id: u64,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

impl Job {
    /// Calls a callback; its panic stops the request.
    fn call(&self, callback: impl FnOnce(&mut SubmitOptions)) {
        if lock(&self.panicked).is_some() {
            return;
        }
        let mut options = lock(&self.options);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| callback(&mut options))) {
            *lock(&self.panicked) = Some(message(&*panic));
            self.state.cancel.cancel();
        }
    }

    fn callbacks(self: Arc<Self>) -> Callbacks<'static> {
        let cancel = self.state.cancel.clone();
        let options = lock(&self.options);
        let (every, takes) = (options.on_preview.as_ref().map(|(every, _)| *every), options.on_image.is_some());
        drop(options);
        let job = self.clone();
        let callbacks = Callbacks::new().with_cancel(&cancel).with_live_scales(&self.state.live_scales);
        let callbacks = callbacks.with_live_prompts(&self.state.live_prompts);
        let mut callbacks = callbacks.with_progress(move |progress: Progress| {
            job.state.advance(Some(progress));
            job.call(|options| options.on_progress.iter_mut().for_each(|call| call(progress)));
        });
        if takes {
            let job = self.clone();
            callbacks = callbacks.with_image(move |image: FinishedImage<'_>| {
                job.call(|options| options.on_image.iter_mut().for_each(|take| take(image)));
            });
        }
        let Some(every) = every else { return callbacks };
        callbacks.with_preview(every, move |preview: Preview| {
            self.call(|options| {
                if let Some((_, show)) = &mut options.on_preview {
                    show(preview);
                }
            });
        })
    }
}

impl Shared {
    pub(super) fn new(options: EngineOptions) -> Self {
        let inner = Inner { queue: Queue::new(options.aging), running: Vec::new(), next_id: 0, closed: false };
        Self { options, worker: OnceLock::new(), inner: Mutex::new(inner), submitted: Condvar::new() }
    }

    /// Puts a request into the queue.
    pub(super) fn submit(&self, request: Request, options: SubmitOptions) -> Result<Arc<TicketState>> {
        request.check()?;
        let now = Instant::now();
        if options.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Error::Late);
        }
        self.refuse_late(now);
        let mut inner = lock(&self.inner);
        if inner.closed {
            return Err(Error::Stopped);
        }
        let waiting = inner.queue.len();
        if waiting >= self.options.max_waiting {
            return Err(Error::Busy { waiting });
        }
        let (id, rank) = (inner.next_id, (options.priority, options.deadline));
        inner.next_id += 1;
        let state = Arc::new(TicketState::new(id, options.deadline));
        let request = Arc::new(request);
        let job = Job { state: state.clone(), request, options: Mutex::new(options), panicked: Mutex::new(None) };
        inner.queue.push(id, rank, now, Arc::new(job));
        drop(inner);
        self.submitted.notify_all();
        Ok(state)
    }

    /// Whether the calling thread is the one that draws, as in callbacks.
    pub(super) fn is_worker(&self) -> bool {
        self.worker.get() == Some(&thread::current().id())
    }

    pub(super) fn waiting(&self) -> usize {
        lock(&self.inner).queue.len()
    }

    pub(super) fn running(&self) -> usize {
        lock(&self.inner).running.len()
    }

    pub(super) fn ahead(&self, id: u64) -> Option<usize> {
        lock(&self.inner).queue.ahead(id, Instant::now())
    }

    /// Takes a request out of the queue, and says whether it was there.
    pub(super) fn remove(&self, id: u64) -> bool {
        lock(&self.inner).queue.remove(id).is_some()
    }

    /// Refuses waiting requests whose deadline is past.
    pub(super) fn refuse_late(&self, now: Instant) {
        let late = lock(&self.inner).queue.take_late(now);
        late.iter().for_each(|job| job.state.finish(Err(Error::Late)));
    }

    /// Takes no more requests.
    pub(super) fn close(&self) {
        lock(&self.inner).closed = true;
        self.submitted.notify_all();
    }

    /// Ends all that wait, and stops all that run.
    pub(super) fn cancel_all(&self) {
        let mut inner = lock(&self.inner);
        let waiting = inner.queue.take_all();
        inner.running.iter().for_each(|job| job.state.cancel.cancel());
        drop(inner);
        waiting.iter().for_each(|job| job.state.finish(Err(Error::Stopped)));
    }

    /// Draws until the engine is closed and nothing waits.
    pub(super) fn work(&self, runner: &dyn Runner) {
        // There is one such thread.
        let _ = self.worker.set(thread::current().id());
        while self.wait_for_requests() {
            // Those under way: a run goes on for as long as requests come.
            let under_way = RefCell::new(BTreeMap::new());
            let mut jobs = Taken { shared: self, under_way: &under_way, count: 0 };
            let mut done = |number: usize, result| {
                let job = under_way.borrow_mut().remove(&number);
                if let Some(job) = job {
                    self.finish(&job, result);
                }
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| runner.run(&mut jobs, &mut done)));
            let left = lock(&self.inner).running.clone();
            match outcome {
                // Which of them was at fault, or one that waits, shows when each runs alone.
                Err(_) => left.iter().for_each(|job| self.run_alone(runner, job)),
                Ok(()) => left.iter().for_each(|job| self.finish(job, Err(Error::Panicked("no result".into())))),
            }
        }
    }

    fn run_alone(&self, runner: &dyn Runner, job: &Arc<Job>) {
        let mut jobs = InOrder::new([(Request::clone(&job.request), job.clone().callbacks())]);
        let mut done = |_: usize, result| self.finish(job, result);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| runner.run(&mut jobs, &mut done))) {
            self.finish(job, Err(Error::Panicked(message(&*panic))));
        }
    }

    /// Waits for a request, and for others to begin with it; `false` once the engine is closed and nothing waits.
    fn wait_for_requests(&self) -> bool {
        let mut inner = lock(&self.inner);
        while inner.queue.len() == 0 {
            if inner.closed {
                return false;
            }
            inner = self.submitted.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        let end = Instant::now() + self.options.gather;
        while !inner.closed && inner.queue.len() < self.options.max_running {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inner = self.submitted.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Takes the request that is next, where there is room for one more.
    pub(super) fn take(&self) -> Option<Arc<Job>> {
        self.refuse_late(Instant::now());
        let mut inner = lock(&self.inner);
        if inner.running.len() >= self.options.max_running {
            return None;
        }
        let job = inner.queue.pop(Instant::now())?;
        inner.running.push(job.clone());
        drop(inner);
        job.state.advance(None);
        Some(job)
    }

    /// The requests that would be taken next now, up to so many images.
    pub(super) fn to_come(&self, images: usize) -> Vec<Arc<Request>> {
        self.refuse_late(Instant::now());
        let inner = lock(&self.inner);
        let room = self.options.max_running.saturating_sub(inner.running.len());
        up_to(images, inner.queue.in_order(Instant::now()).map(|job| &job.request).take(room))
    }

    /// Gives a request's result to its ticket.
    pub(super) fn finish(&self, job: &Arc<Job>, result: Result<Output>) {
        lock(&self.inner).running.retain(|other| !Arc::ptr_eq(other, job));
        let result = match lock(&job.panicked).take() {
            Some(what) => Err(Error::Panicked(what)),
            None => result,
        };
        job.state.finish(result);
    }
}
