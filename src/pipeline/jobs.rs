//! The requests of a run, in the order in which they begin.

use super::callbacks::Callbacks;
use super::request::Request;
use std::collections::VecDeque;
use std::sync::Arc;

/// Requests that are taken one by one, with a look at those that wait.
pub(crate) trait Jobs<'a> {
    /// Takes the next request, which begins now, with the number by which its result is told.
    fn next(&mut self) -> Option<(usize, Request, Callbacks<'a>)>;

    /// The requests that would be taken next, were they asked for now, up to so many images. They stay where they are: others may come
    /// before them, and some may be stopped.
    fn to_come(&mut self, images: usize) -> Vec<Arc<Request>>;
}

/// Requests in an order that is given, by their numbers there.
pub(crate) struct InOrder<'a, I> {
    jobs: I,
    /// Those that were looked at.
    waiting: VecDeque<(Arc<Request>, Callbacks<'a>)>,
    taken: usize,
}

impl<'a, I: Iterator<Item = (Request, Callbacks<'a>)>> InOrder<'a, I> {
    pub(crate) fn new(jobs: impl IntoIterator<IntoIter = I>) -> Self {
        Self { jobs: jobs.into_iter(), waiting: VecDeque::new(), taken: 0 }
    }
}

impl<'a, I: Iterator<Item = (Request, Callbacks<'a>)>> Jobs<'a> for InOrder<'a, I> {
    fn next(&mut self) -> Option<(usize, Request, Callbacks<'a>)> {
        let looked_at = self.waiting.pop_front().map(|(request, callbacks)| (Arc::unwrap_or_clone(request), callbacks));
        let (request, callbacks) = looked_at.or_else(|| self.jobs.next())?;
        self.taken += 1;
        Some((self.taken - 1, request, callbacks))
    }

    fn to_come(&mut self, images: usize) -> Vec<Arc<Request>> {
        let mut known: usize = self.waiting.iter().map(|(request, _)| request.num_images).sum();
        while known < images
            && let Some((request, callbacks)) = self.jobs.next()
        {
            known += request.num_images;
            self.waiting.push_back((Arc::new(request), callbacks));
        }
        let begin = self.waiting.iter().filter(|(_, callbacks)| callbacks.may_begin());
        up_to(images, begin.map(|(request, _)| request))
    }
}

/// The first of some requests, up to so many images.
pub(crate) fn up_to<'r>(images: usize, requests: impl Iterator<Item = &'r Arc<Request>>) -> Vec<Arc<Request>> {
    let mut known = 0;
    let fits = |request: &&Arc<Request>| {
        let before = known;
        known += request.num_images;
        before < images
    };
    requests.take_while(fits).cloned().collect()
}
