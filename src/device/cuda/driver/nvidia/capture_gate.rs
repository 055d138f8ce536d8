//! Captures and choices of algorithms, kept apart in the whole process: cuBLASLt 13.3 gives no algorithms while a stream of any
//! thread captures.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

static CAPTURES: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// A capture under way, until it is dropped.
pub(crate) struct Capturing(());

impl Capturing {
    /// Waits for choices to end.
    pub(crate) fn begin() -> Self {
        *lock() += 1;
        Self(())
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        *lock() -= 1;
        ENDED.notify_all();
    }
}

/// Waits for captures to end; none begins while the result lives.
pub(crate) fn no_captures() -> MutexGuard<'static, usize> {
    ENDED.wait_while(lock(), |captures| *captures > 0).unwrap_or_else(PoisonError::into_inner)
}

fn lock() -> MutexGuard<'static, usize> {
    CAPTURES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::time::Duration;

    #[test]
    fn choice_waits_for_captures() {
        static ENDS: AtomicBool = AtomicBool::new(false);
        let (first, second) = (Capturing::begin(), Capturing::begin());
        let choice = std::thread::spawn(|| {
            let _held = no_captures();
            assert!(ENDS.load(SeqCst), "a choice during a capture");
        });
        drop(first);
        std::thread::sleep(Duration::from_millis(20));
        ENDS.store(true, SeqCst);
        drop(second);
        choice.join().unwrap();
    }
}
