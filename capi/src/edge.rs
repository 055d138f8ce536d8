//! The edge between C and Rust: no panic crosses it, and the text of a failure is kept for the caller.

use crate::names::CNames;
use crate::status::{
    BRAID_ERROR_INVALID_ARGUMENT, BRAID_ERROR_PANIC, BRAID_ERROR_PARAMETER, BRAID_ERROR_TIMEOUT, braid_status, of_error,
};
use braid::Error;
use braid::error::escape;
use std::any::Any;
use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The reason why a function of the interface fails.
#[derive(Debug)]
pub enum Failure {
    /// An error of the library.
    Library(Error),
    /// The value of a field that the library's types cannot hold.
    Parameter(String),
    /// An argument that cannot be read, or a call that has no place there.
    Argument(String),
    /// A panic.
    Panic(String),
    /// A result that is not there yet.
    Timeout,
}

/// The result of a function before it crosses the edge.
pub type Outcome<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

impl Failure {
    /// Makes an [`Failure::Argument`], whose text is safe to print.
    pub fn argument(what: impl AsRef<str>) -> Self {
        Self::Argument(escape(what.as_ref()))
    }

    /// Makes an [`Failure::Parameter`], whose text is safe to print.
    pub fn parameter(what: impl AsRef<str>) -> Self {
        Self::Parameter(escape(what.as_ref()))
    }

    /// The status that tells it.
    pub fn status(&self) -> braid_status {
        match self {
            Self::Library(error) => of_error(error),
            Self::Parameter(_) => BRAID_ERROR_PARAMETER,
            Self::Argument(_) => BRAID_ERROR_INVALID_ARGUMENT,
            Self::Panic(_) => BRAID_ERROR_PANIC,
            Self::Timeout => BRAID_ERROR_TIMEOUT,
        }
    }

    /// One line, with fields called as in C.
    pub fn text(&self) -> String {
        match self {
            Self::Library(error) => error.message().describe(&CNames),
            Self::Parameter(what) | Self::Argument(what) => what.clone(),
            Self::Panic(what) => format!("a defect of the library: it panicked: {what}; please report it"),
            Self::Timeout => "the result is not there yet; wait again, or cancel the request".into(),
        }
    }
}

/// A type that functions of the interface return.
pub trait Returned {
    /// The value that says that a function has failed.
    fn failed(status: braid_status) -> Self;
}

impl Returned for braid_status {
    fn failed(status: braid_status) -> Self {
        status
    }
}

impl Returned for () {
    fn failed(_: braid_status) {}
}

impl Returned for usize {
    fn failed(_: braid_status) -> Self {
        0
    }
}

impl Returned for i32 {
    fn failed(_: braid_status) -> Self {
        0
    }
}

impl Returned for u64 {
    fn failed(_: braid_status) -> Self {
        0
    }
}

impl Returned for f64 {
    fn failed(_: braid_status) -> Self {
        0.0
    }
}

impl<T> Returned for *const T {
    fn failed(_: braid_status) -> Self {
        std::ptr::null()
    }
}

impl<T> Returned for *mut T {
    fn failed(_: braid_status) -> Self {
        std::ptr::null_mut()
    }
}

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the body of a function of the interface; a failure's text becomes the thread's last one.
pub fn cross<T: Returned>(work: impl FnOnce() -> Outcome<T>) -> T {
    match caught(work) {
        Ok(value) => value,
        Err(failure) => {
            keep(failure.text());
            T::failed(failure.status())
        }
    }
}

fn caught<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Failure::Panic(message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    escape(text.unwrap_or("no message"))
}

/// Makes a text the thread's last one; none is kept while a thread ends.
fn keep(text: String) {
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
}

/// The text of the last failure with a handle.
#[derive(Debug, Default)]
pub struct LastError(Mutex<String>);

impl LastError {
    /// Runs work with the handle, and keeps the text of its failure.
    ///
    /// # Errors
    /// Those of the work; [`Failure::Panic`].
    pub fn note<T>(&self, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        caught(work).inspect_err(|failure| *self.lock() = failure.text())
    }

    /// Copies the text out, see [`copy`].
    ///
    /// # Safety
    /// As of [`copy`].
    pub unsafe fn copy(&self, buffer: *mut c_char, size: usize) -> Outcome<usize> {
        // SAFETY: as the caller promises.
        unsafe { copy(&self.lock(), buffer, size) }
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies as much of a text as fits into a buffer of so many bytes, up to the end of a character, with NUL; returns the bytes of all of it.
///
/// # Errors
/// [`Failure::Argument`] where there is no buffer and the size is not 0.
///
/// # Safety
/// `buffer` is null or has room for `size` bytes.
pub unsafe fn copy(text: &str, buffer: *mut c_char, size: usize) -> Outcome<usize> {
    if size == 0 {
        return Ok(text.len() + 1);
    }
    if buffer.is_null() {
        return Err(Failure::argument(format!("buffer: NULL given with a size of {size}; give 0 to ask for the size")));
    }
    let mut end = text.len().min(size - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // SAFETY: `end` is below `size`.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), end);
        *buffer.add(end) = 0;
    }
    Ok(text.len() + 1)
}

/// Defines functions of the interface. Their bodies give an [`Outcome`] of what they return, and may do what is unsafe.
macro_rules! export {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[doc = concat!("See `", stringify!($name), "` in braid.h.")]
        ///
        /// # Safety
        /// As braid.h says of each pointer.
        #[unsafe(no_mangle)]
        #[allow(unused_unsafe)]
        pub unsafe extern "C" fn $name($($argument: $type),*) $(-> $result)? {
            $crate::edge::cross(move || {
                // SAFETY: the caller keeps what braid.h says of each pointer.
                unsafe { $body }
            })
        }
    )*};
}

export! {
    fn braid_version() -> *const c_char {
        Ok(concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast())
    }

    fn braid_last_error(buffer: *mut c_char, size: usize) -> usize {
        let text = LAST.try_with(|last| last.borrow().clone()).unwrap_or_default();
        copy(&text, buffer, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::BRAID_OK;

    export! {
        fn braid_test_panic(deep: i32) -> braid_status {
            let handle = LastError::default();
            if deep != 0 {
                let outcome = handle.note::<()>(|| panic!("of a handle, {deep}"));
                assert_eq!(text(|buffer, size| handle.copy(buffer, size).unwrap()), outcome.unwrap_err().text());
                return Ok(BRAID_OK);
            }
            panic!("planted")
        }

        fn braid_test_pointer() -> *const c_char { panic!("planted") }
    }

    fn text(copy: impl Fn(*mut c_char, usize) -> usize) -> String {
        let size = copy(std::ptr::null_mut(), 0);
        let mut bytes = vec![1u8; size];
        assert_eq!(copy(bytes.as_mut_ptr().cast(), size), size);
        assert_eq!(bytes.pop(), Some(0));
        String::from_utf8(bytes).unwrap()
    }

    fn last() -> String {
        // SAFETY: `text` gives buffers of the size.
        text(|buffer, size| unsafe { braid_last_error(buffer, size) })
    }

    #[test]
    fn panics_stop_at_the_edge() {
        // SAFETY: no pointers.
        unsafe {
            assert_eq!(braid_test_panic(0), BRAID_ERROR_PANIC);
            assert_eq!(last(), "a defect of the library: it panicked: planted; please report it");
            assert_eq!(braid_test_panic(7), BRAID_OK);
            assert!(braid_test_pointer().is_null());
        }
    }

    #[test]
    fn short_buffers() {
        let mut bytes = [1u8; 4];
        // SAFETY: the sizes are at most the buffer's.
        unsafe {
            assert_eq!(copy("aäb", bytes.as_mut_ptr().cast(), 3).unwrap(), 5);
            assert_eq!(bytes, [b'a', 0, 1, 1]);
            assert_eq!(copy("aäb", bytes.as_mut_ptr().cast(), 4).unwrap(), 5);
            assert_eq!(bytes, [b'a', 0xc3, 0xa4, 0]);
            assert_eq!(copy("aäb", bytes.as_mut_ptr().cast(), 1).unwrap(), 5);
            assert_eq!(bytes[0], 0);
            assert!(copy("", std::ptr::null_mut(), 1).unwrap_err().text().starts_with("buffer: NULL"));
        }
    }

    /// Another thread's failure is none of this one's.
    #[test]
    fn texts_of_threads() {
        // SAFETY: no pointers.
        unsafe {
            braid_test_panic(0);
            assert_eq!(std::thread::spawn(last).join().unwrap(), "");
        }
        assert!(last().contains("planted"));
    }
}
