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

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of diffusers 0.42.1's `IPAdapterMaskProcessor.downsample(mask, 1, 20, 1)`: the rows that the aspect gives, 3, do not
    /// divide 20, so that there are 4.
    #[test]
    fn rows_that_do_not_divide_the_pixels() {
        let grey = (0..7u32).flat_map(|y| (0..9u32).map(move |x| ((x * 29 + y * 53) % 64 * 4) as u8));
        let image = Image::new(9, 7, grey.flat_map(|v| [v; 3]).collect()).unwrap();
        let values = Mask::new(&image, 9, 7).unwrap().downsample(20);
        let want = [
            0.314345, 0.795125, 0.764882, 0.623348, 0.330174, 0.43266, 0.483095, 0.441942, 0.419194, 0.526327,
            0.563138, 0.291587, 0.082077, 0.059329, 0.767061, 0.582228, 0.530949, 0.901294, 0.759761, 0.426087,
        ];
        assert_eq!(values.len(), want.len());
        for (value, want) in values.iter().zip(want) {
            assert!((value - want).abs() < 1e-6, "{value} {want}");
        }
        // Four rows of four columns leave three of 19 without a value.
        assert_eq!(Mask::new(&image, 9, 7).unwrap().downsample(19)[16..], [0.0; 3]);
    }
}
