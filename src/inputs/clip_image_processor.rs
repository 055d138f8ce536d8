//! Preprocessing for CLIP's image encoders, as transformers' `CLIPImageProcessor`.

use crate::config_json::Fields;
use crate::error::{Error, Result};
use crate::inputs::image::Image;
use crate::inputs::resize::{Resampling, resize_region};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The mean of each channel over CLIP's training images, in 0..1.
pub const IMAGE_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// The standard deviation of each channel.
pub const IMAGE_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// The preprocessing for one encoder: transformers' `CLIPImageProcessor` with its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipImageProcessor {
    /// The configuration's file; empty for CLIP's own settings.
    path: PathBuf,
    /// `size.shortest_edge`.
    shortest_edge: usize,
    /// `crop_size`, height and width.
    crop_size: usize,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

impl ClipImageProcessor {
    /// CLIP's own settings for an encoder of images `size` pixels on a side.
    pub fn clip(size: usize) -> Self {
        let (image_mean, image_std) = (IMAGE_MEAN, IMAGE_STD);
        Self { path: PathBuf::new(), shortest_edge: size, crop_size: size, image_mean, image_std }
    }

    /// Reads a `preprocessor_config.json`; what it leaves out is CLIP's.
    ///
    /// # Errors
    /// [`crate::Error::Config`] names a setting that is not supported; [`crate::Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let f = Fields::of_value(path, value)?;
        for field in ["do_resize", "do_center_crop", "do_rescale"] {
            f.only(field, &[json!(true)])?;
        }
        f.only("resample", &[json!(3)])?;
        f.only("rescale_factor", &[json!(1.0 / 255.0), json!(0.003_921_57), json!(0.003_921_568_627_450_98)])?;
        let size = match f.present("size").filter(|size| size.is_object()) {
            Some(size) => Fields::of_value(path, size)?.size("shortest_edge", None)?,
            None => f.size("size", Some(224))?,
        };
        let crop = match f.present("crop_size").filter(|size| size.is_object()) {
            Some(crop) => {
                let crop = Fields::of_value(path, crop)?;
                let height = crop.size("height", None)?;
                crop.only("width", &[json!(height)])?;
                height
            }
            None => f.size("crop_size", Some(224))?,
        };
        if crop > size {
            return Err(f.refuse("crop_size", format!("at most `size`, {size}, is supported")));
        }
        let normalise = f.flag("do_normalize", true)?;
        let channels = |name: &str, clip: [f32; 3], none: f32| -> Result<[f32; 3]> {
            let Some(value) = f.present(name).filter(|_| normalise) else {
                return Ok(if normalise { clip } else { [none; 3] });
            };
            let numbers: Option<Vec<f32>> = match value.as_array() {
                Some(list) => list.iter().map(|v| v.as_f64().map(|v| v as f32)).collect(),
                None => value.as_f64().map(|v| vec![v as f32; 3]),
            };
            let sound = |v: &f32| v.is_finite() && (none == 0.0 || *v > 0.0);
            numbers
                .filter(|n| n.iter().all(sound))
                .and_then(|n| n.try_into().ok())
                .ok_or_else(|| f.refuse(name, "three numbers are needed, one for each of red, green and blue"))
        };
        Ok(Self {
            path: path.to_owned(),
            shortest_edge: size,
            crop_size: crop,
            image_mean: channels("image_mean", IMAGE_MEAN, 0.0)?,
            image_std: channels("image_std", IMAGE_STD, 1.0)?,
        })
    }

    /// Checks that the images are as large as an encoder takes them.
    ///
    /// # Errors
    /// [`crate::Error::Config`] where they are not.
    pub fn demand_size(&self, size: usize) -> Result<()> {
        if self.crop_size == size {
            return Ok(());
        }
        Err(Error::Config {
            path: self.path.clone(),
            field: "crop_size".into(),
            value: self.crop_size.to_string(),
            expected: format!("the image encoder takes images of {size} pixels").into(),
        })
    }

    /// Computes the pixel values of an image, `[crop_size, crop_size, 3]`: shortest side to `shortest_edge` by PIL's
    /// bicubic, centre cropped, normalised.
    ///
    /// Equals transformers' `CLIPImageProcessorPil` (which has the channels first) to the bit. Only the part that the
    /// crop keeps is computed, so an image of 1x8192 costs no more than another.
    pub fn preprocess(&self, image: &Image) -> Vec<f32> {
        let rgb = self.crop(image);
        let value =
            |c: usize| move |v: u8| ((f64::from(v) * (1.0 / 255.0)) as f32 - self.image_mean[c]) / self.image_std[c];
        let table: [Vec<f32>; 3] = std::array::from_fn(|c| (0..=255).map(value(c)).collect());
        rgb.iter().enumerate().map(|(i, &v)| table[i % 3][usize::from(v)]).collect()
    }

    /// Resizes and crops an image: what the encoder sees, before the normalisation.
    ///
    /// # Errors
    /// [`crate::Error::Parameter`] for a size that no image can have.
    pub fn visible(&self, image: &Image) -> Result<Image> {
        Image::new(self.crop_size, self.crop_size, self.crop(image))
    }

    /// The length of the shorter side before the crop.
    pub fn shortest_edge(&self) -> usize {
        self.shortest_edge
    }

    fn crop(&self, image: &Image) -> Vec<u8> {
        let (edge, crop) = (self.shortest_edge, self.crop_size);
        let (width, height) = (image.width(), image.height());
        let (short, long) = (width.min(height), width.max(height));
        // The longer side is cut to an integer, not rounded.
        let stretched = (edge as f64 * long as f64 / short as f64) as usize;
        let [w, h] = if width <= height { [edge, stretched] } else { [stretched, edge] };
        let (left, top) = ((w - crop) / 2, (h - crop) / 2);
        resize_region(image, [w, h], left..left + crop, top..top + crop, Resampling::Bicubic)
    }
}

/// Preprocesses with CLIP's own settings; see [`ClipImageProcessor::preprocess`].
pub fn preprocess(image: &Image, size: usize) -> Vec<f32> {
    ClipImageProcessor::clip(size).preprocess(image)
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
