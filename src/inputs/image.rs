//! Images: PNG, JPEG, WebP and GIF files as 8-bit RGB.

pub use super::image_file::MAX_PIXELS;
use super::image_file::{MAX_AUXILIARY, MAX_FILE, allowed, check_size, decoding_error, detect_format, truncated};
use super::image_file::{check_palette, webp_is_complete, zeroed};
use super::jpeg::{self, Fault};
use super::{color_profile, gif};
use crate::error::{Error, Field, Result};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

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

    /// Reads a PNG, JPEG, WebP or GIF file, recognized by its content; see [`Image::decode`].
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read, else those of [`Image::decode`].
    pub fn open(path: impl AsRef<Path>, alpha: AlphaMode) -> Result<Self> {
        let path = path.as_ref();
        Self::decode(&read_image_file(path)?, path, alpha)
    }

    /// Decodes the bytes of a PNG, JPEG, WebP or GIF file. `name` stands for the file in errors.
    ///
    /// Equals PIL's `ImageOps.exif_transpose(image)` with the given treatment of transparency: JPEG to the byte, the
    /// orientation in EXIF or else in XMP is applied, of an animation the first frame is taken, colour profiles are ignored,
    /// of 16-bit samples the upper byte counts. It differs from PIL in that 16-bit gray is treated so too (PIL cuts every
    /// value above 255 to white).
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

/// Reads the bytes of a file that may be an image.
///
/// # Errors
/// [`Error::Io`]; [`Error::Malformed`] where it is too large for one.
pub(crate) fn read_image_file(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::malformed(path, format!("more than {MAX_FILE} bytes: too large for an image")));
    }
    Ok(bytes)
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
    let (rgb, [width, height], orientation) = match format {
        ImageFormat::Jpeg => decode_jpeg(bytes, name)?,
        ImageFormat::Gif => gif::decode(bytes, name, alpha == AlphaMode::CompositeOnWhite)?,
        _ => decode_other(bytes, name, format, alpha)?,
    };
    let rgb = RgbImage::from_raw(width, height, rgb)
        .ok_or_else(|| Error::malformed(name, format!("the decoder gave another size than {width}x{height}")))?;
    let mut upright = DynamicImage::ImageRgb8(rgb);
    upright.apply_orientation(orientation);
    let (width, height) = (upright.width() as usize, upright.height() as usize);
    Image::new(width, height, upright.into_rgb8().into_raw())
}

/// The pixels as RGB, the size, and the orientation that is still to be applied.
type Stored = (Vec<u8>, [u32; 2], Orientation);

fn decode_jpeg(bytes: &[u8], name: &Path) -> Result<Stored> {
    let failed = |fault| match fault {
        Fault::CutShort => Error::malformed(name, truncated(ImageFormat::Jpeg)),
        Fault::Refused(why) => Error::malformed(name, format!("the JPEG file cannot be decoded: {why}")),
        Fault::Memory(error) => error,
    };
    let decoder = jpeg::Decoder::new(bytes).map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, u64::from(width) * u64::from(height) * 3)?;
    let orientation = orientation(decoder.exif(), decoder.xmp());
    color_profile::tell(name, decoder.profile());
    let cmyk = decoder.is_cmyk();
    let (rgb, damaged) = decoder.decode().map_err(failed)?;
    if damaged {
        tracing::warn!("{}: the JPEG file is damaged; what is missing is gray, as in PIL", name.display());
    }
    if cmyk {
        tracing::warn!("{}: the image has inks (CMYK); its colours as RGB are approximate, as in PIL", name.display());
    }
    Ok((rgb, [width, height], orientation))
}

fn decode_other(bytes: &[u8], name: &Path, format: ImageFormat, alpha: AlphaMode) -> Result<Stored> {
    if format == ImageFormat::WebP && !webp_is_complete(bytes) {
        return Err(Error::malformed(name, truncated(format)));
    }
    if format == ImageFormat::Png {
        check_palette(bytes, name)?;
    }
    let failed = |e: ImageError| Error::malformed(name, decoding_error(format, e));

    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_AUXILIARY);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, decoder.total_bytes())?;
    // Damaged metadata is no reason to refuse the image.
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    let xmp = decoder.xmp_metadata().ok().flatten().unwrap_or_default();
    color_profile::tell(name, &decoder.icc_profile().ok().flatten().unwrap_or_default());
    let color = decoder.color_type();
    if color.bytes_per_pixel() == 2 * color.channel_count() {
        let gray = if color.has_color() { "" } else { "; PIL cuts gray values above 255 to white instead" };
        tracing::warn!("{}: of its 16-bit samples the upper byte counts{gray}", name.display());
    }
    let mut samples = zeroed(decoder.total_bytes() as usize, 0)?;
    decoder.read_image(&mut samples).map_err(failed)?;
    let rgb = to_rgb(samples, color, width as usize * height as usize, alpha).ok_or_else(|| {
        Error::malformed(name, format!("samples of type {color:?} are not supported; save it as RGB"))
    })??;
    Ok((rgb, [width, height], orientation(&exif, &xmp)))
}

/// Finds the orientation as PIL's `exif_transpose` does: in EXIF, else in XMP.
fn orientation(exif: &[u8], xmp: &[u8]) -> Orientation {
    let found = Orientation::from_exif_chunk(exif).or_else(|| xmp_orientation(xmp).and_then(Orientation::from_exif));
    found.unwrap_or(Orientation::NoTransforms)
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
    let mut rgb = match zeroed(pixels * 3, 0) {
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
        let text = Image::decode(b"BM..............", "x.png", AlphaMode::CompositeOnWhite).unwrap_err().to_string();
        assert_eq!(text, "x.png: this is a Bmp file; a PNG, JPEG, WebP or GIF file is needed");
        let text = Image::decode(b"<!DOCTYPE html>", "x.png", AlphaMode::CompositeOnWhite).unwrap_err().to_string();
        assert_eq!(text, "x.png: this is not an image; a PNG, JPEG, WebP or GIF file is needed");
        assert!(Image::decode(b"", "x.png", AlphaMode::CompositeOnWhite).unwrap_err().to_string().contains("empty"));
    }
}
