//! The latents that the steps begin with.

use super::channels::to_channels_last;
use super::init_image::InitImage;
use crate::device::KeptLatents;
use crate::inputs::noise::Generator;
use crate::pipeline::begin::Begin;
use crate::pipeline::plan::RequestPlan;
use crate::pipeline::request::Request;

/// The latents that the steps begin with, and what they are made of.
#[derive(Default)]
pub(super) struct InitialLatents {
    /// `[h, w, C]`.
    pub(super) latents: Vec<f32>,
    /// As drawn or given, `[C, h, w]`.
    pub(super) noise: Vec<f32>,
    /// Of the image to begin with, `[h, w, C]`, where they are needed.
    pub(super) image: Option<Vec<f32>>,
    /// Of the image without what a mask covers, `[h, w, C]`, where the model takes them.
    pub(super) masked_image: Option<Vec<f32>>,
    /// The channels of the model's sample beyond the latents, `[h, w, S - C]`.
    pub(super) extra: Vec<f32>,
    /// The mask and the noise of [`KeptLatents`], `[h, w, C]`.
    kept: Option<[Vec<f32>; 2]>,
}

impl InitialLatents {
    /// Draws in diffusers' order: what the VAE's distribution of the image takes, the noise, and with a mask what that of the masked
    /// image takes, even where the model has no use for it. `shape` is `[C, h, w]`, `index` the number of the image of the request.
    pub(super) fn draw(
        request: &Request,
        plan: &RequestPlan,
        init_image: Option<&InitImage>,
        (index, shape): (usize, [usize; 3]),
        generator: &mut Generator,
    ) -> Self {
        let n = shape.iter().product();
        let dtype = request.noise_dtype;
        let image = init_image.and_then(|init| init.image.as_ref());
        let mut this = Self { image: image.map(|image| image.sample(generator, dtype, shape)), ..Self::default() };
        this.noise = match &request.noise {
            Some(all) => all[index * n..][..n].to_vec(),
            None => generator.randn(n, dtype),
        };
        let noise = to_channels_last(&this.noise, shape);
        if let Some(masked) = init_image.and_then(|init| init.inpaint.as_ref()) {
            let pixels = masked.mask.iter().copied();
            if let Some(latents) = &masked.latents {
                let latents = latents.sample(generator, dtype, shape);
                let joined = pixels.zip(latents.chunks_exact(shape[0]));
                this.extra =
                    joined.flat_map(|(mask, latents)| std::iter::once(mask).chain(latents.iter().copied())).collect();
                this.masked_image = Some(latents);
            } else {
                image.into_iter().for_each(|image| drop(image.draw(generator, dtype)));
                let mask = pixels.flat_map(|mask| std::iter::repeat_n(mask, shape[0])).collect();
                this.kept = Some([mask, noise.clone()]);
            }
        }
        this.latents = noise;
        this.mix(plan);
        this
    }

    /// Turns the noise into the latents to begin with.
    fn mix(&mut self, plan: &RequestPlan) {
        let from_noise = matches!(plan.begin, Begin::Inpaint { from_noise: true, .. });
        match (&self.image, plan.table.steps.first()) {
            (Some(image), Some(first)) if !from_noise => {
                self.latents.iter_mut().zip(image).for_each(|(x, image)| *x = first.level.add_noise(*image, *x));
            }
            _ => self.latents.iter_mut().for_each(|x| *x *= plan.table.init_noise_sigma),
        }
    }

    /// The latents that a mask keeps, for the loop.
    pub(super) fn kept(&self) -> Option<KeptLatents> {
        let ([mask, noise], image) = (self.kept.as_ref()?, self.image.as_ref()?);
        Some(KeptLatents { mask: mask.clone(), image: image.clone(), noise: noise.clone() })
    }
}
