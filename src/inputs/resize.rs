//! PIL's resampling, to the bit.
//!
//! The filter is widened by the scale where the image shrinks (antialiasing). Rows and columns are resampled one after
//! the other; weights are integers of 22 fractional bits and each pass rounds to 8 bits.
//!
//! Sources of the filters: R. Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 29 (1981);
//! C. Lanczos, "Applied analysis" (1956), the sigma factors.

use crate::error::{Error, Field, Result};
use crate::inputs::image::{Image, MAX_PIXELS};
use crate::parallel;
use std::f64::consts::PI;
use std::ops::Range;

/// 32 bits hold a sum of 8-bit samples times weights of this many fractional bits, with 2 bits to spare.
const FRACTION: u32 = 32 - 8 - 2;
/// Added so that the final shift rounds.
const HALF: i32 = 1 << (FRACTION - 1);

/// A filter, named as in PIL's `Image.Resampling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampling {
    /// Keys' cubic with a = -1/2.
    Bicubic,
    /// A sinc windowed by the middle lobe of a three times wider one.
    Lanczos,
}

impl Resampling {
    /// The distance beyond which the filter is 0.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => cubic(x),
            Self::Lanczos => lanczos(x),
        }
    }
}

/// Stretches an image to `width` x `height`, as PIL's `Image.resize((width, height), filter)`.
///
/// # Errors
/// [`Error::Parameter`] where a side is 0 or there are more than [`MAX_PIXELS`].
pub fn resize(image: &Image, width: usize, height: usize, filter: Resampling) -> Result<Image> {
    match width.checked_mul(height) {
        Some(n) if n > 0 && n as u64 <= MAX_PIXELS => {
            let rgb = resize_region(image, [width, height], 0..width, 0..height, filter);
            Image::new(width, height, rgb)
        }
        _ => {
            let what =
                format!("sides must be at least 1 with at most {MAX_PIXELS} pixels in all, got {width}x{height}");
            Err(Error::parameter(Field::Resize, what))
        }
    }
}

/// Computes the pixels of columns `xs` and rows `ys` of the image stretched to `size` (width, height) and no others,
/// so `size` may be far larger than memory.
pub(crate) fn resize_region(
    image: &Image,
    size: [usize; 2],
    xs: Range<usize>,
    ys: Range<usize>,
    filter: Resampling,
) -> Vec<u8> {
    let (from, to) = ([image.width(), image.height()], size);
    let columns = FilterWeights::new(from[0], to[0], xs, filter);
    let rows = FilterWeights::new(from[1], to[1], ys, filter);
    let source = PixelRows { rgb: image.rgb(), width: from[0], first: [0, 0] };
    if columns_first(from, to) {
        let (left, right) = columns.reach();
        let narrowed = mix_columns(source, &rows, left..right);
        mix_rows(PixelRows { rgb: &narrowed, width: right - left, first: [left, 0] }, &columns, 0..rows.count())
    } else {
        let (top, bottom) = rows.reach();
        let narrowed = mix_rows(source, &columns, top..bottom);
        let width = columns.count();
        mix_columns(PixelRows { rgb: &narrowed, width, first: [0, top] }, &rows, 0..width)
    }
}

/// Whether the columns are resampled before the rows, which changes the rounding: where that loses the most pixels.
///
/// The rule is that of Pillow 13.0, found by trial. Pillow up to 12.1 always takes the rows first, and 12.2 and 12.3
/// all but images a hundred times as tall as wide; where the order differs, so do the values, by a few of 255 steps.
fn columns_first(from: [usize; 2], to: [usize; 2]) -> bool {
    let lost = |i: usize| from[i] as i128 - to[i] as i128;
    lost(1) > 0 && lost(1) > 2 * lost(0)
}

/// The threads that so many bytes of a result are worth.
fn threads(bytes: usize) -> usize {
    const EACH: usize = 1 << 16;
    bytes / EACH + 1
}

/// Some rows and columns of an image.
#[derive(Clone, Copy)]
struct PixelRows<'a> {
    rgb: &'a [u8],
    width: usize,
    /// The column and the row of the image that the first is.
    first: [usize; 2],
}

/// Resamples the image's rows `range`, each along its length.
fn mix_rows(source: PixelRows, weights: &FilterWeights, range: Range<usize>) -> Vec<u8> {
    let stride = weights.count() * 3;
    let mut out = vec![0u8; range.len() * stride];
    let threads = threads(out.len());
    parallel::for_each(threads, out.chunks_exact_mut(stride.max(1)).zip(range), |(to, y)| {
        let begin = (y - source.first[1]) * source.width * 3;
        let pixels = source.rgb[begin..begin + source.width * 3].as_chunks::<3>().0;
        for (to, (start, weights)) in to.as_chunks_mut::<3>().0.iter_mut().zip(weights.iter()) {
            let mut sum = [HALF; 3];
            for (pixel, &w) in pixels[start - source.first[0]..].iter().zip(weights) {
                (0..3).for_each(|c| sum[c] += i32::from(pixel[c]) * w);
            }
            *to = sum.map(clip);
        }
    });
    out
}

/// Resamples the image's columns `range`, each along its length.
fn mix_columns(source: PixelRows, weights: &FilterWeights, range: Range<usize>) -> Vec<u8> {
    let stride = range.len() * 3;
    let left = (range.start - source.first[0]) * 3;
    let mut out = vec![0u8; weights.count() * stride];
    let threads = threads(out.len());
    parallel::for_each(threads, out.chunks_exact_mut(stride.max(1)).enumerate(), |(y, to)| {
        let (start, weights) = weights.at(y);
        let mut sums = vec![HALF; stride];
        for (row, &w) in source.rgb.chunks_exact(source.width * 3).skip(start - source.first[1]).zip(weights) {
            let row = &row[left..left + stride];
            sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += i32::from(v) * w);
        }
        to.iter_mut().zip(sums).for_each(|(to, sum)| *to = clip(sum));
    });
    out
}

fn clip(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

/// The first input position and the weights of each output position.
struct FilterWeights {
    starts: Vec<usize>,
    /// Position i has the weights `ends[i - 1]..ends[i]`.
    ends: Vec<usize>,
    weights: Vec<i32>,
}

impl FilterWeights {
    /// Computes the weights of the positions `range` of a side of `from` pixels stretched to `to`.
    fn new(from: usize, to: usize, range: Range<usize>, filter: Resampling) -> Self {
        let mut this = Self { starts: Vec::new(), ends: Vec::new(), weights: Vec::new() };
        // A side that keeps its length is left alone by PIL; the filters give the same, as their zeros are exact or too small
        // for a weight.
        let scale = from as f64 / to as f64;
        let widened = scale.max(1.0);
        let support = filter.support() * widened;
        let inverse = 1.0 / widened;
        for i in range {
            let center = (i as f64 + 0.5) * scale;
            // Casts saturate at 0 and cut towards it, both as wanted.
            let start = ((center - support + 0.5) as usize).min(from - 1);
            let end = ((center + support + 0.5) as usize).clamp(start + 1, from);
            let weight = |x: usize| filter.at((x as f64 - center + 0.5) * inverse);
            let total: f64 = (start..end).map(weight).sum();
            this.weights.extend((start..end).map(|x| {
                let w = if total == 0.0 { weight(x) } else { weight(x) / total };
                let fixed = w * f64::from(1 << FRACTION);
                (if fixed < 0.0 { fixed - 0.5 } else { fixed + 0.5 }) as i32
            }));
            this.starts.push(start);
            this.ends.push(this.weights.len());
        }
        this
    }

    fn count(&self) -> usize {
        self.starts.len()
    }

    fn at(&self, i: usize) -> (usize, &[i32]) {
        let begin = if i == 0 { 0 } else { self.ends[i - 1] };
        (self.starts[i], &self.weights[begin..self.ends[i]])
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        (0..self.count()).map(|i| self.at(i))
    }

    /// Finds the first input position that has a weight, and the one after the last.
    fn reach(&self) -> (usize, usize) {
        let first = self.starts.first().copied().unwrap_or(0);
        (first, self.iter().map(|(start, w)| start + w.len()).max().unwrap_or(first))
    }
}

/// Evaluates Keys' cubic, a = -1/2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Evaluates the sinc of three lobes.
fn lanczos(x: f64) -> f64 {
    const LOBES: f64 = 3.0;
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(width: usize, height: usize) -> Image {
        let rgb = (0..width * height * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        Image::new(width, height, rgb).unwrap()
    }

    #[test]
    fn same_size() {
        let image = pattern(7, 5);
        for filter in [Resampling::Bicubic, Resampling::Lanczos] {
            assert_eq!(resize(&image, 7, 5, filter).unwrap(), image);
        }
    }

    #[test]
    fn region() {
        let image = pattern(13, 9);
        // Rows first, columns first.
        for (size, ys) in [([40, 31], 8..31), ([40, 6], 2..5)] {
            let whole = resize(&image, size[0], size[1], Resampling::Bicubic).unwrap();
            let part = resize_region(&image, size, 5..17, ys.clone(), Resampling::Bicubic);
            let cut: Vec<u8> = ys.flat_map(|y| whole.rgb()[(y * 40 + 5) * 3..(y * 40 + 17) * 3].to_vec()).collect();
            assert_eq!(part, cut);
        }
    }

    #[test]
    fn impossible_sizes() {
        let image = pattern(2, 2);
        for (w, h) in [(0, 4), (4, 0), (1 << 15, 1 << 14), (usize::MAX, 2)] {
            assert!(matches!(resize(&image, w, h, Resampling::Lanczos), Err(Error::Parameter { .. })), "{w}x{h}");
        }
    }
}
