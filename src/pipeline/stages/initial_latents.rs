//! The latents that the steps begin with.

use super::channels::to_channels_last;
use super::init_image::InitImage;
use crate::inputs::noise::Generator;
use crate::pipeline::request::Request;
use crate::schedulers::StepTable;

/// The latents that the steps begin with, and what they are made of.
pub(super) struct InitialLatents {
    /// `[h, w, C]`.
    pub(super) latents: Vec<f32>,
    /// As drawn or given, `[C, h, w]`.
    pub(super) noise: Vec<f32>,
    /// Of the image to begin with, `[h, w, C]`.
    pub(super) image: Option<Vec<f32>>,
}

impl InitialLatents {
    /// Draws in diffusers' order: what the VAE's distribution takes, then the noise. `shape` is `[C, h, w]`, `index` the number of the
    /// image of the request.
    pub(super) fn draw(
        request: &Request,
        table: &StepTable,
        init_image: Option<&InitImage>,
        (index, shape): (usize, [usize; 3]),
        generator: &mut Generator,
    ) -> Self {
        let n = shape.iter().product();
        let dtype = request.noise_dtype;
        let image = init_image.map(|init| init.image.sample(generator, dtype, shape));
        let noise = match &request.noise {
            Some(all) => all[index * n..][..n].to_vec(),
            None => generator.randn(n, dtype),
        };
        let mut latents = to_channels_last(&noise, shape);
        match (&image, table.steps.first()) {
            (Some(image), Some(first)) => {
                latents.iter_mut().zip(image).for_each(|(x, image)| *x = first.level.add_noise(*image, *x));
            }
            _ => latents.iter_mut().for_each(|x| *x *= table.init_noise_sigma),
        }
        Self { latents, noise, image }
    }
}
