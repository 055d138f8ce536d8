//! Access of threads to a pipeline's executables.

use super::executable_cache::ExecutableCache;
use super::fair_mutex::FairMutex;
use std::ops::{Deref, DerefMut};
use std::sync::{MutexGuard, PoisonError};

/// A pipeline's executables: requests run one call at a time, and between two of its evaluations others may encode.
#[derive(Default)]
pub(super) struct CacheAccess {
    runs: FairMutex<()>,
    cache: FairMutex<ExecutableCache>,
}

/// The sign that no other call runs requests.
pub(super) struct Run<'a> {
    access: &'a CacheAccess,
    _run: MutexGuard<'a, ()>,
}

/// The executables, between which and others no request is under way.
pub(super) struct Alone<'a> {
    // Given up first.
    cache: MutexGuard<'a, ExecutableCache>,
    _run: Run<'a>,
}

/// The executables while requests are under way, whose own stay.
pub(super) struct Beside<'a>(MutexGuard<'a, ExecutableCache>);

impl CacheAccess {
    pub(super) fn new(cache: ExecutableCache) -> Self {
        Self { runs: FairMutex::default(), cache: FairMutex::new(cache) }
    }

    /// Waits until no other call runs requests.
    pub(super) fn run(&self) -> Run<'_> {
        Run { access: self, _run: self.runs.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Waits until no other call runs requests, and takes the executables.
    pub(super) fn alone(&self) -> Alone<'_> {
        let run = self.run();
        Alone { cache: self.lock(), _run: run }
    }

    /// Takes the executables, between two evaluations of requests where some are under way.
    pub(super) fn beside(&self) -> Beside<'_> {
        let mut cache = self.lock();
        cache.is_beside = true;
        Beside(cache)
    }

    fn lock(&self) -> MutexGuard<'_, ExecutableCache> {
        // A panic in another request left at most unused results behind, and notes of a session that is none.
        self.cache.lock().unwrap_or_else(|poisoned| {
            let mut cache = poisoned.into_inner();
            cache.contents.recorded();
            cache
        })
    }
}

impl<'a> Run<'a> {
    /// Takes the executables.
    pub(super) fn lock(&self) -> MutexGuard<'a, ExecutableCache> {
        self.access.lock()
    }
}

impl Deref for Alone<'_> {
    type Target = ExecutableCache;

    fn deref(&self) -> &ExecutableCache {
        &self.cache
    }
}

impl DerefMut for Alone<'_> {
    fn deref_mut(&mut self) -> &mut ExecutableCache {
        &mut self.cache
    }
}

impl Deref for Beside<'_> {
    type Target = ExecutableCache;

    fn deref(&self) -> &ExecutableCache {
        &self.0
    }
}

impl DerefMut for Beside<'_> {
    fn deref_mut(&mut self) -> &mut ExecutableCache {
        &mut self.0
    }
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        self.0.is_beside = false;
    }
}
