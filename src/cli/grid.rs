//! Images in rows and columns under their labels.

use super::canvas::{Canvas, LETTER};
use crate::error::{Error, Field, Result};
use crate::inputs::image::Image;
use crate::pipeline::MAX_SIDE;

const GAP: usize = 8;
const MARGIN: usize = 12;
/// The height of the columns' labels.
const HEAD: usize = LETTER + GAP;
/// The most letters of a row's label.
const MOST_LETTERS: usize = 24;

/// The places of a grid's images, all of one size.
pub struct Grid {
    columns: Vec<String>,
    rows: Vec<String>,
    /// Width and height of an image.
    tile: (usize, usize),
}

impl Grid {
    /// A grid with these labels above its columns and before its rows.
    ///
    /// # Errors
    /// [`Error::Parameter`] where it would be too large for an image file.
    pub fn new(columns: Vec<String>, rows: Vec<String>, tile: (usize, usize)) -> Result<Self> {
        let grid = Self { columns, rows, tile };
        let (width, height) = grid.size();
        if width.max(height) > MAX_SIDE {
            let what = format!(
                "the grid would have {width}x{height} pixels, more than {MAX_SIDE} a side; draw fewer or smaller images"
            );
            return Err(Error::parameter(Field::Width, what));
        }
        Ok(grid)
    }

    /// The width of the rows' labels.
    fn side(&self) -> usize {
        let letters = self.rows.iter().map(|label| label.chars().count()).max().unwrap_or(0);
        if letters == 0 { 0 } else { letters.min(MOST_LETTERS) * LETTER + GAP }
    }

    /// Width and height of the whole.
    pub fn size(&self) -> (usize, usize) {
        let span = |count: usize, each: usize| count * each + count.saturating_sub(1) * GAP;
        let (width, height) = (span(self.columns.len(), self.tile.0), span(self.rows.len(), self.tile.1));
        (2 * MARGIN + self.side() + width, 2 * MARGIN + HEAD + height)
    }

    /// Draws the images, row by row.
    ///
    /// # Errors
    /// Those of [`Image::new`].
    pub fn draw<'a>(&self, images: impl Iterator<Item = &'a Image>) -> Result<Image> {
        let (width, height) = self.size();
        let mut canvas = Canvas::new(width, height);
        let x = |column: usize| MARGIN + self.side() + column * (self.tile.0 + GAP);
        let y = |row: usize| MARGIN + HEAD + row * (self.tile.1 + GAP);
        for (column, label) in self.columns.iter().enumerate() {
            canvas.text(x(column), MARGIN, self.tile.0, label);
        }
        for (row, label) in self.rows.iter().enumerate() {
            canvas.text(MARGIN, y(row) + self.tile.1.saturating_sub(LETTER) / 2, MOST_LETTERS * LETTER, label);
        }
        for (i, image) in images.enumerate() {
            canvas.image(x(i % self.columns.len()), y(i / self.columns.len()), image);
        }
        canvas.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let labels = |labels: &[&str]| labels.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
        let tile = |value: u8| Image::new(20, 10, vec![value; 600]).unwrap();
        let grid = Grid::new(labels(&["a", "b", "c"]), labels(&["x", "yy"]), (20, 10)).unwrap();
        let tiles: Vec<_> = (1..=6).map(tile).collect();
        let image = grid.draw(tiles.iter()).unwrap();
        assert_eq!((image.width(), image.height()), (24 + 40 + 60 + 16, 24 + 24 + 20 + 8));
        let at = |x: usize, y: usize| image.rgb()[(y * image.width() + x) * 3];
        assert_eq!([at(52, 36), at(71, 45), at(72, 36)], [1, 1, 246]);
        assert_eq!([at(80, 36), at(108, 36), at(52, 54), at(127, 63)], [2, 3, 4, 6]);
        let none = Grid::new(labels(&["a"]), labels(&[""]), (20, 10)).unwrap();
        assert_eq!(none.draw(tiles.iter().take(1)).unwrap().width(), 24 + 20);
        let text = Grid::new(labels(&["a"; 20]), labels(&["x"]), (1024, 1024)).map(drop).unwrap_err().to_string();
        assert!(text.contains("20"), "{text}");
    }
}
