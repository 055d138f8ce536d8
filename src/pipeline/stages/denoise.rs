//! From noise, or an image with noise, to latents.

use super::channels::{to_channels_first, to_channels_last};
use super::init_image::InitImage;
use super::initial_latents::InitialLatents;
use crate::device::{DenoiseInputs, DenoiseOutput, ImageInFlight, TensorRef};
use crate::error::{Error, Result};
use crate::inputs::image::Image;
use crate::inputs::noise::Generator;
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::{Compiler, Executables};
use crate::pipeline::plan::RequestPlan;
use crate::pipeline::preview::{Preview, colours};
use crate::pipeline::request::Request;
use crate::schedulers::StepCoefficients;
use std::sync::Arc;

/// The parts of a request from which each of its images begins.
pub(in crate::pipeline) struct Denoise<'a> {
    pub(in crate::pipeline) request: &'a Request,
    pub(in crate::pipeline) plan: &'a RequestPlan,
    /// The coefficients of the plan's steps.
    pub(in crate::pipeline) table: &'a Arc<[StepCoefficients]>,
    pub(in crate::pipeline) conditioning: &'a [Arc<TensorRef<'static>>],
    /// The image to begin with.
    pub(in crate::pipeline) init_image: Option<&'a InitImage>,
    /// Previews are taken after each so many evaluations.
    pub(in crate::pipeline) preview_every: Option<usize>,
}

/// The tensors that an image began with, for the captures.
pub(in crate::pipeline) struct Beginning {
    noise: Vec<f32>,
    image: Option<Vec<f32>>,
    masked_image: Option<Vec<f32>>,
}

impl Denoise<'_> {
    /// Begins image `index` of the request.
    pub(in crate::pipeline) fn begin(&self, compiler: &Compiler<'_>, index: usize) -> (ImageInFlight, Beginning) {
        let (request, plan) = (self.request, self.plan);
        let [h, w] = plan.latent;
        let shape = [compiler.models.unet.config.out_channels, h, w];
        let n = shape.iter().product();
        let mut generator = Generator::new(request.rng, request.seed.wrapping_add(index as u64));
        let begin = InitialLatents::draw(request, plan, self.init_image, (index, shape), &mut generator);
        let dtype = request.noise_dtype;
        let inputs = DenoiseInputs {
            rows: plan.denoise.shape.batch,
            inputs: self.conditioning.to_vec(),
            table: self.table.clone(),
            guidance_scale: request.guidance_scale,
            guidance_rescale: request.guidance_rescale,
            kept: begin.kept(),
            latents: begin.latents,
            extra: begin.extra,
            noise: Box::new(move |_| to_channels_last(&generator.randn(n, dtype), shape)),
            capture_first: index == 0 && request.capture_intermediates,
            preview_every: self.preview_every,
        };
        let InitialLatents { noise, image, masked_image, .. } = begin;
        (ImageInFlight::new(inputs), Beginning { noise, image, masked_image })
    }
}

impl Beginning {
    /// Takes the latents `[h, w, C]` of an image that has made its steps, and captures them with what it began with.
    pub(in crate::pipeline) fn finish(
        self,
        compiler: &Compiler<'_>,
        plan: &RequestPlan,
        output: DenoiseOutput,
        captures: &mut Captures,
    ) -> Result<TensorRef<'static>> {
        if let Some(step) = output.not_finite {
            let stage = format!("step {} of {}", step + 1, plan.table.steps.len());
            let hint = "check the model file and the guidance scale".into();
            return Err(Error::NotFinite { stage, hint });
        }
        if !captures.enabled() {
            return Ok(output.latents);
        }
        let ([h, w], c) = (plan.latent, compiler.models.unet.config.out_channels);
        captures.add("noise", &[1, c, h, w], || self.noise);
        for (name, latents) in [("init_latents", self.image), ("masked_image_latents", self.masked_image)] {
            if let Some(latents) = latents {
                captures.add(name, &[1, c, h, w], || to_channels_first(&latents, [h, w, c]));
            }
        }
        if !output.first_output.is_empty() {
            let rows = output.first_output.chunks_exact(h * w * c);
            let rows = || rows.flat_map(|row| to_channels_first(row, [h, w, c])).collect();
            captures.add("model_output_0", &[output.first_output.len() / (h * w * c), c, h, w], rows);
        }
        let latents = output.latents.read()?;
        captures.add("latents", &[1, c, h, w], || to_channels_first(&latents, [h, w, c]));
        drop(latents);
        Ok(output.latents)
    }
}

/// The preview of image `index` after so many steps, of the clean latents that the last one predicted.
pub(in crate::pipeline) fn preview(
    executables: &mut Executables<'_>,
    plan: &RequestPlan,
    (index, done): (usize, usize),
    clean: &[f32],
) -> Result<Preview> {
    let [h, w] = plan.latent;
    let pixels = if executables.compiler.models.taesd.decoder.is_some() {
        let rgb = executables.image_decoder(plan.latent)?.decode(&clean.into(), false)?.rgb;
        let factor = (rgb.len() / (3 * h * w)).isqrt();
        Image::new(w * factor, h * factor, rgb)?
    } else {
        colours(clean, [h, w])?
    };
    Ok(Preview { pixels, image: index, done, steps: plan.table.steps.len() })
}
