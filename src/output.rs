//! Image files: PNG, JPEG and WebP.

use crate::atomic_file::write_atomic;
use crate::error::{Error, Field, Result};
use crate::inputs::image::Image;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageError};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// The quality of JPEG files, of 100.
const JPEG_QUALITY: u8 = 95;

/// The format of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// `.png`: lossless, with text.
    Png,
    /// `.jpg` or `.jpeg`: quality 95.
    Jpeg,
    /// `.webp`: lossless.
    WebP,
}

impl ImageFormat {
    /// Finds the format that a file's extension names, in either case.
    ///
    /// # Errors
    /// [`Error::Parameter`] for any other extension or none.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("png") => Ok(Self::Png),
            Some("jpg" | "jpeg") => Ok(Self::Jpeg),
            Some("webp") => Ok(Self::WebP),
            _ => {
                let what = format!("{}: the name must end in .png, .jpg, .jpeg or .webp", path.display());
                Err(Error::parameter(Field::OutputPath, what))
            }
        }
    }

    /// Checks that the format can hold an image of that size.
    ///
    /// # Errors
    /// [`Error::Parameter`] where a side is too long.
    pub fn check(self, width: usize, height: usize) -> Result<()> {
        let (side, longest) = (width.max(height), self.longest_side());
        if side <= longest {
            return Ok(());
        }
        let what = format!("{self:?} holds sides of up to {longest}, got {side}; write a .png");
        Err(Error::parameter(Field::OutputPath, what))
    }

    /// The longest side that the format can hold.
    fn longest_side(self) -> usize {
        match self {
            Self::Png => i32::MAX as usize,
            Self::Jpeg => 65_535,
            Self::WebP => 16_383,
        }
    }
}

/// The text of a PNG file; other formats carry none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PngMetadata {
    /// The chunk `parameters`: prompt and settings in the style of AUTOMATIC1111's interface.
    pub parameters: Option<String>,
    /// The chunk `braid`: the request as JSON.
    pub braid: Option<String>,
}

impl Image {
    /// Writes the image in the format of the file's extension (png, jpg, jpeg, webp), whole or not at all; see
    /// [`write_atomic`].
    ///
    /// # Errors
    /// [`Error::Parameter`] where the extension is none of [`ImageFormat`]'s or the format cannot hold a side so long,
    /// and those of [`write_atomic`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with_metadata(path, &PngMetadata::default())
    }

    /// Writes as [`Image::save`] does; a PNG file carries `metadata` as text, other formats carry none.
    ///
    /// # Errors
    /// As [`Image::save`].
    pub fn save_with_metadata(&self, path: impl AsRef<Path>, metadata: &PngMetadata) -> Result<()> {
        let path = path.as_ref();
        let format = ImageFormat::of(path)?;
        format.check(self.width(), self.height())?;
        write_atomic(path, |file| {
            let mut file = BufWriter::new(file);
            encode(self, format, metadata, &mut file)?;
            file.flush()
        })
    }
}

/// Encodes an image in a format.
///
/// # Errors
/// Those of `to`, and that the format cannot hold the image.
pub fn encode(image: &Image, format: ImageFormat, metadata: &PngMetadata, to: &mut impl Write) -> io::Result<()> {
    let (w, h) = (image.width() as u32, image.height() as u32);
    let failed = |e: ImageError| match e {
        ImageError::IoError(e) => e,
        other => io::Error::other(other),
    };
    match format {
        ImageFormat::Png => encode_png(image, metadata, to).map_err(|e| match e {
            png::EncodingError::IoError(e) => e,
            other => io::Error::other(other),
        }),
        ImageFormat::Jpeg => JpegEncoder::new_with_quality(to, JPEG_QUALITY)
            .write_image(image.rgb(), w, h, ExtendedColorType::Rgb8)
            .map_err(failed),
        ImageFormat::WebP => {
            WebPEncoder::new_lossless(to).write_image(image.rgb(), w, h, ExtendedColorType::Rgb8).map_err(failed)
        }
    }
}

fn encode_png(image: &Image, metadata: &PngMetadata, to: &mut impl Write) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(to, image.width() as u32, image.height() as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // The default takes several times as long to save a tenth of the size.
    encoder.set_compression(png::Compression::Fast);
    for (keyword, text) in [("parameters", &metadata.parameters), ("braid", &metadata.braid)] {
        let Some(text) = text else { continue };
        // A zero byte would end the text.
        let text = text.replace('\0', "\u{fffd}");
        // tEXt is Latin-1 and every reader knows it; iTXt is UTF-8.
        if text.chars().all(|c| c <= '\u{ff}') {
            encoder.add_text_chunk(keyword.into(), text)?;
        } else {
            encoder.add_itxt_chunk(keyword.into(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.rgb())?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::image::AlphaMode;
    use std::fs;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn sample() -> Image {
        let rgb = (0..40 * 30).flat_map(|i| [(i % 40 * 6) as u8, (i / 40 * 8) as u8, 90]).collect();
        Image::new(40, 30, rgb).unwrap()
    }

    #[test]
    fn format_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        for (name, tolerance) in [("a.png", 0), ("a.webp", 0), ("a.jpg", 6), ("b.JPEG", 6)] {
            let path = folder.path().join(name);
            sample().save(&path).unwrap();
            let read = Image::open(&path, AlphaMode::Ignore).unwrap();
            assert_eq!((read.width(), read.height()), (40, 30));
            let worst = read.rgb().iter().zip(sample().rgb()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(tolerance), "{name}: {worst:?}");
        }
        assert_eq!(names(folder.path()), ["a.jpg", "a.png", "a.webp", "b.JPEG"]);
    }

    #[test]
    fn other_extensions() {
        for name in ["a", "a.gif", ".png", "a.png.txt"] {
            assert!(matches!(sample().save(name), Err(Error::Parameter { .. })), "{name}");
        }
    }

    #[test]
    fn format_side_limits() {
        let folder = tempfile::tempdir().unwrap();
        let long = Image::new(16_384, 1, vec![7; 16_384 * 3]).unwrap();
        let error = long.save(folder.path().join("a.webp")).unwrap_err();
        assert!(error.to_string().contains("16383"), "{error}");
        assert!(names(folder.path()).is_empty());
        long.save(folder.path().join("a.png")).unwrap();
    }

    #[test]
    fn text_encodings() {
        let texts = PngMetadata {
            parameters: Some("caf\u{e9}\nSteps: 50, Seed: 1".into()),
            braid: Some("{\"prompt\":\"\u{732b}\0\"}".into()),
        };
        let mut bytes = Vec::new();
        encode(&sample(), ImageFormat::Png, &texts, &mut bytes).unwrap();
        let reader = png::Decoder::new(io::Cursor::new(&bytes)).read_info().unwrap();
        let info = reader.info();
        let latin = &info.uncompressed_latin1_text[0];
        assert_eq!((latin.keyword.as_str(), latin.text.as_str()), ("parameters", "caf\u{e9}\nSteps: 50, Seed: 1"));
        let utf8 = &info.utf8_text[0];
        assert_eq!(utf8.keyword, "braid");
        assert_eq!(utf8.get_text().unwrap(), "{\"prompt\":\"\u{732b}\u{fffd}\"}");
    }
}
