//! Colours: components to RGB.

use super::blocks::Plane;
use super::fault::{Result, zeros};
use super::frame::Frame;
use super::markers::Segments;
use super::upsample;

/// The meaning of the components.
enum Space {
    Gray,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

impl Space {
    fn of(frame: &Frame, segments: &Segments) -> Self {
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        match (ids.len(), segments.adobe) {
            (1, _) => Self::Gray,
            (4, None | Some(0)) => Self::Cmyk,
            (4, _) => Self::Ycck,
            _ if segments.jfif => Self::YCbCr,
            (_, Some(0)) => Self::Rgb,
            (_, None) if ids == *b"RGB" => Self::Rgb,
            _ => Self::YCbCr,
        }
    }
}

/// Computes the image.
pub(super) fn to_rgb(frame: &Frame, segments: &Segments, planes: &[Plane]) -> Result<Vec<u8>> {
    let space = Space::of(frame, segments);
    let mut rgb = zeros(frame.width * frame.height * 3, 0)?;
    let mut buffers = vec![Vec::new(); planes.len()];
    for (y, out) in rgb.chunks_exact_mut(3 * frame.width).enumerate() {
        let rows: Vec<&[u8]> = (frame.components.iter().zip(planes).zip(&mut buffers))
            .map(|((component, plane), buffer)| upsample::row(frame, component, plane, y, buffer))
            .collect();
        let pixels = out.as_chunks_mut::<3>().0;
        match (&space, &rows[..]) {
            (Space::Gray, [gray, ..]) => pixels.iter_mut().zip(*gray).for_each(|(to, &v)| *to = [v; 3]),
            (Space::Rgb, [r, g, b, ..]) => {
                pixels.iter_mut().enumerate().for_each(|(x, to)| *to = [r[x], g[x], b[x]]);
            }
            (Space::YCbCr, [y, cb, cr, ..]) => {
                pixels.iter_mut().enumerate().for_each(|(x, to)| *to = from_ycc(y[x], cb[x], cr[x]));
            }
            // PIL takes all inks as Adobe stores them: 255 for none.
            (Space::Cmyk, [c, m, y, k]) => {
                pixels.iter_mut().enumerate().for_each(|(x, to)| *to = from_inks([!c[x], !m[x], !y[x]], k[x]));
            }
            (Space::Ycck, [y, cb, cr, k]) => {
                pixels.iter_mut().enumerate().for_each(|(x, to)| *to = from_inks(from_ycc(y[x], cb[x], cr[x]), k[x]));
            }
            _ => {}
        }
    }
    Ok(rgb)
}

/// Converts with 16 bits of fraction.
fn from_ycc(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91_881 * cr + 32_768) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + 32_768) >> 16);
    let blue = y + ((116_130 * cb + 32_768) >> 16);
    [red, green, blue].map(|v| v.clamp(0, 255) as u8)
}

/// Converts as PIL: each ink takes its share of what the black one leaves.
fn from_inks(inks: [u8; 3], left: u8) -> [u8; 3] {
    inks.map(|ink| {
        let product = u32::from(ink) * u32::from(left) + 128;
        left - (((product >> 8) + product) >> 8) as u8
    })
}
