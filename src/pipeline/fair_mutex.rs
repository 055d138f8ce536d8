//! A mutex that those who wait for it get in the order in which they came, and that one need not wait for.

use crate::cancel;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// The time between two looks of a thread that waits whether it is cancelled.
const LOOK: Duration = Duration::from_millis(10);

/// A mutex whose holder may give it up and take it again, and another thread that waited has had it in between, which std's does not
/// promise.
#[derive(Debug, Default)]
pub(super) struct FairMutex<T> {
    queue: Queue,
    value: Mutex<T>,
}

/// The longest time that a thread waits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    /// None: [`Error::Busy`].
    Never,
    /// Until then: [`Error::Late`].
    Until(Instant),
    /// As long as it takes.
    Long,
}

/// The value while it is held.
pub(super) struct FairGuard<'a, T> {
    // Given up first.
    value: MutexGuard<'a, T>,
    _turn: Holding<'a>,
    /// Whether a thread has panicked with it since it was held last.
    pub(super) poisoned: bool,
}

#[derive(Debug, Default)]
struct Queue {
    threads: Mutex<Threads>,
    /// Told of every turn that ends, and of every thread that waits no longer.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Threads {
    holder: Option<ThreadId>,
    /// Those that wait, by the numbers of their turns, first come first.
    waiting: VecDeque<u64>,
    next: u64,
}

struct Holding<'a>(&'a Queue);

impl<T> FairMutex<T> {
    pub(super) fn new(value: T) -> Self {
        Self { queue: Queue::default(), value: Mutex::new(value) }
    }

    /// Waits for the value, whatever happens. The thread must not have it.
    pub(super) fn lock(&self) -> FairGuard<'_, T> {
        let Ok(turn) = self.queue.wait(|_| Ok::<_, Infallible>(Duration::MAX));
        self.guard(turn)
    }

    /// Waits for the value so long at most, and no longer than until the thread is to stop ([`crate::CancelToken::scope`]).
    ///
    /// # Errors
    /// [`Error::InCallback`] where the thread has it; [`Error::Busy`]; [`Error::Late`]; [`Error::Cancelled`].
    pub(super) fn lock_within(&self, wait: Wait) -> Result<FairGuard<'_, T>> {
        let own = thread::current().id();
        let turn = self.queue.wait(|threads| {
            if threads.holder == Some(own) {
                return Err(Error::InCallback);
            }
            cancel::check()?;
            match wait {
                Wait::Never => Err(Error::Busy { waiting: threads.waiting.len() - 1 }),
                Wait::Until(end) => match end.saturating_duration_since(Instant::now()) {
                    Duration::ZERO => Err(Error::Late),
                    left => Ok(left.min(LOOK)),
                },
                Wait::Long => Ok(LOOK),
            }
        })?;
        Ok(self.guard(turn))
    }

    /// Whether the calling thread has the value.
    pub(super) fn is_own(&self) -> bool {
        self.queue.threads().holder == Some(thread::current().id())
    }

    fn guard<'a>(&'a self, turn: Holding<'a>) -> FairGuard<'a, T> {
        let (value, poisoned) = match self.value.lock() {
            Ok(value) => (value, false),
            Err(error) => {
                self.value.clear_poison();
                (error.into_inner(), true)
            }
        };
        FairGuard { value, _turn: turn, poisoned }
    }
}

impl Queue {
    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn. As long as it is another thread's, `look` says how long to wait before it is asked again, or ends the waiting.
    fn wait<E>(&self, look: impl Fn(&Threads) -> Result<Duration, E>) -> Result<Holding<'_>, E> {
        let mut threads = self.threads();
        let number = threads.next;
        threads.next += 1;
        threads.waiting.push_back(number);
        loop {
            if threads.holder.is_none() && threads.waiting.front() == Some(&number) {
                threads.waiting.pop_front();
                threads.holder = Some(thread::current().id());
                return Ok(Holding(self));
            }
            match look(&threads) {
                Ok(time) => {
                    threads = self.changed.wait_timeout(threads, time).unwrap_or_else(PoisonError::into_inner).0
                }
                Err(error) => {
                    threads.waiting.retain(|other| *other != number);
                    self.changed.notify_all();
                    return Err(error);
                }
            }
        }
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.threads().holder = None;
        self.0.changed.notify_all();
    }
}

impl<T> Deref for FairGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for FairGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::CancelToken;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Waits until so many threads wait.
    fn until_waiting<T>(mutex: &FairMutex<T>, count: usize) {
        while mutex.queue.threads().waiting.len() != count {
            thread::yield_now();
        }
    }

    /// One who takes it again and again, each time at once, does not keep another one out.
    #[test]
    fn waiting_thread() {
        let (mutex, had) = (FairMutex::new(0), AtomicBool::new(false));
        let mut guard = mutex.lock();
        thread::scope(|scope| {
            scope.spawn(|| {
                *mutex.lock() += 1;
                had.store(true, Ordering::SeqCst);
            });
            until_waiting(&mutex, 1);
            drop(guard);
            guard = mutex.lock();
            assert_eq!(*guard, 1);
        });
        assert!(had.load(Ordering::SeqCst));
    }

    #[test]
    fn order_of_threads() {
        let mutex = FairMutex::new(Vec::new());
        let guard = mutex.lock();
        let cancel = CancelToken::new();
        thread::scope(|scope| {
            let mutex = &mutex;
            for i in 0..5 {
                let cancel = cancel.clone();
                scope.spawn(move || match i {
                    2 => assert!(matches!(
                        cancel.scope(|| mutex.lock_within(Wait::Long).map(drop)),
                        Err(Error::Cancelled)
                    )),
                    _ => mutex.lock_within(Wait::Long).unwrap().push(i),
                });
                until_waiting(mutex, i + 1);
            }
            cancel.cancel();
            until_waiting(mutex, 4);
            drop(guard);
        });
        assert_eq!(*mutex.lock(), [0, 1, 3, 4]);
    }

    /// Without waiting, for some time, for a thread that is to stop, for the thread's own value.
    #[test]
    fn ends_of_waiting() {
        let mutex = FairMutex::new(());
        let own = mutex.lock();
        assert!(mutex.is_own());
        assert!(matches!(mutex.lock_within(Wait::Never).map(drop), Err(Error::InCallback)));
        assert!(matches!(mutex.lock_within(Wait::Long).map(drop), Err(Error::InCallback)));
        thread::scope(|scope| {
            let waits = |wait| {
                scope.spawn({
                    let mutex = &mutex;
                    move || mutex.lock_within(wait).map(drop)
                })
            };
            assert!(matches!(waits(Wait::Never).join().unwrap(), Err(Error::Busy { waiting: 0 })));
            assert!(matches!(waits(Wait::Until(Instant::now())).join().unwrap(), Err(Error::Late)));
            let soon = Instant::now() + Duration::from_millis(30);
            assert!(matches!(waits(Wait::Until(soon)).join().unwrap(), Err(Error::Late)));
            let waiting = waits(Wait::Long);
            until_waiting(&mutex, 1);
            assert!(matches!(waits(Wait::Never).join().unwrap(), Err(Error::Busy { waiting: 1 })));
            drop(own);
            assert!(waiting.join().unwrap().is_ok());
        });
        assert!(!mutex.is_own() && mutex.lock_within(Wait::Never).is_ok());
    }

    #[test]
    fn panic_with_the_value() {
        let mutex = FairMutex::new(0);
        let panic = thread::scope(|scope| {
            let hold = || {
                let _guard = mutex.lock();
                std::panic::resume_unwind(Box::new("planned"));
            };
            scope.spawn(hold).join()
        });
        assert!(panic.is_err());
        assert!(mutex.lock().poisoned);
        assert!(!mutex.lock().poisoned);
    }
}
