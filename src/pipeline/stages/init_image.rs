//! From an image to begin with to the distribution of its latents.

use super::channels::to_channels_last;
use super::upcast::no_room;
use crate::error::{Error, Result};
use crate::inputs::image::Image;
use crate::inputs::noise::Generator;
use crate::inputs::resize::{Resampling, resize};
use crate::pipeline::begin::Begin;
use crate::pipeline::compile::Executables;
use crate::pipeline::content_cache::ContentHasher;
use crate::pipeline::plan::RequestPlan;
use crate::pipeline::request::Request;
use crate::tensor::DType;
use std::sync::Arc;

const STAGE: &str = "the VAE's encoder";

/// The image to begin with, encoded.
pub(in crate::pipeline) struct InitImage {
    /// The latents of the image, where they are needed.
    pub(super) image: Option<LatentDistribution>,
    /// The mask and what the model takes beside it.
    pub(super) inpaint: Option<MaskedImage>,
}

/// The mask of an inpainting, and the image without what it covers.
pub(in crate::pipeline) struct MaskedImage {
    /// 1 where the image is drawn anew, else 0: `[h, w]`.
    pub(super) mask: Vec<f32>,
    /// The latents of the image without it, where the model takes them.
    pub(super) latents: Option<LatentDistribution>,
}

/// A distribution of latents, each on its own: diffusers' `DiagonalGaussianDistribution`.
pub(in crate::pipeline) struct LatentDistribution {
    /// `[h, w, C]`.
    mean: Vec<f32>,
    /// `[h, w, C]`; absent where the mean stands for all.
    deviation: Option<Vec<f32>>,
    scaling_factor: f32,
    /// The type in which it is sampled where that is not the noise's.
    dtype: Option<DType>,
    /// Whether it was made in f32, as the values of the VAE's own type were not finite.
    upcast: bool,
}

impl LatentDistribution {
    /// Latents `[h, w, C]` for the loop; `shape` is `[C, h, w]`, the order in which torch draws.
    pub(super) fn sample(&self, generator: &mut Generator, dtype: DType, shape: [usize; 3]) -> Vec<f32> {
        let scaled = |value: f32| self.scaling_factor * value;
        let Some(deviation) = &self.deviation else { return self.mean.iter().map(|mean| scaled(*mean)).collect() };
        let drawn = to_channels_last(&self.draw(generator, dtype), shape);
        self.mean.iter().zip(deviation).zip(drawn).map(|((mean, std), x)| scaled(mean + std * x)).collect()
    }

    /// Draws what a sample of it takes, `[C, h, w]`: nothing where the mean stands for all.
    pub(super) fn draw(&self, generator: &mut Generator, dtype: DType) -> Vec<f32> {
        let count = self.deviation.as_ref().map_or(0, Vec::len);
        generator.randn(count, self.dtype.unwrap_or(dtype))
    }
}

impl InitImage {
    fn distributions(&self) -> impl Iterator<Item = &LatentDistribution> {
        self.image.iter().chain(self.inpaint.iter().filter_map(|inpaint| inpaint.latents.as_ref()))
    }

    fn bytes(&self) -> usize {
        let latents = |d: &LatentDistribution| d.mean.len() + d.deviation.as_ref().map_or(0, Vec::len);
        let mask: usize = self.inpaint.iter().map(|inpaint| inpaint.mask.len()).sum();
        4 * (self.distributions().map(latents).sum::<usize>() + mask)
    }

    /// Whether any of it was encoded in f32, as the values of the VAE's own type were not finite.
    pub(in crate::pipeline) fn is_upcast(&self) -> bool {
        self.distributions().any(|latents| latents.upcast)
    }
}

/// Encodes the image to begin with, stretched to the request's size, and what a mask leaves of it, unless that was done before.
pub(in crate::pipeline) fn run(
    executables: &mut Executables<'_>,
    request: &Request,
    image: &Image,
    plan: &RequestPlan,
) -> Result<Arc<InitImage>> {
    let sides = |image: &Image| [image.width(), image.height()];
    let mask = request.mask.as_ref();
    let key = ContentHasher::new("init_image")
        .value(&(plan.latent, plan.begin, sides(image), mask.map(sides)))
        .bytes(image.rgb())
        .bytes(mask.map_or(&[], Image::rgb))
        .key();
    if let Some(known) = executables.cache.contents.get(key) {
        return Ok(known);
    }
    let made = Arc::new(encode_both(executables, request, image, plan)?);
    executables.cache.contents.put(key, made.clone(), made.bytes());
    Ok(made)
}

/// Encodes the image, and what a mask leaves of it.
fn encode_both(
    executables: &mut Executables<'_>,
    request: &Request,
    image: &Image,
    plan: &RequestPlan,
) -> Result<InitImage> {
    let [h, w] = plan.latent.map(|side| side * executables.compiler.models.vae.config.scale_factor());
    let pixels = normalized(&resize(image, w, h, Resampling::Lanczos)?);
    let image = match plan.begin.encodes_image() {
        true => Some(encode(executables, plan, &pixels)?),
        false => None,
    };
    let (Begin::Inpaint { joins_channels, .. }, Some(mask)) = (plan.begin, &request.mask) else {
        return Ok(InitImage { image, inpaint: None });
    };
    let masked = resize(mask, w, h, Resampling::Lanczos)?.luma();
    let latents = match joins_channels {
        true => Some(encode(executables, plan, &outside(&pixels, &masked))?),
        false => None,
    };
    let mask = mask_of_latents(&masked, [h, w], plan.latent);
    Ok(InitImage { image, inpaint: Some(MaskedImage { mask, latents }) })
}

/// Whether a mask's grey value, of 0..255, is at least one half: what is drawn anew.
fn is_masked(value: u8) -> bool {
    value >= 128
}

/// The pixels of an image, with grey where a mask covers it.
fn outside(pixels: &[f32], mask: &[u8]) -> Vec<f32> {
    let kept = |(pixel, mask): (&[f32; 3], &u8)| if is_masked(*mask) { [0.0; 3] } else { *pixel };
    pixels.as_chunks::<3>().0.iter().zip(mask).flat_map(kept).collect()
}

/// The mask of latents, 1 or 0: that of the first pixel of each, as torch's `interpolate` takes the nearest.
fn mask_of_latents(mask: &[u8], [height, width]: [usize; 2], [h, w]: [usize; 2]) -> Vec<f32> {
    let at = |y: usize, x: usize| mask[y * (height / h) * width + x * (width / w)];
    (0..h).flat_map(|y| (0..w).map(move |x| (y, x))).map(|(y, x)| f32::from(u8::from(is_masked(at(y, x))))).collect()
}

/// The pixels of an image, `[H, W, 3]`, from 0..255 to -1..1.
fn normalized(image: &Image) -> Vec<f32> {
    image.rgb().iter().map(|value| 2.0 * (f32::from(*value) / 255.0) - 1.0).collect()
}

/// The deviation that an encoder's result stands for.
fn deviation(log_variance: f32) -> f32 {
    (0.5 * log_variance.clamp(-30.0, 20.0)).exp()
}

/// The distribution of the latents of an image, `[H, W, 3]`, -1..1.
fn encode(executables: &mut Executables<'_>, plan: &RequestPlan, pixels: &[f32]) -> Result<LatentDistribution> {
    let compiler = executables.compiler;
    let config = &compiler.models.vae.config;
    let channels = config.latent_channels;
    let taesd = compiler.models.taesd.encoder.as_ref();
    let outputs = if taesd.is_some() { channels } else { 2 * channels };
    let mut moments = vec![0.0; plan.latent[0] * plan.latent[1] * outputs];
    let is_finite = |moments: &[f32]| moments.iter().all(|value| value.is_finite());
    executables.vae_encoder(plan.latent)?.run(&[pixels.into()], &mut [&mut moments])?;
    let mut upcast = false;
    if !is_finite(&moments)
        && let Some(encoder) = executables.upcast_vae_encoder(plan.latent).map_err(|error| no_room(STAGE, error))?
    {
        encoder.run(&[pixels.into()], &mut [&mut moments])?;
        upcast = true;
    }
    if !is_finite(&moments) {
        let hint = "the image is out of its range; check the model file".into();
        return Err(Error::NotFinite { stage: STAGE.into(), hint });
    }
    if let Some(taesd) = taesd {
        let scaling_factor = taesd.config.scaling_factor;
        return Ok(LatentDistribution { mean: moments, deviation: None, scaling_factor, dtype: None, upcast });
    }
    let part = |start: usize| moments.chunks_exact(2 * channels).flat_map(move |pixel| &pixel[start..start + channels]);
    Ok(LatentDistribution {
        mean: part(0).copied().collect(),
        deviation: compiler.compat.samples_image_latents.then(|| part(channels).copied().map(deviation).collect()),
        scaling_factor: config.scaling_factor,
        dtype: config.force_upcast.then_some(DType::F32),
        upcast,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bounds of diffusers' `DiagonalGaussianDistribution`.
    #[test]
    fn deviations_beyond_the_bounds() {
        for (log_variance, half) in
            [(0.0, 0.0f32), (-2.0, -1.0), (19.0, 9.5), (300.0, 10.0), (-29.0, -14.5), (-1e9, -15.0)]
        {
            assert_eq!(deviation(log_variance), half.exp(), "{log_variance}");
        }
    }
}
