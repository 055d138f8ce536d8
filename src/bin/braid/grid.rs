//! The demo's sheet and the reference pictures that it draws itself.

use braid::error::Result;
use braid::inputs::picture::Picture;

/// The side of a picture on the sheet.
pub const TILE: usize = 192;
const GAP: usize = 20;
const MARGIN: usize = 36;
/// The height of the gauges above the columns.
const HEAD: usize = 28;
const PAPER: [f32; 3] = [0.965, 0.957, 0.941];
const INK: [f32; 3] = [0.17, 0.20, 0.26];

type Color = [f32; 3];

fn mix(a: Color, b: Color, t: f32) -> Color {
    let t = t.clamp(0.0, 1.0);
    [0, 1, 2].map(|i| a[i] + (b[i] - a[i]) * t)
}

/// A square picture of a colour for each point; x and y run from 0 to 1.
fn draw(color: impl Fn(f32, f32) -> Color) -> Result<Picture> {
    let mut rgb = Vec::with_capacity(TILE * TILE * 3);
    for i in 0..TILE * TILE {
        let at = |v: usize| (v as f32 + 0.5) / TILE as f32;
        rgb.extend(color(at(i % TILE), at(i / TILE)).map(|v| (v.clamp(0.0, 1.0) * 255.0).round() as u8));
    }
    Picture::new(TILE, TILE, rgb)
}

/// 1 inside, 0 outside, smooth over a pixel; `distance` is negative inside.
fn cover(distance: f32) -> f32 {
    (0.5 - distance * TILE as f32).clamp(0.0, 1.0)
}

/// Three pictures: a sun over hills, waves, and a flower.
pub fn references() -> Result<[Picture; 3]> {
    let sun = draw(|x, y| {
        let sky = mix([0.98, 0.80, 0.46], [0.86, 0.33, 0.36], y * 1.3);
        let disc = mix(sky, [1.0, 0.95, 0.78], cover(((x - 0.62).powi(2) + (y - 0.40).powi(2)).sqrt() - 0.17));
        let far = mix(disc, [0.47, 0.22, 0.36], cover(0.66 + 0.06 * (x * 7.0).sin() - y));
        mix(far, [0.22, 0.13, 0.27], cover(0.80 + 0.05 * (x * 5.0 + 2.0).sin() - y))
    })?;
    let waves = draw(|x, y| {
        let row = y * 7.0 + 0.28 * (x * 12.6 + (y * 7.0).floor() * 1.7).sin();
        let shades = [[0.05, 0.23, 0.39], [0.09, 0.40, 0.56], [0.23, 0.60, 0.70], [0.78, 0.91, 0.90]];
        shades[(row.floor() as i64).rem_euclid(4) as usize]
    })?;
    let flower = draw(|x, y| {
        let (x, y) = (x - 0.5, y - 0.5);
        let (radius, angle) = ((x * x + y * y).sqrt(), y.atan2(x));
        let ground = mix([0.16, 0.36, 0.27], [0.38, 0.58, 0.36], radius * 1.4);
        let petals = mix(ground, [0.95, 0.88, 0.93], cover(radius - 0.26 - 0.13 * (angle * 8.0).cos()));
        let inner = mix(petals, [0.82, 0.42, 0.60], cover(radius - 0.15 - 0.05 * (angle * 8.0).cos()));
        mix(inner, [0.97, 0.76, 0.24], cover(radius - 0.08))
    })?;
    Ok([sun, waves, flower])
}

/// The middle square of a picture, as large as a tile.
pub fn tile(picture: &Picture) -> Result<Picture> {
    let (w, h) = (picture.width(), picture.height());
    let side = w.min(h);
    let (left, top) = ((w - side) / 2, (h - side) / 2);
    let rows = (top..top + side).flat_map(|y| &picture.rgb()[(y * w + left) * 3..][..side * 3]);
    braid::inputs::resize::resize(&Picture::new(side, side, rows.copied().collect())?, TILE, TILE)
}

/// Rows of tiles with round corners. Above every column but the first, a gauge of how much the reference weighs.
pub fn sheet(rows: &[Vec<Picture>], gauges: &[f32]) -> Result<Picture> {
    let columns = rows.first().map_or(0, Vec::len);
    // The references stand a little apart.
    let left = |c: usize| MARGIN + c * (TILE + GAP) + if c > 0 { GAP } else { 0 };
    let width = left(columns) - GAP + MARGIN;
    let height = MARGIN + HEAD + rows.len() * (TILE + GAP) - GAP + MARGIN;
    let mut sheet: Vec<u8> = PAPER.map(|v| (v * 255.0) as u8).repeat(width * height);
    let mut put = |x: usize, y: usize, color: Color, alpha: f32| {
        for (i, v) in sheet[(y * width + x) * 3..][..3].iter_mut().enumerate() {
            *v = (f32::from(*v) * (1.0 - alpha) + color[i] * 255.0 * alpha).round() as u8;
        }
    };
    for (c, gauge) in gauges.iter().enumerate() {
        let (filled, top) = ((gauge * TILE as f32).round() as usize, MARGIN);
        for x in 0..TILE {
            for y in 0..6 {
                let color = if x < filled { INK } else { mix(PAPER, INK, 0.15) };
                put(left(c + 1) + x, top + y, color, corner(x, y, TILE, 6, 3.0));
            }
        }
    }
    for (r, row) in rows.iter().enumerate() {
        for (c, picture) in row.iter().enumerate() {
            for (i, rgb) in picture.rgb().chunks_exact(3).enumerate() {
                let (x, y) = (i % TILE, i / TILE);
                let color = [0, 1, 2].map(|k| f32::from(rgb[k]) / 255.0);
                let top = MARGIN + HEAD + r * (TILE + GAP);
                put(left(c) + x, top + y, color, corner(x, y, TILE, TILE, 14.0));
            }
        }
    }
    Picture::new(width, height, sheet)
}

/// How much of a pixel lies within a rectangle with round corners.
fn corner(x: usize, y: usize, width: usize, height: usize, radius: f32) -> f32 {
    let beyond = |v: usize, side: usize| {
        let v = v as f32 + 0.5;
        (radius - v).max(v - (side as f32 - radius)).max(0.0)
    };
    (radius + 0.5 - beyond(x, width).hypot(beyond(y, height))).clamp(0.0, 1.0)
}
