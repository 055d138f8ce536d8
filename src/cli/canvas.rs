//! An image on which tiles and letters are drawn.

use crate::error::Result;
use crate::inputs::image::Image;
use font8x8::UnicodeFonts;

/// The width of a letter and of its line, which is 8 pixels, doubled.
pub const LETTER: usize = 16;
const PAPER: [u8; 3] = [246, 244, 240];
const INK: [u8; 3] = [43, 51, 66];

/// See the module.
pub struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Canvas {
    /// An empty one.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, rgb: PAPER.repeat(width * height) }
    }

    /// Blends a pixel in.
    pub fn put(&mut self, x: usize, y: usize, color: &[u8], alpha: f32) {
        for (v, c) in self.rgb[(y * self.width + x) * 3..][..3].iter_mut().zip(color) {
            *v = (f32::from(*v) * (1.0 - alpha) + f32::from(*c) * alpha).round() as u8;
        }
    }

    /// Draws an image with its upper left corner there.
    pub fn image(&mut self, x: usize, y: usize, image: &Image) {
        for (row, pixels) in image.rgb().chunks_exact(3 * image.width()).enumerate() {
            self.rgb[((y + row) * self.width + x) * 3..][..pixels.len()].copy_from_slice(pixels);
        }
    }

    /// Writes a line of text whose upper left corner is there, cut to a width; letters that the font lacks are left blank.
    pub fn text(&mut self, x: usize, y: usize, width: usize, text: &str) {
        for (n, c) in text.chars().take(width / LETTER).enumerate() {
            for (row, bits) in font8x8::BASIC_FONTS.get(c).unwrap_or_default().into_iter().enumerate() {
                for i in (0..2 * LETTER).filter(|i| bits >> (i % LETTER / 2) & 1 == 1) {
                    self.put(x + n * LETTER + i % LETTER, y + 2 * row + i / LETTER, &INK, 1.0);
                }
            }
        }
    }

    /// The finished image.
    pub fn finish(self) -> Result<Image> {
        Image::new(self.width, self.height, self.rgb)
    }
}
