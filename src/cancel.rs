//! Cancellation of whatever a thread does.

use crate::error::{Error, Result};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A flag that another thread sets to stop a request, or what runs in its [`CancelToken::scope`]; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<State>);

#[derive(Debug, Default)]
struct State {
    set: AtomicBool,
    /// The looks that still find it not set; none where only [`CancelToken::cancel`] sets it.
    looks: Option<AtomicU64>,
}

impl CancelToken {
    /// A token that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that sets itself at the look of that number, from 0: for tests that stop work at each of the points at which it looks.
    #[doc(hidden)]
    pub fn set_at_look(number: u64) -> Self {
        Self(Arc::new(State { looks: Some(number.into()), ..State::default() }))
    }

    /// Stops the request: on the CPU within a step, on a GPU at the next one.
    pub fn cancel(&self) {
        self.0.set.store(true, Ordering::Relaxed);
    }

    /// Whether it is set.
    pub fn is_cancelled(&self) -> bool {
        if self.0.looks.as_ref().is_some_and(|looks| looks.fetch_sub(1, Ordering::Relaxed) == 0) {
            self.cancel();
        }
        self.0.set.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Runs `work` so that the token stops it: whatever this crate does on this thread meanwhile, such as [`crate::Pipeline::load`],
    /// [`crate::Pipeline::prepare`] and [`crate::Pipeline::encode_image`], then fails with [`Error::Cancelled`]. Scopes may lie within one
    /// another; each of their tokens stops the work.
    ///
    /// ```no_run
    /// # fn main() -> braid::Result<()> {
    /// let cancel = braid::CancelToken::new();
    /// // A clone of it goes to whoever may stop this.
    /// let pipeline = cancel.scope(|| braid::Pipeline::load(&braid::PipelineOptions::new("sdxl.safetensors")))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn scope<T>(&self, work: impl FnOnce() -> T) -> T {
        scope(vec![self.clone()], work)
    }
}

thread_local! {
    /// The tokens of each scope that this thread is in.
    static SCOPES: RefCell<Vec<Vec<CancelToken>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` for several, which stops once all of their tokens are set.
pub(crate) fn scope<T>(tokens: Vec<CancelToken>, work: impl FnOnce() -> T) -> T {
    within(scopes().into_iter().chain([tokens]).collect(), work)
}

/// The tokens of each scope that this thread is in.
pub(crate) fn scopes() -> Vec<Vec<CancelToken>> {
    SCOPES.with_borrow(Clone::clone)
}

/// Runs `work` in the scopes of another thread.
pub(crate) fn within<T>(scopes: Vec<Vec<CancelToken>>, work: impl FnOnce() -> T) -> T {
    struct Leave(Vec<Vec<CancelToken>>);
    impl Drop for Leave {
        fn drop(&mut self) {
            SCOPES.set(std::mem::take(&mut self.0));
        }
    }
    let _leave = Leave(SCOPES.replace(scopes));
    work()
}

/// Whether this thread is to stop. Tokens stay set, so that within a scope this never goes back to no.
pub(crate) fn is_cancelled() -> bool {
    let stops = |tokens: &Vec<CancelToken>| !tokens.is_empty() && tokens.iter().all(CancelToken::is_cancelled);
    SCOPES.with_borrow(|scopes| scopes.iter().any(stops))
}

/// Stops this thread where that is asked for.
///
/// # Errors
/// [`Error::Cancelled`].
pub(crate) fn check() -> Result<()> {
    if is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn set_at_a_look() {
        let token = CancelToken::set_at_look(2);
        assert_eq!([(); 5].map(|()| token.is_cancelled()), [false, false, true, true, true]);
        let token = CancelToken::set_at_look(2);
        token.cancel();
        assert!(token.is_cancelled());
    }

    #[test]
    fn scopes() {
        let [a, b, c] = [(); 3].map(|()| CancelToken::new());
        assert!(check().is_ok());
        c.scope(|| {
            scope(vec![a.clone(), b.clone()], || {
                assert!(check().is_ok());
                a.cancel();
                assert!(check().is_ok());
                b.cancel();
                assert!(matches!(check(), Err(Error::Cancelled)));
                std::thread::scope(|scope| assert!(scope.spawn(check).join().unwrap().is_ok()));
            });
            assert!(check().is_ok());
            c.cancel();
            scope(Vec::new(), || assert!(is_cancelled()));
        });
        assert!(check().is_ok());
        assert!(catch_unwind(|| a.scope(|| panic!("planned"))).is_err());
        assert!(check().is_ok());
    }
}
