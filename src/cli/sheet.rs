//! The demo's sheet: tiles with round corners under their labels.

use crate::error::Result;
use crate::inputs::image::Image;
use crate::inputs::resize::{Resampling, resize};
use font8x8::UnicodeFonts;

const GAP: usize = 20;
const MARGIN: usize = 36;
/// The height of a line of labels; a letter is 8 pixels, doubled.
const LINE: usize = 28;
const LETTER: usize = 16;
/// Six tiles of a strip are as wide as four of the block.
const STRIP: usize = 128;
const BLOCK: usize = (6 * STRIP + 2 * GAP) / 4;
const WIDTH: usize = 2 * MARGIN + 6 * STRIP + 5 * GAP;
const PAPER: [u8; 3] = [246, 244, 240];
const INK: [u8; 3] = [43, 51, 66];

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
pub struct Sheet {
    height: usize,
    rgb: Vec<u8>,
}

impl Sheet {
    /// An empty sheet with room for `rows` of the block and `strips`, of which there is at least one.
    pub fn new(rows: usize, strips: usize) -> Self {
        let height = Place::strip(rows, strips - 1, 0).y + STRIP + MARGIN;
        Self { height, rgb: PAPER.repeat(WIDTH * height) }
    }

    fn put(&mut self, x: usize, y: usize, color: &[u8], alpha: f32) {
        for (v, c) in self.rgb[(y * WIDTH + x) * 3..][..3].iter_mut().zip(color) {
            *v = (f32::from(*v) * (1.0 - alpha) + f32::from(*c) * alpha).round() as u8;
        }
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
            self.put(at.x + x, at.y + y, rgb, corner(x, y, at.side));
        }
        Ok(())
    }

    /// Writes a label above a tile, cut to its width; letters that the font lacks are left blank.
    pub fn label(&mut self, at: Place, text: &str) {
        for (n, c) in text.chars().take(at.side / LETTER).enumerate() {
            for (row, bits) in font8x8::BASIC_FONTS.get(c).unwrap_or_default().into_iter().enumerate() {
                for i in (0..2 * LETTER).filter(|i| bits >> (i % LETTER / 2) & 1 == 1) {
                    self.put(at.x + n * LETTER + i % LETTER, at.y - LINE + 2 * row + i / LETTER, &INK, 1.0);
                }
            }
        }
    }

    /// The finished image.
    pub fn finish(self) -> Result<Image> {
        Image::new(WIDTH, self.height, self.rgb)
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
