//! Arguments by pointer: each that cannot be read is refused by its name.

use crate::edge::{Failure, Outcome};
use crate::status::{BRAID_OK, braid_status};
use std::ffi::{CStr, c_char};

/// The failure of a null pointer.
pub(crate) fn null(name: &str) -> Failure {
    Failure::argument(format!("{name}: NULL given"))
}

/// Borrows the value behind a pointer that must be there.
///
/// # Errors
/// [`Failure::Argument`].
///
/// # Safety
/// `pointer` is null or points to a value that lasts as long as the reference.
pub(crate) unsafe fn borrow<'a, T>(pointer: *const T, name: &str) -> Outcome<&'a T> {
    // SAFETY: as the caller promises.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// Borrows an array.
///
/// # Errors
/// [`Failure::Argument`] where there is none and the number is not 0, or where no array can be.
///
/// # Safety
/// `pointer` is null or points to `count` values that last as long as the slice.
pub(crate) unsafe fn slice<'a, T>(pointer: *const T, count: usize, name: &str) -> Outcome<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(Failure::argument(format!("{name}: NULL given for {count} values")));
    }
    if !pointer.is_aligned() || count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::argument(format!("{name}: no array of {count} values can be there")));
    }
    // SAFETY: checked as far as that goes, else as the caller promises.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// Borrows a text that may be absent.
///
/// # Errors
/// [`Failure::Argument`] where it is not UTF-8.
///
/// # Safety
/// `pointer` is null or points to a text with NUL that lasts as long as the reference.
pub(crate) unsafe fn optional_text<'a>(pointer: *const c_char, name: &str) -> Outcome<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(pointer) };
    let shown = || Failure::argument(format!("{name}: `{}` is not UTF-8", text.to_string_lossy()));
    text.to_str().map(Some).map_err(|_| shown())
}

/// Borrows a text that must be there.
///
/// # Errors
/// [`Failure::Argument`].
///
/// # Safety
/// As of [`optional_text`].
pub(crate) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Outcome<&'a str> {
    // SAFETY: as the caller promises.
    unsafe { optional_text(pointer, name) }?.ok_or_else(|| null(name))
}

/// Borrows an array of texts.
///
/// # Errors
/// [`Failure::Argument`].
///
/// # Safety
/// As of [`slice`] and, for each element, of [`text`].
pub(crate) unsafe fn texts<'a>(pointer: *const *const c_char, count: usize, name: &str) -> Outcome<Vec<&'a str>> {
    // SAFETY: as the caller promises.
    let pointers = unsafe { slice(pointer, count, name) }?;
    let each = pointers.iter().enumerate();
    // SAFETY: as the caller promises.
    each.map(|(i, pointer)| unsafe { text(*pointer, &format!("{name}[{i}]")) }).collect()
}

/// An element of a list whose elements have that name, by an argument of that name.
///
/// # Errors
/// [`Failure::Argument`] where there is none.
pub(crate) fn element<'a, T>((values, things): (&'a [T], &str), (index, name): (usize, &str)) -> Outcome<&'a T> {
    let outside = || Failure::argument(format!("{name}: {index} given; there are {} {things}", values.len()));
    values.get(index).ok_or_else(outside)
}

/// Reads a number that is 0 or 1.
///
/// # Errors
/// [`Failure::Argument`] for any other.
pub(crate) fn switch(value: u32, name: &str) -> Outcome<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Failure::argument(format!("{name}: {value} given; 0 or 1 is allowed"))),
    }
}

/// Checks a field that a later version may give a meaning.
///
/// # Errors
/// [`Failure::Argument`] where it is not 0.
pub(crate) fn demand_zero(value: u32, name: &str) -> Outcome<()> {
    match value {
        0 => Ok(()),
        _ => Err(Failure::argument(format!("{name}: {value} given; it must stay 0"))),
    }
}

/// Stores a result.
///
/// # Errors
/// [`Failure::Argument`] where there is no place.
///
/// # Safety
/// `place` is null or has room for the value.
pub(crate) unsafe fn store<T>(place: *mut T, value: T, name: &str) -> Outcome<braid_status> {
    if place.is_null() {
        return Err(null(name));
    }
    // SAFETY: as the caller promises.
    unsafe { place.write(value) };
    Ok(BRAID_OK)
}

/// Gives the handle that `make` makes, or NULL where that fails.
///
/// # Errors
/// [`Failure::Argument`] where there is no place for it; those of `make`.
///
/// # Safety
/// `place` is null or has room for a pointer.
pub(crate) unsafe fn give<T>(
    place: *mut *mut T,
    name: &str,
    make: impl FnOnce() -> Outcome<T>,
) -> Outcome<braid_status> {
    // SAFETY: as the caller promises.
    unsafe {
        store(place, std::ptr::null_mut(), name)?;
        let handle = make()?;
        store(place, Box::into_raw(Box::new(handle)), name)
    }
}

/// Frees a handle.
///
/// # Safety
/// `handle` is null or came from [`give`] and was not freed.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: as the caller promises.
        drop(unsafe { Box::from_raw(handle) });
    }
}
