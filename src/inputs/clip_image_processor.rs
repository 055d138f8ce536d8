//! Preprocessing for CLIP's image encoders, as transformers' `CLIPImageProcessor`.

use crate::inputs::image::Image;
use crate::inputs::resize::resize_region;

/// The mean of each channel over CLIP's training images, in 0..1.
pub const IMAGE_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// The standard deviation of each channel.
pub const IMAGE_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Computes the pixel values of an image, `[size, size, 3]`: shortest side to `size` by PIL's bicubic, centre cropped,
/// normalised.
///
/// Equals transformers' `CLIPImageProcessorPil` (which has the channels first) to the bit. Only the part that the crop
/// keeps is computed, so an image of 1x8192 costs no more than another.
pub fn preprocess(image: &Image, size: usize) -> Vec<f32> {
    let (width, height) = (image.width(), image.height());
    let (short, long) = (width.min(height), width.max(height));
    // The longer side is cut to an integer, not rounded.
    let stretched = (size as f64 * long as f64 / short as f64) as usize;
    let [w, h] = if width <= height { [size, stretched] } else { [stretched, size] };
    let (left, top) = ((w - size) / 2, (h - size) / 2);
    let rgb = resize_region(image, [w, h], left..left + size, top..top + size);

    let value = |c: usize| move |v: u8| ((f64::from(v) * (1.0 / 255.0)) as f32 - IMAGE_MEAN[c]) / IMAGE_STD[c];
    let table: [Vec<f32>; 3] = std::array::from_fn(|c| (0..=255).map(value(c)).collect());
    rgb.iter().enumerate().map(|(i, &v)| table[i % 3][usize::from(v)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_image() {
        let image = Image::new(3, 50, [0, 128, 255].repeat(150)).unwrap();
        let got = preprocess(&image, 8);
        assert_eq!(got.len(), 8 * 8 * 3);
        let expected = [0.0, 128.0, 255.0].map(|v: f32| v / 255.0);
        for pixel in got.as_chunks::<3>().0 {
            for c in 0..3 {
                assert!((pixel[c] - (expected[c] - IMAGE_MEAN[c]) / IMAGE_STD[c]).abs() < 1e-6, "{pixel:?}");
            }
        }
    }

    #[test]
    fn zero_size() {
        let image = Image::new(1, 1, vec![1, 2, 3]).unwrap();
        assert!(preprocess(&image, 0).is_empty());
    }
}
