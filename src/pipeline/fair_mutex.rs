//! A mutex that those who wait for it get before the one who had it last.

use std::sync::{LockResult, Mutex, MutexGuard, PoisonError};

/// A mutex whose holder may give it up and take it again, and another thread that waited has had it in between, which std's does not
/// promise.
#[derive(Debug, Default)]
pub(super) struct FairMutex<T> {
    /// Held while waiting for the value, so that one who has just given it up waits behind.
    next: Mutex<()>,
    value: Mutex<T>,
}

impl<T> FairMutex<T> {
    pub(super) fn new(value: T) -> Self {
        Self { next: Mutex::new(()), value: Mutex::new(value) }
    }

    pub(super) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.value.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// One who takes it again and again, each time at once, does not keep another one out.
    #[test]
    fn waiting_thread() {
        let (mutex, had) = (FairMutex::new(0), AtomicBool::new(false));
        let mut guard = mutex.lock().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                *mutex.lock().unwrap() += 1;
                had.store(true, Ordering::SeqCst);
            });
            // The thread waits for the value from here on, as nobody else may hold what comes before.
            while mutex.next.try_lock().is_ok() {
                std::thread::yield_now();
            }
            drop(guard);
            guard = mutex.lock().unwrap();
            assert_eq!(*guard, 1);
        });
        assert!(had.load(Ordering::SeqCst));
    }
}
