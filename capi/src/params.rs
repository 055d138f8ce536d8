//! Parameter structs that grow: the size that a struct says of itself tells which fields its maker knew.

use crate::edge::{Failure, Outcome};
use crate::pointers::null;
use crate::status::{BRAID_OK, braid_status};

/// A struct's name, its size, and its fields with their offsets and sizes.
pub type Layout = (&'static str, usize, &'static [(&'static str, usize, usize)]);

/// A struct that begins with its size.
///
/// # Safety
/// The type is `repr(C)`, its first field is `struct_size: usize`, it has no padding, and it takes any bits.
pub unsafe trait Params: Copy {
    /// The struct as C sees it.
    const LAYOUT: Layout;
    /// The struct with the defaults of all fields.
    fn defaults() -> Self;
}

/// Defines structs of the interface, each with `struct_size` ahead of the given fields and their defaults.
macro_rules! params {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty = $default:expr,)* })*) => {$(
        $(#[$meta])*
        #[doc = concat!("See `", stringify!($name), "` in braid.h.")]
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        pub struct $name {
            /// The bytes of the struct that its maker knew.
            pub struct_size: usize,
            $(#[doc = "See braid.h."] pub $field: $type,)*
        }

        // Padding would hold anything, and could not become a field.
        const _: () = assert!(size_of::<usize>() $(+ size_of::<$type>())* == size_of::<$name>());

        // SAFETY: as the definition above says; fields are integers, floats, and pointers that may be null.
        unsafe impl $crate::params::Params for $name {
            const LAYOUT: $crate::params::Layout = (stringify!($name), size_of::<Self>(), &[
                ("struct_size", std::mem::offset_of!(Self, struct_size), size_of::<usize>()),
                $((stringify!($field), std::mem::offset_of!(Self, $field), size_of::<$type>()),)*
            ]);

            fn defaults() -> Self {
                Self { struct_size: size_of::<Self>(), $($field: $default,)* }
            }
        }
    )*};
}

/// The least size of a struct: its own size and one field.
const LEAST: usize = 2 * size_of::<usize>();
/// More than any struct will have; what is larger was never initialized.
const MOST: usize = 4096;

fn is_size<T: Params>(size: usize) -> bool {
    (LEAST..=MOST).contains(&size) && size.is_multiple_of(align_of::<T>())
}

/// Fills a struct of so many bytes with the defaults: those that this library does not know with 0.
///
/// # Errors
/// [`Failure::Argument`].
///
/// # Safety
/// `pointer` is null or has room for `size` bytes.
pub unsafe fn init<T: Params>(pointer: *mut T, size: usize) -> Outcome<braid_status> {
    let (name, own, _) = T::LAYOUT;
    if pointer.is_null() {
        return Err(null(name));
    }
    if !is_size::<T>(size) {
        return Err(Failure::argument(format!(
            "struct_size: {size} given; give sizeof({name}), {own} in this version"
        )));
    }
    let defaults = T::defaults();
    let bytes = pointer.cast::<u8>();
    // SAFETY: there is room for `size` bytes, and `defaults` has `own`.
    unsafe {
        bytes.write_bytes(0, size);
        bytes.copy_from_nonoverlapping((&raw const defaults).cast(), size.min(own));
        bytes.cast::<usize>().write_unaligned(size);
    }
    Ok(BRAID_OK)
}

/// Reads a struct; fields that its maker did not know have their defaults.
///
/// # Errors
/// [`Failure::Argument`] where there is none, it was not initialized, or it has values in fields that this library does not know.
///
/// # Safety
/// `pointer` is null or points to as many bytes as the struct says.
pub unsafe fn read<T: Params>(pointer: *const T, name: &str) -> Outcome<T> {
    let (kind, own, _) = T::LAYOUT;
    if pointer.is_null() {
        return Err(null(name));
    }
    let bytes = pointer.cast::<u8>();
    // SAFETY: every struct begins with its size.
    let size = unsafe { bytes.cast::<usize>().read_unaligned() };
    if !is_size::<T>(size) {
        let what = format!("{name}.struct_size: {size} given, which is no size of a {kind}; call {kind}_init first");
        return Err(Failure::argument(what));
    }
    let mut value = T::defaults();
    // SAFETY: both have as many bytes, and the type takes any.
    unsafe { bytes.copy_to_nonoverlapping((&raw mut value).cast(), size.min(own)) };
    // SAFETY: the struct has `size` bytes.
    let beyond = unsafe { std::slice::from_raw_parts(bytes.add(own.min(size)), size.saturating_sub(own)) };
    if beyond.iter().any(|byte| *byte != 0) {
        let version = env!("CARGO_PKG_VERSION");
        let what = format!(
            "{name}: a field beyond the {own} bytes of {kind} in this library, {version}, is set; take a newer library, or leave it 0"
        );
        return Err(Failure::argument(what));
    }
    Ok(value)
}

/// Reads an array of structs, which lie as far apart as the first one's size.
///
/// # Errors
/// As [`read`]; [`Failure::Argument`] where the sizes differ.
///
/// # Safety
/// `pointer` is null or points to `count` structs of the size that the first one says.
pub unsafe fn read_all<T: Params>(pointer: *const T, count: usize, name: &str) -> Outcome<Vec<T>> {
    let mut all: Vec<T> = Vec::new();
    let mut at = pointer.cast::<u8>();
    let mut apart = 0;
    for i in 0..count {
        // SAFETY: `at` is null, or the struct of that number.
        let value = unsafe { read(at.cast::<T>(), &format!("{name}[{i}]"))? };
        // SAFETY: it was read.
        let size = unsafe { at.cast::<usize>().read_unaligned() };
        if i > 0 && size != apart {
            let what = format!("{name}[{i}].struct_size: {size} given, {apart} for the first; initialize each alike");
            return Err(Failure::argument(what));
        }
        apart = size;
        // SAFETY: still in the array, or just behind it.
        at = unsafe { at.add(size) };
        all.push(value);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    params! {
        braid_test { first: u64 = 1, second: f32 = 2.0, third: i32 = 3, }
    }

    type Words = [u64; 4];

    fn words(size: usize) -> Words {
        let mut words = [u64::MAX; 4];
        // SAFETY: there are 32 bytes.
        unsafe { init(words.as_mut_ptr().cast::<braid_test>(), size).unwrap() };
        words
    }

    fn get(words: &Words) -> Outcome<(u64, f32, i32)> {
        // SAFETY: there are as many bytes as any size here.
        unsafe { read(words.as_ptr().cast::<braid_test>(), "test") }.map(|t| (t.first, t.second, t.third))
    }

    #[test]
    fn own_size() {
        let mut given = words(24);
        assert_eq!(given[0], 24);
        assert_eq!(given[3], u64::MAX, "what is behind the struct is not written");
        assert_eq!(get(&given).unwrap(), (1, 2.0, 3));
        given[1] = 9;
        assert_eq!(get(&given).unwrap(), (9, 2.0, 3));
    }

    /// A program that is older than the library does not know the last fields.
    #[test]
    fn shorter_struct() {
        let mut given = words(16);
        assert_eq!(given[2], u64::MAX);
        given[1] = 9;
        assert_eq!(get(&given).unwrap(), (9, 2.0, 3));
    }

    /// A program that is newer than the library knows more fields, and may not use them.
    #[test]
    fn longer_struct() {
        let mut given = words(32);
        assert_eq!((given[0], given[3]), (32, 0));
        assert_eq!(get(&given).unwrap(), (1, 2.0, 3));
        given[3] = 1 << 40;
        let text = get(&given).unwrap_err().text();
        assert!(text.starts_with("test: a field beyond the 24 bytes of braid_test"), "{text}");
    }

    #[test]
    fn impossible_sizes() {
        for size in [0, 8, 12, 20, 8192, usize::MAX] {
            let mut given = [7u64; 4];
            given[0] = size as u64;
            let text = get(&given).unwrap_err().text();
            assert!(text.starts_with("test.struct_size: ") && text.contains("braid_test_init"), "{text}");
            // SAFETY: nothing is written where the size is none.
            let text = unsafe { init(given.as_mut_ptr().cast::<braid_test>(), size) }.unwrap_err().text();
            assert!(text.contains("sizeof(braid_test), 24"), "{text}");
            assert_eq!(given[1], 7);
        }
        // SAFETY: null.
        let text = unsafe { read::<braid_test>(std::ptr::null(), "test") }.unwrap_err().text();
        assert_eq!(text, "test: NULL given");
    }

    #[test]
    fn arrays() {
        // SAFETY: as the words say.
        let read = |given: &[u64], count| unsafe { read_all(given.as_ptr().cast::<braid_test>(), count, "list") };
        // Two structs of 16 bytes, as an older program has them.
        let values: Vec<u64> = read(&[16, 5, 16, 6], 2).unwrap().iter().map(|t| t.first).collect();
        assert_eq!(values, [5, 6]);
        let text = |given: &[u64]| read(given, 2).unwrap_err().text();
        assert_eq!(text(&[16, 5, 24, 6, 0]), "list[1].struct_size: 24 given, 16 for the first; initialize each alike");
        assert!(text(&[16, 5, 0, 6]).starts_with("list[1].struct_size: 0 given"));
        // SAFETY: null, with and without elements.
        let null = |count| unsafe { read_all::<braid_test>(std::ptr::null(), count, "list") };
        assert!(null(0).unwrap().is_empty());
        assert_eq!(null(2).unwrap_err().text(), "list[0]: NULL given");
    }
}
