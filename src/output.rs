//! Written files: pictures, and any file that must be there whole or not at all.

use crate::error::{Error, Field, Result};
use crate::inputs::image::Image;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageError};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The quality of JPEG files, of 100.
const JPEG_QUALITY: u8 = 95;

/// A picture file's format.
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
    /// The format that a file's extension names, in either case.
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

    /// Whether the format can hold a picture of that size.
    ///
    /// # Errors
    /// [`Error::Parameter`] where a side is too long.
    pub fn check(self, width: usize, height: usize) -> Result<()> {
        let (side, longest) = (width.max(height), self.longest_side());
        if side <= longest {
            return Ok(());
        }
        let what = format!("{self:?} holds sides of up to {longest}, the picture has {side}; write a .png");
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

/// What a PNG file says of its picture; other formats carry nothing.
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
    /// [`Error::Parameter`] where the extension is none of [`ImageFormat`]'s or the format cannot hold a side so long, and
    /// those of [`write_atomic`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with_metadata(path, &PngMetadata::default())
    }

    /// As [`Image::save`]; a PNG file carries `metadata` as text, other formats carry none.
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

/// Writes a picture's bytes in a format.
///
/// # Errors
/// What `to` says, or that the format cannot hold the picture.
pub fn encode(picture: &Image, format: ImageFormat, texts: &PngMetadata, to: &mut impl Write) -> io::Result<()> {
    let (w, h) = (picture.width() as u32, picture.height() as u32);
    let failed = |e: ImageError| match e {
        ImageError::IoError(e) => e,
        other => io::Error::other(other),
    };
    match format {
        ImageFormat::Png => encode_png(picture, texts, to).map_err(|e| match e {
            png::EncodingError::IoError(e) => e,
            other => io::Error::other(other),
        }),
        ImageFormat::Jpeg => JpegEncoder::new_with_quality(to, JPEG_QUALITY)
            .write_image(picture.rgb(), w, h, ExtendedColorType::Rgb8)
            .map_err(failed),
        ImageFormat::WebP => {
            WebPEncoder::new_lossless(to).write_image(picture.rgb(), w, h, ExtendedColorType::Rgb8).map_err(failed)
        }
    }
}

fn encode_png(picture: &Image, texts: &PngMetadata, to: &mut impl Write) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(to, picture.width() as u32, picture.height() as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // The default takes several times as long to save a tenth of the size.
    encoder.set_compression(png::Compression::Fast);
    for (keyword, text) in [("parameters", &texts.parameters), ("braid", &texts.braid)] {
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
    writer.write_image_data(picture.rgb())?;
    writer.finish()
}

/// Writes a file whole or not at all.
///
/// `write` fills a new file in the same folder, which is then forced to disk and renamed to `path`, replacing what was
/// there. Where anything fails, or `write` panics, the new file is removed and an old one stays as it was. A link is
/// followed; the file has the permissions of any new file; a device or pipe is written to directly.
///
/// # Errors
/// [`Error::Io`] with the `path` asked for: what `write` or the operating system said; that `path` is a folder, or a file
/// marked read-only.
pub fn write_atomic(path: impl AsRef<Path>, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    write_whole(path, write).map_err(Error::io("write", path))
}

fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let target = match fs::metadata(path) {
        Ok(old) if old.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(old) if !old.is_file() => return write(&mut OpenOptions::new().write(true).open(path)?),
        // A rename would not heed the mark.
        Ok(old) if old.permissions().readonly() => {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file is there and marked read-only"));
        }
        Ok(_) => fs::canonicalize(path)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
        Err(e) => return Err(e),
    };
    if target.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    }
    let folder = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut temporary = Temporary::new(folder)?;
    write(&mut temporary.file)?;
    temporary.file.sync_all()?;
    fs::rename(&temporary.path, &target)?;
    temporary.kept = true;
    // The name is safe once the folder is; not every file system can do it, and the file is whole either way.
    #[cfg(unix)]
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// A new file that is removed when dropped, unless kept.
struct Temporary {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Temporary {
    fn new(folder: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!(".braid-{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = folder.join(name);
            match OpenOptions::new().write(true).read(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { path, file, kept: false }),
                // Left by a process that was killed and had this number.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::image::AlphaMode;

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
    fn every_format_is_read_back() {
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
    fn other_extensions_are_refused() {
        for name in ["a", "a.gif", ".png", "a.png.txt"] {
            assert!(matches!(sample().save(name), Err(Error::Parameter { .. })), "{name}");
        }
    }

    #[test]
    fn a_side_too_long_for_the_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let long = Image::new(16_384, 1, vec![7; 16_384 * 3]).unwrap();
        let error = long.save(folder.path().join("a.webp")).unwrap_err();
        assert!(error.to_string().contains("16383"), "{error}");
        assert!(names(folder.path()).is_empty());
        long.save(folder.path().join("a.png")).unwrap();
    }

    #[test]
    fn text_is_latin_or_utf8() {
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

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        write_atomic(&path, |f| f.write_all(b"old")).unwrap();
        let error = write_atomic(&path, |f| {
            f.write_all(b"half of the ne")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(matches!(error, Err(Error::Io { action: "write", .. })));
        let panicked = std::panic::catch_unwind(|| write_atomic(&path, |_| std::panic::resume_unwind(Box::new(()))));
        assert!(panicked.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["f"]);
        write_atomic(&path, |f| f.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn impossible_places_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &Path| write_atomic(path, |f| f.write_all(b"x"));
        assert!(write(folder.path()).is_err());
        assert!(write(&folder.path().join("none/f")).is_err());
        assert!(write(Path::new("")).is_err());
        let name = folder.path().join("x".repeat(255));
        write(&name).unwrap();
        let mut locked = fs::metadata(&name).unwrap().permissions();
        locked.set_readonly(true);
        fs::set_permissions(&name, locked).unwrap();
        assert!(write(&name).unwrap_err().to_string().contains("read-only"));
        assert_eq!(names(folder.path()), ["x".repeat(255)]);
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_devices_stay_and_permissions_are_usual() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("f"), folder.path().join("link"));
        let usual = folder.path().join("usual");
        File::create(&usual).unwrap();
        fs::write(&path, "old").unwrap();
        symlink("f", &link).unwrap();
        write_atomic(&link, |f| f.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&usual));
        write_atomic("/dev/null", |f| f.write_all(b"x")).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
}
