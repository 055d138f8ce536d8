//! Masks of image prompts as diffusers' `IPAdapterMaskProcessor` and its attention processors read them.

use super::image::Image;
use super::resize::{Resampling, resize};
use crate::error::Result;

/// A mask as large as the result, `[height, width]`: 0 is black, 1 is white.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    height: usize,
    width: usize,
    values: Vec<f32>,
}

impl Mask {
    /// Reads the grey values of an image, resized to the size of the result.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a size that no image can have.
    pub fn new(image: &Image, width: usize, height: usize) -> Result<Self> {
        let luma = match (image.width(), image.height()) == (width, height) {
            true => image.luma(),
            false => resize(image, width, height, Resampling::Lanczos)?.luma(),
        };
        Ok(Self { height, width, values: luma.into_iter().map(|grey| f32::from(grey) / 255.0).collect() })
    }

    /// The factors of a feature map's pixels, row by row. As in diffusers, the map's sides are derived from their number and the
    /// aspect of the result, and are mostly the map's own; pixels beyond are 0. Values overshoot 0 and 1 at edges.
    pub fn downsample(&self, pixels: usize) -> Vec<f32> {
        let ratio = self.width as f64 / self.height as f64;
        let rows = ((pixels as f64 / ratio).sqrt() as usize).max(1);
        let rows = rows + usize::from(!pixels.is_multiple_of(rows));
        let columns = (pixels / rows).max(1);
        let mut values = bicubic(&self.values, [self.height, self.width], [rows, columns]);
        values.resize(pixels, 0.0);
        values
    }
}

/// Resizes `[h, w]` as torch's `interpolate(mode="bicubic")` does: no antialias, corners not aligned, edges repeated.
fn bicubic(from: &[f32], [h, w]: [usize; 2], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let across = taps(w, columns);
    let line = |y: usize, (at, weights): &Taps| -> f32 {
        at.iter().zip(weights).map(|(x, weight)| from[y * w + x] * weight).sum()
    };
    let down = taps(h, rows);
    let pixel = |(ys, weights): &Taps, x: &Taps| -> f32 {
        ys.iter().zip(weights).map(|(y, weight)| line(*y, x) * weight).sum()
    };
    down.iter().flat_map(|y| across.iter().map(move |x| pixel(y, x))).collect()
}

/// Four places of a source, and their weights.
type Taps = ([usize; 4], [f32; 4]);

/// The taps of every place of a result.
fn taps(source: usize, result: usize) -> Vec<Taps> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = source as f32 / result as f32;
    let tap = |i: usize| {
        let x = scale * (i as f32 + 0.5) - 0.5;
        let first = x.floor();
        let t = x - first;
        let place = |k: isize| (first as isize + k).clamp(0, source as isize - 1) as usize;
        ([-1, 0, 1, 2].map(place), [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)])
    };
    (0..result).map(tap).collect()
}
