//! Upsampling of components of fewer samples than the image has pixels.

use super::blocks::Plane;
use super::frame::{Component, Frame};

/// Computes row `y` of a component at the full width.
pub(super) fn row<'a>(
    frame: &Frame,
    component: &Component,
    plane: &'a Plane,
    y: usize,
    out: &'a mut Vec<u8>,
) -> &'a [u8] {
    let (across, down) = (frame.max.0 / component.h, frame.max.1 / component.v);
    let near = plane.row(y / down);
    if (across, down) == (1, 1) {
        return near;
    }
    let (width, height) = component.samples;
    // The nearest other row; the edge repeats.
    let other = || plane.row(if y.is_multiple_of(2) { (y / 2).saturating_sub(1) } else { (y / 2 + 1).min(height - 1) });
    out.clear();
    match (across, down) {
        (2, 1) if width > 2 => triangle(out, width, |x| u32::from(near[x]), [1, 2], 2),
        (2, 2) if width > 2 => {
            let other = other();
            let column = |x: usize| 3 * u32::from(near[x]) + u32::from(other[x]);
            triangle(out, width, column, [8, 7], 4);
        }
        (1, 2) => {
            let bias = 1 + y as u32 % 2;
            let pairs = near.iter().zip(other()).take(width);
            out.extend(pairs.map(|(&near, &other)| ((3 * u32::from(near) + u32::from(other) + bias) >> 2) as u8));
        }
        _ => out.extend(near[..width].iter().flat_map(|&v| std::iter::repeat_n(v, across))),
    }
    out
}

/// Doubles `width` values: three quarters of the nearest and one of the next, the edges repeated. `bias` is that of even
/// and of odd pixels, before the division by 2^`shift`.
fn triangle(out: &mut Vec<u8>, width: usize, value: impl Fn(usize) -> u32, bias: [u32; 2], shift: u32) {
    let (mut left, mut this) = (value(0), value(0));
    for x in 0..width {
        let right = if x + 1 < width { value(x + 1) } else { this };
        out.extend([((3 * this + left + bias[0]) >> shift) as u8, ((3 * this + right + bias[1]) >> shift) as u8]);
        (left, this) = (this, right);
    }
}
