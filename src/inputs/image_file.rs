//! Image files: their formats, their limits, and errors that name them.

use crate::error::{Error, Result};
use image::{ImageError, ImageFormat};
use std::io::ErrorKind;
use std::path::Path;

/// The greatest number of pixels of an image, 2^28, above the 200 megapixels of the largest cameras.
pub const MAX_PIXELS: u64 = 1 << 28;
/// The greatest size in bytes of an image as its file stores it (16-bit samples and alpha count).
pub(super) const MAX_DECODED: u64 = 1 << 30;
/// The greatest size of a file in bytes.
pub(super) const MAX_FILE: u64 = 1 << 29;
/// The bytes that a decoder may allocate beside the image: rows, colour profiles, text.
pub(super) const MAX_AUXILIARY: u64 = 1 << 26;

pub(super) fn allowed() -> String {
    format!("an image has sides of at least 1 and at most {MAX_PIXELS} pixels")
}

/// Refuses an image of too many pixels, or of none.
pub(super) fn check_size(name: &Path, width: u32, height: u32, bytes: u64) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_PIXELS || bytes > MAX_DECODED {
        let what = format!("{width}x{height} pixels in {bytes} bytes: {}", allowed());
        return Err(Error::malformed(name, format!("{what}, in at most {MAX_DECODED} bytes")));
    }
    Ok(())
}

/// Detects the format by the first bytes.
pub(super) fn detect_format(bytes: &[u8], name: &Path) -> Result<ImageFormat> {
    let other = OTHER_FORMATS.iter().find(|(at, magic, _)| bytes.get(*at..).is_some_and(|b| b.starts_with(magic)));
    if let Some((_, _, what)) = other {
        return Err(Error::malformed(name, format!("this is {what}; a PNG, JPEG, WebP or GIF file is needed")));
    }
    let seen = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Gif)) => {
            return Ok(format);
        }
        Ok(other) => format!("this is a {other:?} file"),
        Err(_) if bytes.is_empty() => "the file is empty".into(),
        Err(_) => "this is not an image".into(),
    };
    Err(Error::malformed(name, format!("{seen}; a PNG, JPEG, WebP or GIF file is needed")))
}

/// Formats that carry an image's name in practice and that no decoder here knows: offset, bytes, name.
const OTHER_FORMATS: [(usize, &[u8], &str); 11] = [
    (4, b"ftypheic", "a HEIC file"),
    (4, b"ftypheix", "a HEIC file"),
    (4, b"ftyphevc", "a HEIC file"),
    (4, b"ftypmif1", "a HEIF file"),
    (4, b"ftypmsf1", "a HEIF file"),
    (4, b"ftypavif", "an AVIF file"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL file"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (0, b"%PDF-", "a PDF file"),
];

pub(super) fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Gif => "GIF",
        _ => "WebP",
    }
}

pub(super) fn truncated(format: ImageFormat) -> String {
    format!("the {} file is cut short; copy or download it again", format_name(format))
}

pub(super) fn decoding_error(format: ImageFormat, error: ImageError) -> String {
    let name = format_name(format);
    match error {
        ImageError::Limits(_) => {
            format!(
                "the {name} file has rows or metadata of more than {MAX_AUXILIARY} bytes; save it smaller and plain"
            )
        }
        ImageError::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => truncated(format),
        other => format!("the {name} file cannot be decoded: {other}"),
    }
}

/// Whether there are as many bytes as the RIFF header and, in the extended format, those of its chunks say; the padding of the last
/// chunk may miss. The decoder makes room for whatever a chunk of metadata says, up to 4 GB, before it reads it.
pub(super) fn webp_is_complete(bytes: &[u8]) -> bool {
    const EXTENDED: usize = 12;
    let number = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (have, end) = (bytes.len() as u64, u64::from(number(4).unwrap_or(0)) + 8);
    let extended = bytes.get(EXTENDED..).is_some_and(|chunk| chunk.starts_with(b"VP8X"));
    let mut at = EXTENDED as u64;
    while extended && at < end.min(have) {
        let Some(size) = number(at as usize + 4).map(u64::from) else { break };
        at += 8 + size;
        if at > have {
            return false;
        }
        at += size & 1;
    }
    have + 1 >= end
}

/// Refuses a PNG file of indexed colours whose palette is none: the decoder panics where it has no whole colours, or more than 256.
pub(super) fn check_palette(bytes: &[u8], name: &Path) -> Result<()> {
    const INDEXED: u8 = 3;
    let (mut at, indexed) = (8, bytes.get(25) == Some(&INDEXED));
    while let Some(&[a, b, c, d, ref kind @ ..]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        match kind {
            b"PLTE" if indexed && (!length.is_multiple_of(3) || length > 3 * 256) => {
                let what =
                    format!("the PNG file has a palette of {length} bytes: 3 for each of up to 256 colours are needed");
                return Err(Error::malformed(name, what));
            }
            b"IDAT" => break,
            _ => at = at.saturating_add(length).saturating_add(12),
        }
    }
    Ok(())
}

/// Allocates `n` values of `zero`, or returns an error instead of aborting.
pub(super) fn zeroed<T: Clone>(n: usize, zero: T) -> Result<Vec<T>> {
    // Asked for, given back and asked for again as zeros: those the system hands out page by page, so that a file which
    // promises more than it holds costs nothing.
    Vec::<T>::new().try_reserve_exact(n).map_err(|_| Error::Memory {
        stage: "loading",
        need: (n * size_of::<T>()) as u64,
        have: 0,
        hint: "use a smaller image".into(),
    })?;
    Ok(vec![zero; n])
}
