//! GIF files: the first image, as PIL shows it.

use super::image_file::{MAX_DECODED, check_size, truncated, zeroed};
use crate::error::{Error, Result};
use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};
use image::ImageFormat;
use image::metadata::Orientation;
use std::io::{Cursor, ErrorKind};
use std::num::NonZeroU64;
use std::path::Path;

/// Decodes the first image to RGB; transparent pixels become white where `on_white` is set. The rest of the screen has the
/// transparent colour, else the first one.
pub(super) fn decode(bytes: &[u8], name: &Path, on_white: bool) -> Result<(Vec<u8>, [u32; 2], Orientation)> {
    let failed = |error| {
        let what = match error {
            DecodingError::UnexpectedEof => truncated(ImageFormat::Gif),
            DecodingError::Io(e) if e.kind() == ErrorKind::UnexpectedEof => truncated(ImageFormat::Gif),
            other => format!("the GIF file cannot be decoded: {other}"),
        };
        Error::malformed(name, what)
    };
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(NonZeroU64::new(MAX_DECODED).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes));
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(failed)?;
    let screen = [decoder.width(), decoder.height()].map(u32::from);
    let Some(frame) = decoder.next_frame_info().map_err(failed)? else {
        return Err(Error::malformed(name, "the GIF file holds no image"));
    };
    let [left, top, width, height] = [frame.left, frame.top, frame.width, frame.height].map(u32::from);
    let transparent = frame.transparent;
    // An image beyond the screen enlarges it.
    let size = [screen[0].max(left + width), screen[1].max(top + height)];
    check_size(name, size[0], size[1], u64::from(size[0]) * u64::from(size[1]) * 3)?;
    check_size(name, width, height, u64::from(width) * u64::from(height))?;
    let mut indices = zeroed(width as usize * height as usize, 0)?;
    decoder.read_into_buffer(&mut indices).map_err(failed)?;

    let mut colors = [[0; 3]; 256];
    let palette = decoder.palette().map_err(failed)?;
    colors.iter_mut().zip(palette.as_chunks::<3>().0).for_each(|(color, entry)| *color = *entry);
    if palette.as_chunks::<3>().0.iter().zip(0..).all(|(entry, gray)| *entry == [gray; 3]) {
        // Gray levels in order: PIL takes the image for gray.
        colors = std::array::from_fn(|gray| [gray as u8; 3]);
    }
    if let Some(index) = transparent.filter(|_| on_white) {
        colors[usize::from(index)] = [255; 3];
    }
    let mut rgb = zeroed(size[0] as usize * size[1] as usize * 3, 0)?;
    let pixels = rgb.as_chunks_mut::<3>().0;
    pixels.fill(colors[usize::from(transparent.unwrap_or(0))]);
    let rows = pixels.chunks_exact_mut(size[0] as usize).skip(top as usize);
    for (row, indices) in rows.zip(indices.chunks_exact(width as usize)) {
        let row = &mut row[left as usize..];
        row.iter_mut().zip(indices).for_each(|(pixel, index)| *pixel = colors[usize::from(*index)]);
    }
    Ok((rgb, size, Orientation::NoTransforms))
}
