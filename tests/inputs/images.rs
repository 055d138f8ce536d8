//! Images against PIL and transformers (tools/goldens/make_pictures.py), and the images of the catalogue of bad inputs.

use crate::common::warnings;
use braid::Error;
use braid::inputs::clip_image_processor;
use braid::inputs::image::{AlphaMode, Image};
use braid::inputs::resize::{Resampling, resize};
use serde_json::Value;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures").join(name)
}

pub fn lines(name: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(data(name)).unwrap()).unwrap()
}

pub fn pair(value: &Value) -> [usize; 2] {
    [0, 1].map(|i| value[i].as_u64().unwrap() as usize)
}

/// The generator's pattern: byte i is i * 2654435761 >> 13.
fn noise([width, height]: [usize; 2]) -> Image {
    let rgb = (0..width as u64 * height as u64 * 3).map(|i| ((i * 2_654_435_761) >> 13) as u8).collect();
    Image::new(width, height, rgb).unwrap()
}

/// FNV-1a, 64 bits.
pub fn fnv(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash =
        bytes.into_iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// Every kind of file gives PIL's pixels: to the bit, but for lossy WebP.
#[test]
fn b40_every_kind_as_pil() {
    let mut worst = Vec::new();
    for case in lines("cases.json") {
        let name = case["name"].as_str().unwrap();
        let packed = std::fs::read(data(&format!("{name}.rgb.z"))).unwrap();
        let mut expected = Vec::new();
        flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut expected).unwrap();
        let got = Image::open(data(name), AlphaMode::Ignore).unwrap();
        assert_eq!(
            [got.width(), got.height()],
            [&case["width"], &case["height"]].map(|v| v.as_u64().unwrap() as usize)
        );
        assert_eq!(got.rgb().len(), expected.len(), "{name}");
        if let Some(white) = case["white"].as_str().filter(|_| case["tolerance"] == 0) {
            let over = Image::open(data(name), AlphaMode::CompositeOnWhite).unwrap();
            assert_eq!(fnv(over.into_rgb()), white, "{name} over white");
        }
        let off = got.rgb().iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        worst.push((name.to_string(), off, case["tolerance"].as_u64().unwrap() as u8));
    }
    assert_eq!(worst.len(), 53);
    println!("{:?}", worst.iter().filter(|w| w.1 > 0).collect::<Vec<_>>());
    let failed: Vec<_> = worst.iter().filter(|(_, off, tolerance)| off > tolerance).collect();
    assert!(failed.is_empty(), "(file, worst difference, allowed): {failed:?}");
}

#[test]
fn resampling_parity() {
    for (name, filter) in [("resize.json", Resampling::Bicubic), ("lanczos.json", Resampling::Lanczos)] {
        for case in lines(name) {
            let [width, height] = pair(&case["to"]);
            let got = resize(&noise(pair(&case["from"])), width, height, filter).unwrap();
            let head: Vec<u8> = got.rgb().iter().take(12).copied().collect();
            assert_eq!(serde_json::to_value(head).unwrap(), case["head"], "{filter:?} {case}");
            if let Some(gray) = case["gray"].as_str() {
                assert_eq!(fnv(got.luma()), gray, "{case}");
            }
            assert_eq!(fnv(got.into_rgb()), case["fnv"].as_str().unwrap(), "{filter:?} {case}");
        }
    }
}

#[test]
fn preprocessing_parity() {
    for case in lines("clip.json") {
        let size = case["size"].as_u64().unwrap() as usize;
        let got = clip_image_processor::preprocess(&noise(pair(&case["from"])), size);
        assert_eq!(got.len(), size * size * 3);
        for (a, b) in got.iter().zip(case["head"].as_array().unwrap()) {
            assert_eq!(*a, b.as_f64().unwrap() as f32, "{case}");
        }
        assert_eq!(fnv(got.iter().flat_map(|v| v.to_le_bytes())), case["fnv"].as_str().unwrap(), "{case}");
    }
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    let crc = crc32fast::hash(&body).to_be_bytes();
    [&(data.len() as u32).to_be_bytes()[..], &body, &crc].concat()
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

/// A PNG of 8-bit RGB with `rows` as its data and `extra` chunks before them.
fn png(width: u32, height: u32, rows: &[u8], extra: &[u8]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let chunks = [chunk(b"IHDR", &header), extra.to_vec(), chunk(b"IDAT", &zlib(rows)), chunk(b"IEND", b"")].concat();
    [b"\x89PNG\r\n\x1a\n", &chunks[..]].concat()
}

pub fn refused(bytes: &[u8], says: &str) {
    let start = Instant::now();
    let error = Image::decode(bytes, "bad.file", AlphaMode::Ignore).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with("bad.file: ") && text.contains(says), "{text}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// Sides that promise gigabytes are refused by the header alone.
#[test]
fn b38_huge_headers() {
    refused(&png(65_535, 65_535, &[0; 16], &[]), "65535x65535");
    refused(&png(0x7fff_ffff, 0x7fff_ffff, &[0; 16], &[]), "the PNG file has rows");
    // A JPEG whose frame header says 65535x65535.
    let mut jpeg = std::fs::read(data("ycc444.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    refused(&jpeg, "65535x65535");
    // A WebP whose metadata would take 2 GB.
    let mut webp = std::fs::read(data("exif6.webp")).unwrap();
    let chunk = webp.windows(4).rposition(|w| w == b"EXIF").unwrap();
    webp[chunk + 7] = 0x80;
    refused(&webp, "the WebP file is cut short");
}

/// Palettes without whole colours and with too many.
#[test]
fn palettes_of_other_lengths() {
    let of = |length: usize| {
        let header = [0, 0, 0, 1, 0, 0, 0, 1, 8, 3, 0, 0, 0];
        let chunks = [chunk(b"IHDR", &header), chunk(b"PLTE", &vec![7; length]), chunk(b"IDAT", &zlib(&[0, 0]))];
        [b"\x89PNG\r\n\x1a\n", &chunks.concat()[..], &chunk(b"IEND", b"")].concat()
    };
    for length in [1, 49, 769, 771, 3000] {
        refused(&of(length), &format!("a palette of {length} bytes"));
    }
    for length in [3, 768] {
        assert_eq!(Image::decode(&of(length), "x.png", AlphaMode::Ignore).unwrap().rgb(), [7; 3]);
    }
}

/// The narrowest images pass through loading and preprocessing.
#[test]
fn b39_narrow_images() {
    for name in ["1x1.png", "1x8192.png"] {
        let image = Image::open(data(name), AlphaMode::Ignore).unwrap();
        let start = Instant::now();
        let values = clip_image_processor::preprocess(&image, 224);
        assert!(values.len() == 224 * 224 * 3 && values.iter().all(|v| v.is_finite()));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

/// A JPEG that ends early is an error wherever it ends, and so are the other formats.
#[test]
fn b41_truncated_files() {
    for name in ["ycc420.jpg", "progressive.jpg", "cmyk.jpg", "exif6.jpg", "lossless.webp", "lossy.webp"] {
        let bytes = std::fs::read(data(name)).unwrap();
        // Where a WebP file's last byte is padding, it may miss; and the end marker of exif6.jpg, which PIL does without, too.
        let last = if name == "exif6.jpg" { bytes.len() - 3 } else { bytes.len() - 2 };
        for end in (0..=last).step_by(7).chain([last]) {
            let error = Image::decode(&bytes[..end], "bad.file", AlphaMode::Ignore).expect_err(name);
            assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
        }
        refused(&bytes[..bytes.len() / 2], "cut short");
    }
    for name in ["rgb8.png", "plain.gif"] {
        let bytes = std::fs::read(data(name)).unwrap();
        refused(
            &bytes[..bytes.len() / 2],
            &format!("the {} file is cut short", &name[name.len() - 3..].to_uppercase()),
        );
    }
}

/// Text that inflates to a quarter of a gigabyte is never inflated; a colour profile that does is bounded.
#[test]
fn b42_compressed_metadata() {
    let bomb = zlib(&vec![0; 1 << 28]);
    assert!(bomb.len() < 300_000);
    let text = chunk(b"iTXt", &[b"XML:com.adobe.xmp\0\x01\0\0\0", &bomb[..]].concat());
    let profile = chunk(b"iCCP", &[b"p\0\0", &bomb[..]].concat());
    let before = peak_kib();
    for extra in [text, profile] {
        // A bad profile may be skipped or refused; either way the memory is bounded.
        match Image::decode(&png(1, 1, &[0, 10, 20, 30], &extra), "bomb.png", AlphaMode::Ignore) {
            Ok(image) => assert_eq!(image.rgb(), [10, 20, 30]),
            Err(error) => assert!(matches!(error, Error::Malformed { .. }), "{error:?}"),
        }
    }
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        assert!(after < before + (200 << 10), "{before} to {after} KiB");
    }
}

/// The most memory this process has held, in KiB.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?.trim().trim_end_matches(" kB").parse().ok()
}

/// The photograph of the examples, to the byte as PIL has it.
#[test]
fn photograph() {
    let image = Image::open(data("../astronaut.jpg"), AlphaMode::Ignore).unwrap();
    assert_eq!((image.width(), image.height()), (384, 384));
    assert_eq!(fnv(image.into_rgb()), "008569f643a64d5f");
}

/// PIL's `exif_transpose` takes the orientation of XMP where EXIF has none (the pattern `tiff:Orientation(="|>)([0-9])`).
#[test]
fn orientation_in_xmp() {
    let exif = |value: u8| {
        let entry = [0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, value, 0, 0];
        chunk(b"eXIf", &[&b"MM\0*\0\0\0\x08\0\x01"[..], &entry, &[0; 4]].concat())
    };
    let xmp = |text: &str| chunk(b"iTXt", &[b"XML:com.adobe.xmp\0\0\0\0\0", text.as_bytes()].concat());
    let rows = [[0, 10, 10, 10, 20, 20, 20, 30, 30, 30], [0, 40, 40, 40, 50, 50, 50, 60, 60, 60]].concat();
    let first = |extra: &[u8]| {
        let image = Image::decode(&png(3, 2, &rows, extra), "x.png", AlphaMode::Ignore).unwrap();
        (image.width(), image.height(), image.rgb()[0])
    };
    let (attribute, element) = ("<x tiff:Orientation=\"6\"/>", "<tiff:Orientation>3</tiff:Orientation>");
    for (extra, expected) in [
        (Vec::new(), (3, 2, 10)),
        (xmp(attribute), (2, 3, 40)),
        (xmp(element), (3, 2, 60)),
        (xmp("<x tiff:Orientation=\"?\"/> tiff:Orientation"), (3, 2, 10)),
        (xmp("<x tiff:Orientation=\"9\"/>"), (3, 2, 10)),
        ([exif(1), xmp(attribute)].concat(), (3, 2, 10)),
        ([exif(3), xmp(attribute)].concat(), (3, 2, 60)),
    ] {
        assert_eq!(first(&extra), expected);
    }
}

#[test]
fn formats_of_other_decoders() {
    for (bytes, says) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0"[..], "a HEIC file"),
        (b"\xff\x0a\x12", "a JPEG XL file"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 file"),
        (b"\0\0\0\x1cftypavif", "an AVIF file"),
    ] {
        refused(bytes, says);
    }
}

/// A colour profile with a description, as text or as UTF-16.
fn profile(text: &str, unicode: bool) -> Vec<u8> {
    let mut tag = if unicode { b"mluc\0\0\0\0\0\0\0\x01\0\0\0\x0cenUS".to_vec() } else { b"desc\0\0\0\0".to_vec() };
    if unicode {
        tag.extend((2 * text.len() as u32).to_be_bytes());
        tag.extend(28u32.to_be_bytes());
        tag.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
    } else {
        tag.extend((text.len() as u32 + 1).to_be_bytes());
        tag.extend(text.bytes());
        tag.push(0);
    }
    let table = [&1u32.to_be_bytes()[..], b"desc", &144u32.to_be_bytes(), &(tag.len() as u32).to_be_bytes()].concat();
    [&[0; 128][..], &table, &tag].concat()
}

/// Profiles, inks, 16 bits and damage are told; an sRGB profile is not.
#[test]
fn warnings_of_images() {
    let told = |bytes: &[u8]| warnings(|| Image::decode(bytes, "x.png", AlphaMode::Ignore).unwrap()).1.join("\n");
    let file = |name: &str| std::fs::read(data(name)).unwrap();
    for (text, unicode) in
        [("Display P3", true), ("Adobe RGB (1998)", false), ("sRGB IEC61966-2.1", false), ("sRGB", true)]
    {
        let icc = profile(text, unicode);
        let in_png = png(1, 1, &[0, 10, 20, 30], &chunk(b"iCCP", &[b"p\0\0", &zlib(&icc)[..]].concat()));
        let segment = [b"ICC_PROFILE\0\x01\x01", &icc[..]].concat();
        let jpeg = file("gray.jpg");
        let length = (segment.len() as u16 + 2).to_be_bytes();
        let in_jpeg = [&jpeg[..2], &[0xff, 0xe2], &length, &segment, &jpeg[2..]].concat();
        for bytes in [in_png, in_jpeg] {
            let lines = told(&bytes);
            let says = format!("x.png: the embedded colour profile ({text}) is not applied");
            assert_eq!(lines.contains(&says), !text.contains("sRGB"), "{lines}");
        }
    }
    assert!(told(&file("cmyk.jpg")).contains("x.png: the image has inks (CMYK)"));
    assert!(told(&file("gray16.png")).contains("16-bit samples the upper byte counts; PIL cuts"));
    assert!(told(&file("rgb16.png")).ends_with("the upper byte counts "));
    assert!(told(&file("jpeg/restart_lost.jpg")).contains("x.png: the JPEG file is damaged"));
    for name in ["rgb8.png", "ycc420.jpg", "gray8.png", "palette.png", "plain.gif", "lossy.webp"] {
        assert_eq!(told(&file(name)), "", "{name}");
    }
}
