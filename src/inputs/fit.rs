//! Fitting of an image that is not square to CLIP's square input.

use super::clip_image_processor::IMAGE_MEAN;
use super::image::Image;
use super::resize::{Resampling, resize};
use crate::error::{Field, Result};
use crate::names::named_values;
use std::borrow::Cow;

/// The treatment of a reference image that is not square, before CLIP's own preprocessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Fit {
    /// None: CLIP's preprocessing keeps the middle square.
    #[default]
    Crop,
    /// The image is padded to a square, in its middle; the padding is CLIP's mean, (123, 117, 104), which becomes 0.
    Pad,
    /// The image is stretched to a square as large as the encoder's input, by PIL's bicubic.
    Stretch,
}

named_values!(Fit, &[("crop", Fit::Crop), ("pad", Fit::Pad), ("stretch", Fit::Stretch)], Field::Fit);

impl Fit {
    /// Makes an image square for an encoder of images `size` pixels on a side; a square one stays as it is.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a size that no image can have.
    pub fn apply(self, image: &Image, size: usize) -> Result<Cow<'_, Image>> {
        match self {
            _ if image.width() == image.height() => Ok(Cow::Borrowed(image)),
            Self::Crop => Ok(Cow::Borrowed(image)),
            Self::Pad => pad(image).map(Cow::Owned),
            Self::Stretch => resize(image, size, size, Resampling::Bicubic).map(Cow::Owned),
        }
    }
}

/// Lays an image on the middle of a square.
fn pad(image: &Image) -> Result<Image> {
    let (width, height) = (image.width(), image.height());
    let side = width.max(height);
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    let color = IMAGE_MEAN.map(|mean| (mean * 255.0).round() as u8);
    let mut rgb = color.repeat(side * side);
    for (y, row) in image.rgb().chunks_exact(width * 3).enumerate() {
        rgb[((top + y) * side + left) * 3..][..row.len()].copy_from_slice(row);
    }
    Image::new(side, side, rgb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_padding() {
        // One row of padding above, two below.
        let image = Image::new(4, 1, (0..12).collect()).unwrap();
        let padded = Fit::Pad.apply(&image, 8).unwrap();
        assert_eq!((padded.width(), padded.height()), (4, 4));
        assert_eq!((&padded.rgb()[..3], &padded.rgb()[12..24]), (&[123, 117, 104][..], image.rgb()));
        assert_eq!(padded.rgb()[24..].as_chunks::<3>().0, [[123, 117, 104]; 8]);
        assert_eq!(Fit::Crop.apply(&image, 8).unwrap().into_owned(), image);
        assert_eq!(Fit::Stretch.apply(&image, 8).unwrap().rgb().len(), 8 * 8 * 3);
    }
}
