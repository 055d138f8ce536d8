//! Images: PNG, JPEG and WebP files as 8-bit RGB.

use crate::error::{Error, Field, Result};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

/// The greatest number of pixels of an image, 2^28, above the 200 megapixels of the largest cameras.
pub const MAX_PIXELS: u64 = 1 << 28;
/// The greatest size in bytes of an image as its file stores it (16-bit samples and alpha count).
const MAX_DECODED: u64 = 1 << 30;
/// The greatest size of a file in bytes.
const MAX_FILE: u64 = 1 << 29;
/// The bytes that a decoder may allocate beside the image: rows, colour profiles, text.
const MAX_AUXILIARY: u64 = 1 << 26;

/// An image of 8-bit RGB pixels, row after row from the top left.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Image {
    /// Makes an image of its pixels: `rgb` holds 3 * width * height bytes.
    ///
    /// # Errors
    /// [`Error::Parameter`] where a side is 0, there are more than [`MAX_PIXELS`], or the length is another.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        let pixels = width.checked_mul(height).filter(|&n| n > 0 && n as u64 <= MAX_PIXELS);
        match pixels {
            Some(n) if n * 3 == rgb.len() => Ok(Self { width, height, rgb }),
            Some(n) => {
                let what = format!("{width}x{height} takes {} bytes of RGB, got {}", n * 3, rgb.len());
                Err(Error::parameter(Field::Image, what))
            }
            None => Err(Error::parameter(Field::Image, format!("{width}x{height}: {}", allowed()))),
        }
    }

    /// Reads a PNG, JPEG or WebP file, recognized by its content; see [`Image::decode`].
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read, else those of [`Image::decode`].
    pub fn open(path: impl AsRef<Path>, alpha: AlphaMode) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(Error::malformed(path, format!("more than {MAX_FILE} bytes: too large for an image")));
        }
        Self::decode(&bytes, path, alpha)
    }

    /// Decodes the bytes of a PNG, JPEG or WebP file. `name` stands for the file in errors.
    ///
    /// Equals PIL's `ImageOps.exif_transpose(image)` with the given treatment of transparency: the orientation in EXIF
    /// or else in XMP is applied, of an animation the first frame is taken, colour profiles are ignored, of 16-bit samples
    /// the upper byte counts. It differs from PIL in that 16-bit gray is treated so too (PIL cuts every value above 255
    /// to white) and in JPEG's inverse transform, chroma upsampling and colour conversion, by a few of 255 steps at
    /// edges.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the bytes are no image, end early, or hold more than [`MAX_PIXELS`] (checked before
    /// any pixel is decoded); [`Error::Memory`] where the pixels cannot be allocated.
    pub fn decode(bytes: &[u8], name: impl AsRef<Path>, alpha: AlphaMode) -> Result<Self> {
        decode(bytes, name.as_ref(), alpha)
    }

    /// The width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The RGB bytes, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The brightness of each pixel, as PIL's `convert("L")`: ITU-R 601's weights in 16 fractional bits, rounded.
    pub fn luma(&self) -> Vec<u8> {
        let weigh = |[r, g, b]: &[u8; 3]| 19_595 * u32::from(*r) + 38_470 * u32::from(*g) + 7_471 * u32::from(*b);
        self.rgb.as_chunks::<3>().0.iter().map(|pixel| ((weigh(pixel) + 0x8000) >> 16) as u8).collect()
    }

    /// Takes the RGB bytes, without a copy.
    pub fn into_rgb(self) -> Vec<u8> {
        self.rgb
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({}x{})", self.width, self.height)
    }
}

fn allowed() -> String {
    format!("an image has sides of at least 1 and at most {MAX_PIXELS} pixels")
}

/// The treatment of transparency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AlphaMode {
    /// Composites the image on white, as transformers 5 does (PIL's `alpha_composite`).
    #[default]
    CompositeOnWhite,
    /// Takes the colours as they are stored, as PIL's `convert("RGB")` and transformers 4 do.
    Ignore,
}

fn decode(bytes: &[u8], name: &Path, alpha: AlphaMode) -> Result<Image> {
    let format = detect_format(bytes, name)?;
    let complete = match format {
        ImageFormat::Jpeg => jpeg_is_complete(bytes),
        ImageFormat::WebP => webp_is_complete(bytes),
        _ => true,
    };
    if !complete {
        return Err(Error::malformed(name, truncated(format)));
    }
    let failed = |e: ImageError| Error::malformed(name, decoding_error(format, e));

    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_AUXILIARY);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_PIXELS || decoder.total_bytes() > MAX_DECODED {
        let what = format!("{width}x{height} pixels in {} bytes: {}", decoder.total_bytes(), allowed());
        return Err(Error::malformed(name, format!("{what}, in at most {MAX_DECODED} bytes")));
    }
    let orientation = orientation(&mut decoder);
    let color = decoder.color_type();
    let mut samples = zeroed(decoder.total_bytes() as usize)?;
    decoder.read_image(&mut samples).map_err(failed)?;
    let rgb = to_rgb(samples, color, pixels as usize, alpha).ok_or_else(|| {
        Error::malformed(name, format!("samples of type {color:?} are not supported; save it as RGB"))
    })??;

    let rgb = RgbImage::from_raw(width, height, rgb)
        .ok_or_else(|| Error::malformed(name, format!("the decoder gave another size than {width}x{height}")))?;
    let mut upright = DynamicImage::ImageRgb8(rgb);
    upright.apply_orientation(orientation);
    let (width, height) = (upright.width() as usize, upright.height() as usize);
    Image::new(width, height, upright.into_rgb8().into_raw())
}

/// Finds the orientation as PIL's `exif_transpose` does: in EXIF, else in XMP. Damaged metadata is no reason to refuse the
/// image.
fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    let exif = decoder.exif_metadata().ok().flatten();
    if let Some(orientation) = exif.and_then(|exif| Orientation::from_exif_chunk(&exif)) {
        return orientation;
    }
    let xmp = decoder.xmp_metadata().ok().flatten().unwrap_or_default();
    xmp_orientation(&xmp).and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// The first `tiff:Orientation` of an XMP text, an attribute or an element; what PIL seeks with `tiff:Orientation(="|>)([0-9])`.
fn xmp_orientation(xmp: &[u8]) -> Option<u8> {
    const KEY: &[u8] = b"tiff:Orientation";
    let mut after = xmp.windows(KEY.len()).enumerate().filter(|(_, w)| *w == KEY).map(|(at, _)| &xmp[at + KEY.len()..]);
    after.find_map(|rest| {
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| digit - b'0')
    })
}

/// Detects the format by the first bytes.
fn detect_format(bytes: &[u8], name: &Path) -> Result<ImageFormat> {
    let other = OTHER_FORMATS.iter().find(|(at, magic, _)| bytes.get(*at..).is_some_and(|b| b.starts_with(magic)));
    if let Some((_, _, what)) = other {
        return Err(Error::malformed(name, format!("this is {what}; a PNG, JPEG or WebP file is needed")));
    }
    let seen = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => return Ok(format),
        Ok(other) => format!("this is a {other:?} file"),
        Err(_) if bytes.is_empty() => "the file is empty".into(),
        Err(_) => "this is not an image".into(),
    };
    Err(Error::malformed(name, format!("{seen}; a PNG, JPEG or WebP file is needed")))
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

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        _ => "WebP",
    }
}

fn truncated(format: ImageFormat) -> String {
    format!("the {} file is cut short; copy or download it again", format_name(format))
}

fn decoding_error(format: ImageFormat, error: ImageError) -> String {
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

/// Whether there are as many bytes as the RIFF header says; the padding of the last chunk may miss.
fn webp_is_complete(bytes: &[u8]) -> bool {
    let length = bytes.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    bytes.len() as u64 + 1 >= u64::from(length) + 8
}

/// Whether the end marker follows the last scan. The decoder fills what is missing with gray and says nothing.
///
/// Segments are stepped over by their lengths, so the end marker of an embedded thumbnail does not count.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const EOI: u8 = 0xd9;
    let mut at = 2;
    while let Some(marker) = bytes.get(at..).and_then(|rest| rest.windows(2).position(|w| w[0] == 0xff && w[1] != 0xff))
    {
        at += marker + 2;
        match bytes[at - 1] {
            EOI => return true,
            // A stuffed zero and the markers without a length: they occur within a scan.
            0 | 0x01 | 0xd0..=0xd8 => {}
            _ => match bytes.get(at..at + 2) {
                Some(length) => at += usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
    false
}

/// Converts decoded samples to RGB bytes; `None` for a colour type that no decoder here gives.
fn to_rgb(samples: Vec<u8>, color: ColorType, pixels: usize, alpha: AlphaMode) -> Option<Result<Vec<u8>>> {
    let (channels, bytes) = match color {
        ColorType::Rgb8 => return Some(Ok(samples)),
        ColorType::L8 => (1, 1),
        ColorType::La8 => (2, 1),
        ColorType::Rgba8 => (4, 1),
        ColorType::L16 => (1, 2),
        ColorType::La16 => (2, 2),
        ColorType::Rgb16 => (3, 2),
        ColorType::Rgba16 => (4, 2),
        _ => return None,
    };
    // Samples of 16 bits lie in the machine's byte order.
    let upper = if bytes == 2 && cfg!(target_endian = "little") { 1 } else { 0 };
    let (green, blue) = if channels < 3 { (0, 0) } else { (bytes, 2 * bytes) };
    let mut rgb = match zeroed(pixels * 3) {
        Ok(rgb) => rgb,
        Err(e) => return Some(Err(e)),
    };
    for (to, from) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples.chunks_exact(channels * bytes)) {
        *to = [from[upper], from[green + upper], from[blue + upper]];
        if alpha == AlphaMode::CompositeOnWhite && channels % 2 == 0 {
            let opacity = from[(channels - 1) * bytes + upper];
            *to = to.map(|value| on_white(value, opacity));
        }
    }
    Some(Ok(rgb))
}

/// Computes PIL's `alpha_composite` over opaque white: 7 more bits, and a division by 255 that rounds.
fn on_white(value: u8, opacity: u8) -> u8 {
    let (value, opacity) = (u32::from(value), u32::from(opacity));
    let sum = ((value * opacity + 255 * (255 - opacity)) << 7) + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

/// Allocates `n` zero bytes, or returns an error instead of aborting.
fn zeroed(n: usize) -> Result<Vec<u8>> {
    // Asked for, given back and asked for again as zeros: those the system hands out page by page, so that a file which
    // promises more than it holds costs nothing.
    Vec::<u8>::new().try_reserve_exact(n).map_err(|_| Error::Memory {
        stage: "loading",
        need: n as u64,
        have: 0,
        hint: "use a smaller image".into(),
    })?;
    Ok(vec![0; n])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_length() {
        assert!(Image::new(2, 1, vec![0; 6]).is_ok());
        assert!(Image::new(2, 1, vec![0; 5]).is_err());
        assert!(Image::new(0, 1, Vec::new()).is_err());
        assert!(Image::new(usize::MAX, 2, Vec::new()).is_err());
    }

    #[test]
    fn other_files() {
        let text = Image::decode(b"GIF89a..........", "x.png", AlphaMode::CompositeOnWhite).unwrap_err().to_string();
        assert_eq!(text, "x.png: this is a Gif file; a PNG, JPEG or WebP file is needed");
        let text = Image::decode(b"<!DOCTYPE html>", "x.png", AlphaMode::CompositeOnWhite).unwrap_err().to_string();
        assert_eq!(text, "x.png: this is not an image; a PNG, JPEG or WebP file is needed");
        assert!(Image::decode(b"", "x.png", AlphaMode::CompositeOnWhite).unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn thumbnail_end_marker() {
        let thumbnail = [0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 0, 0];
        assert!(!jpeg_is_complete(&thumbnail));
        assert!(jpeg_is_complete(&[&thumbnail[..], &[0xff, 0xff, 0xd9]].concat()));
        // A length that leads past the end.
        assert!(!jpeg_is_complete(&[0xff, 0xd8, 0xff, 0xe1, 0xff, 0xff, 0xff, 0xd9]));
    }
}
