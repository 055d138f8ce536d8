//! The demo's sheet: tiles with round corners under their labels.

use super::canvas::Canvas;
use crate::error::Result;
use crate::inputs::image::Image;
use crate::inputs::resize::{Resampling, resize};

const GAP: usize = 20;
const MARGIN: usize = 36;
/// The height of a line of labels.
const LINE: usize = 28;
/// Six tiles of a strip are as wide as four of the block.
const STRIP: usize = 128;
const BLOCK: usize = (6 * STRIP + 2 * GAP) / 4;
const WIDTH: usize = 2 * MARGIN + 6 * STRIP + 5 * GAP;

/// The place of a tile: its upper left corner and its side, in pixels. Labels stand above.
#[derive(Clone, Copy)]
pub struct Place {
    x: usize,
    y: usize,
    side: usize,
}

impl Place {
    /// A tile of the block, which has four columns.
    pub fn block(row: usize, column: usize) -> Self {
        Self { x: MARGIN + column * (BLOCK + GAP), y: MARGIN + LINE + row * (BLOCK + GAP), side: BLOCK }
    }

    /// A tile of a strip, which has six, below `rows` of the block and `strips` others.
    pub fn strip(rows: usize, strips: usize, column: usize) -> Self {
        let block = if rows > 0 { LINE + rows * (BLOCK + GAP) } else { 0 };
        let above = block + strips * (LINE + STRIP + GAP);
        Self { x: MARGIN + column * (STRIP + GAP), y: MARGIN + above + LINE, side: STRIP }
    }
}

/// A sheet under construction.
pub struct Sheet(Canvas);

impl Sheet {
    /// An empty sheet with room for `rows` of the block and `strips`, of which there is at least one.
    pub fn new(rows: usize, strips: usize) -> Self {
        Self(Canvas::new(WIDTH, Place::strip(rows, strips - 1, 0).y + STRIP + MARGIN))
    }

    /// Draws the middle square of an image at a tile.
    pub fn tile(&mut self, at: Place, image: &Image) -> Result<()> {
        let (w, h) = (image.width(), image.height());
        let side = w.min(h);
        let (left, top) = ((w - side) / 2, (h - side) / 2);
        let rows = (top..top + side).flat_map(|y| &image.rgb()[(y * w + left) * 3..][..side * 3]);
        let tile = resize(&Image::new(side, side, rows.copied().collect())?, at.side, at.side, Resampling::Bicubic)?;
        for (i, rgb) in tile.rgb().chunks_exact(3).enumerate() {
            let (x, y) = (i % at.side, i / at.side);
            self.0.put(at.x + x, at.y + y, rgb, corner(x, y, at.side));
        }
        Ok(())
    }

    /// Writes a label above a tile, cut to its width.
    pub fn label(&mut self, at: Place, text: &str) {
        self.0.text(at.x, at.y - LINE, at.side, text);
    }

    /// The finished image.
    pub fn finish(self) -> Result<Image> {
        self.0.finish()
    }
}

/// The share of a pixel that lies within a square with round corners.
fn corner(x: usize, y: usize, side: usize) -> f32 {
    const RADIUS: f32 = 12.0;
    let beyond = |v: usize| {
        let v = v as f32 + 0.5;
        (RADIUS - v).max(v - (side as f32 - RADIUS)).max(0.0)
    };
    (RADIUS + 0.5 - beyond(x).hypot(beyond(y))).clamp(0.0, 1.0)
}
