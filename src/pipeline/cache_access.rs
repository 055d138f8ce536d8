//! Access of threads to a pipeline's executables.

use super::executable_cache::ExecutableCache;
use super::fair_mutex::{FairGuard, FairMutex, Wait};
use crate::error::Result;
use crate::parallel::{Limit, limit};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A pipeline's executables: requests run one call at a time, and between two of its evaluations others may encode.
#[derive(Default)]
pub(super) struct CacheAccess {
    runs: FairMutex<()>,
    cache: FairMutex<ExecutableCache>,
    /// The bytes of the cache, as it was given up last.
    bytes: AtomicUsize,
    /// Whether the cache is to be cleared when no requests run.
    clears: AtomicBool,
    /// The most threads of what a call does beside the executables.
    threads: Option<usize>,
}

/// The sign that no other call runs requests.
pub(super) struct Run<'a> {
    access: &'a CacheAccess,
    // None only once it is given up.
    turn: Option<FairGuard<'a, ()>>,
    _limit: Limit,
}

/// The executables, whose bytes are noted when they are given up.
pub(super) struct CacheGuard<'a> {
    access: &'a CacheAccess,
    cache: FairGuard<'a, ExecutableCache>,
}

/// The executables, between which and others no request is under way.
pub(super) struct Alone<'a> {
    // Given up first.
    cache: CacheGuard<'a>,
    _run: Run<'a>,
}

/// The executables while requests are under way, whose own stay.
pub(super) struct Beside<'a> {
    cache: CacheGuard<'a>,
    _limit: Limit,
}

impl CacheAccess {
    pub(super) fn new(cache: ExecutableCache, threads: usize) -> Self {
        Self { cache: FairMutex::new(cache), threads: Some(threads), ..Self::default() }
    }

    /// Waits until no other call runs requests.
    ///
    /// # Errors
    /// As [`FairMutex::lock_within`]: [`crate::Error::InCallback`] where the thread runs requests itself.
    pub(super) fn run(&self, wait: Wait) -> Result<Run<'_>> {
        Ok(Run { access: self, turn: Some(self.runs.lock_within(wait)?), _limit: limit(self.threads) })
    }

    /// Waits until no other call runs requests, and takes the executables.
    ///
    /// # Errors
    /// As [`CacheAccess::run`].
    pub(super) fn alone(&self) -> Result<Alone<'_>> {
        let run = self.run(Wait::Long)?;
        Ok(Alone { cache: run.lock(), _run: run })
    }

    /// Takes the executables, between two evaluations of requests where some are under way.
    ///
    /// # Errors
    /// As [`CacheAccess::run`].
    pub(super) fn beside(&self) -> Result<Beside<'_>> {
        let mut cache = self.guard(self.cache.lock_within(Wait::Long)?);
        cache.is_beside = true;
        Ok(Beside { cache, _limit: limit(self.threads) })
    }

    /// Whether the calling thread runs requests.
    pub(super) fn is_own(&self) -> bool {
        self.runs.is_own()
    }

    /// The bytes that the executables hold, and what is kept on a device: as of the last evaluation where requests are under way.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Clears the executables: now, or when the call that runs requests ends.
    pub(super) fn clear(&self) {
        self.clears.store(true, Ordering::SeqCst);
        self.clear_if_free();
    }

    /// Does what [`CacheAccess::clear`] asks for, unless a call runs requests, which will then.
    fn clear_if_free(&self) {
        while self.clears.load(Ordering::SeqCst)
            && let Ok(_turn) = self.runs.lock_within(Wait::Never)
        {
            self.clear_in_turn();
        }
    }

    fn clear_in_turn(&self) {
        if self.clears.swap(false, Ordering::SeqCst) {
            self.guard(self.cache.lock()).clear();
        }
    }

    fn guard<'a>(&'a self, cache: FairGuard<'a, ExecutableCache>) -> CacheGuard<'a> {
        let mut cache = CacheGuard { access: self, cache };
        if cache.cache.poisoned {
            // A panic in another request left at most unused results behind, and notes of a session that is none.
            cache.contents.recorded();
        }
        cache
    }
}

impl<'a> Run<'a> {
    /// Takes the executables.
    pub(super) fn lock(&self) -> CacheGuard<'a> {
        self.access.guard(self.access.cache.lock())
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.access.clear_in_turn();
        self.turn = None;
        // It may have been asked for this moment.
        self.access.clear_if_free();
    }
}

impl Drop for CacheGuard<'_> {
    fn drop(&mut self) {
        let bytes = self.cache.bytes() + self.cache.contents.device_bytes() as usize;
        self.access.bytes.store(bytes, Ordering::SeqCst);
    }
}

impl Deref for CacheGuard<'_> {
    type Target = ExecutableCache;

    fn deref(&self) -> &ExecutableCache {
        &self.cache
    }
}

impl DerefMut for CacheGuard<'_> {
    fn deref_mut(&mut self) -> &mut ExecutableCache {
        &mut self.cache
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
        &self.cache
    }
}

impl DerefMut for Beside<'_> {
    fn deref_mut(&mut self) -> &mut ExecutableCache {
        &mut self.cache
    }
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        self.cache.is_beside = false;
    }
}
