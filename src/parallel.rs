//! Work on large buffers that a few threads share for a moment. The CPU's operations have a pool of their own.

use crate::cancel;
use std::cell::Cell;
use std::marker::PhantomData;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

thread_local! {
    static LIMIT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The time in which the calling thread's [`for_each`] takes no more than so many threads.
pub(crate) struct Limit {
    before: Option<usize>,
    /// It is the thread's.
    _here: PhantomData<*const ()>,
}

/// Limits the threads of [`for_each`], the calling one among them, until the result is dropped; one for each core where absent.
pub(crate) fn limit(threads: Option<usize>) -> Limit {
    Limit { before: LIMIT.replace(threads), _here: PhantomData }
}

impl Drop for Limit {
    fn drop(&mut self) {
        LIMIT.set(self.before);
    }
}

/// Calls `task` once for every item, on `most` threads at most, the calling one among them. Those that cannot be started are done without.
/// Tasks stop by the tokens that stop the calling thread.
pub fn for_each<I>(most: usize, items: I, task: impl Fn(I::Item) + Sync)
where
    I: ExactSizeIterator + Send,
    I::Item: Send,
{
    let limit = LIMIT.get().unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get));
    let (threads, scopes) = (limit.min(most).min(items.len()), cancel::scopes());
    let items = Mutex::new(items);
    let work = || {
        loop {
            // In a statement of its own, so that it is unlocked while the task runs.
            let next = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = next else { return };
            task(item);
        }
    };
    let beside = || cancel::within(scopes.clone(), work);
    thread::scope(|scope| {
        for started in 1..threads {
            if let Err(error) = thread::Builder::new().name("braid-copy".into()).spawn_scoped(scope, beside) {
                // Once: it is so each time.
                static TOLD: AtomicBool = AtomicBool::new(false);
                if !TOLD.swap(true, Ordering::Relaxed) {
                    tell_of_fewer(started, threads, &error);
                }
                break;
            }
        }
        work();
    });
}

/// Warns that the system has started no more than so many of the threads that were asked for.
pub(crate) fn tell_of_fewer(started: usize, asked: usize, error: &std::io::Error) {
    tracing::warn!(
        "only {started} of {asked} threads could be started, which do the work of all: {error}; the system limits the number of tasks \
         (`ulimit -u`, a container's pids), or set fewer threads"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::CancelToken;
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::thread::ThreadId;

    /// The threads of work of so many items, each of which waits until all threads are there.
    fn threads(most: usize, items: usize, expected: usize) -> HashSet<ThreadId> {
        let (all, seen) = (Barrier::new(expected), Mutex::new(HashSet::new()));
        for_each(most, 0..items, |_| {
            if seen.lock().unwrap().insert(thread::current().id()) {
                all.wait();
            }
        });
        seen.into_inner().unwrap()
    }

    #[test]
    fn number_of_threads() {
        let _outer = limit(Some(3));
        assert_eq!(threads(100, 50, 3).len(), 3);
        assert_eq!(threads(2, 50, 2).len(), 2);
        assert_eq!(threads(100, 1, 1), HashSet::from([thread::current().id()]));
        {
            let _inner = limit(Some(1));
            assert_eq!(threads(100, 50, 1), HashSet::from([thread::current().id()]));
        }
        assert_eq!(threads(0, 50, 1).len(), 1);
        assert_eq!(threads(100, 50, 3).len(), 3);
    }

    #[test]
    fn every_item_once() {
        let mut values = vec![0; 10_000];
        let _limit = limit(Some(4));
        for_each(usize::MAX, values.chunks_mut(7).enumerate(), |(i, part)| part.iter_mut().for_each(|v| *v += i));
        assert!(values.iter().enumerate().all(|(at, v)| *v == at / 7));
        let (token, stopped) = (CancelToken::new(), Mutex::new(0));
        token.cancel();
        token.scope(|| for_each(4, 0..100, |_| *stopped.lock().unwrap() += usize::from(cancel::is_cancelled())));
        assert_eq!(stopped.into_inner().unwrap(), 100);
    }
}
