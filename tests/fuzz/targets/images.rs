//! Images.

use super::*;
use braid::inputs::clip_image_processor;
use braid::{AlphaMode, Image};
use image::ImageReader;
use std::io::Cursor;

/// The pixels that a file promises; a decoder that is asked for many takes long, which is no fault.
fn promised(input: &[u8]) -> u64 {
    let reader = ImageReader::new(Cursor::new(input)).with_guessed_format().ok();
    let plain = reader.and_then(|reader| reader.into_dimensions().ok()).map(|(w, h)| u64::from(w) * u64::from(h));
    // All frame headers, and all that look like one.
    let number = |at: usize| input.get(at..at + 2).map_or(0, |b| u64::from(b[0]) << 8 | u64::from(b[1]));
    let frames = input.windows(2).enumerate().filter(|(_, w)| w[0] == 0xff && (0xc0..=0xcf).contains(&w[1]));
    let jpeg = frames.map(|(at, _)| number(at + 5) * number(at + 7)).filter(|_| input.starts_with(b"\xff\xd8")).max();
    plain.unwrap_or(0).max(jpeg.unwrap_or(0)).max(gif(input).unwrap_or(0))
}

fn gif(input: &[u8]) -> Option<u64> {
    let mut decoder = ::gif::DecodeOptions::new().read_info(Cursor::new(input)).ok()?;
    let screen = [decoder.width(), decoder.height()].map(u64::from);
    let frame = decoder.next_frame_info().ok()??;
    let ends = [(frame.left, frame.width), (frame.top, frame.height)].map(|(a, b)| u64::from(a) + u64::from(b));
    Some(screen[0].max(ends[0]) * screen[1].max(ends[1]))
}

#[test]
fn images() {
    fuzz(&Target {
        name: "images",
        seeds: ["pictures", "pictures/jpeg", "fuzz/images"].map(|of| seeds(&format!("tests/data/{of}"))).concat(),
        words: &[
            "IHDR",
            "PLTE",
            "tRNS",
            "iCCP",
            "eXIf",
            "iTXtXML:com.adobe.xmp\0\0\0\0\0",
            "tiff:Orientation=\"6",
            "VP8X",
            "ALPH",
            "ANMF",
        ],
        longest: 1 << 14,
        repair: repair::png,
        read: Box::new(|input| {
            if promised(input) > 1 << 20 {
                return Err("large".into());
            }
            let [white, stored] =
                [AlphaMode::CompositeOnWhite, AlphaMode::Ignore].map(|a| named(Image::decode(input, FILE, a), FILE));
            assert_eq!(white.as_ref().err(), stored.as_ref().err());
            let (white, stored) = (white?, stored?);
            assert_eq!([white.width(), white.height()], [stored.width(), stored.height()]);
            assert_eq!(stored.rgb().len(), stored.width() * stored.height() * 3);
            let values = clip_image_processor::preprocess(&stored, 16);
            assert!(values.iter().all(|value| value.is_finite()));
            Ok(format!("{} by {}", size(white.width()), size(white.height())))
        }),
    });
}
