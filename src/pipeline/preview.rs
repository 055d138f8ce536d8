//! Cheap previews of an image under way.

use crate::error::Result;
use crate::inputs::image::Image;

/// A preview of an image under way.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Preview {
    /// The preview itself.
    pub pixels: Image,
    /// The image under way, from 0.
    pub image: usize,
    /// The model evaluations that are done.
    pub done: usize,
    /// All model evaluations of the image.
    pub steps: usize,
}

/// The callback of previews.
pub(super) struct Previewer<'a> {
    /// It is called after each so many model evaluations.
    pub(super) every: usize,
    pub(super) show: Box<dyn FnMut(Preview) + Send + 'a>,
}

/// Red, green and blue of each channel of SDXL's latents, as ComfyUI has them (`latent_formats.py`, `SDXL`): -1 is black, 1 white.
const FACTORS: [[f32; 3]; 4] =
    [[0.3651, 0.4232, 0.4341], [-0.2533, -0.0042, 0.1068], [0.1076, 0.1111, -0.0362], [-0.3165, -0.2492, -0.2188]];
const BIAS: [f32; 3] = [0.1084, -0.0175, -0.0011];

/// The colours of latents `[h, w, C]` as the UNet sees them, one pixel each.
pub(super) fn colours(latents: &[f32], [h, w]: [usize; 2]) -> Result<Image> {
    let colour = |pixel: &[f32]| -> [u8; 3] {
        std::array::from_fn(|k| {
            let sum = pixel.iter().zip(&FACTORS).fold(BIAS[k], |sum, (value, factors)| sum + value * factors[k]);
            ((sum / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0) as u8
        })
    };
    let channels = (latents.len() / (h * w).max(1)).max(1);
    Image::new(w, h, latents.chunks_exact(channels).flat_map(colour).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matrix of each channel alone, then of both ends.
    #[test]
    fn colours_of_channels() {
        let one = |channel: usize| (0..4).map(move |c| f32::from(u8::from(c == channel)));
        let latents: Vec<f32> = (0..4).flat_map(one).chain([0.0; 4]).chain([9.0, 0.0, 0.0, 0.0]).collect();
        let image = colours(&latents, [2, 3]).unwrap();
        let byte = |value: f32| ((value / 2.0 + 0.5) * 255.0) as u8;
        let first = [0.3651f32 + 0.1084, 0.4232 - 0.0175, 0.4341 - 0.0011].map(byte);
        assert_eq!(image.rgb()[..3], first);
        let last = [0.1084f32 - 0.3165, -0.0175 - 0.2492, -0.0011 - 0.2188].map(byte);
        assert_eq!(image.rgb()[9..12], last);
        assert_eq!(image.rgb()[12..15], BIAS.map(byte));
        assert_eq!(image.rgb()[15..], [255; 3]);
    }
}
