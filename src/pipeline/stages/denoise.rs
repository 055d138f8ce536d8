//! From noise, or an image with noise, to latents.

use super::channels::{to_channels_first, to_channels_last};
use super::condition::Conditioning;
use super::init_image::InitImage;
use super::initial_latents::InitialLatents;
use crate::device::{DenoiseInputs, ImageDecoder, LatentPreview, TensorRef};
use crate::error::{Error, Result};
use crate::inputs::image::Image;
use crate::inputs::noise::Generator;
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::lora::bound;
use crate::pipeline::plan::RequestPlan;
use crate::pipeline::preview::{Preview, colours};
use crate::pipeline::request::{Callbacks, Progress, Request, Stage};
use std::time::Instant;

/// One image of a request.
pub(in crate::pipeline) struct Denoise<'a> {
    pub(in crate::pipeline) request: &'a Request,
    pub(in crate::pipeline) plan: &'a RequestPlan,
    pub(in crate::pipeline) conditioning: &'a Conditioning,
    /// The image to begin with.
    pub(in crate::pipeline) init_image: Option<&'a InitImage>,
    /// From 0.
    pub(in crate::pipeline) image: usize,
}

impl Denoise<'_> {
    /// The latents `[h, w, C]` after the last step; `step_seconds` gets the seconds of each.
    pub(in crate::pipeline) fn run(
        &self,
        executables: &mut Executables<'_>,
        callbacks: &mut Callbacks<'_>,
        step_seconds: &mut Vec<f64>,
        captures: &mut Captures,
    ) -> Result<TensorRef<'static>> {
        let latent = self.plan.latent;
        let decodes = callbacks.on_preview.is_some() && executables.compiler.models.taesd.decoder.is_some();
        let mut taesd = if decodes { executables.take_decoder(latent)? } else { None };
        let result = self.steps(executables, callbacks, (step_seconds, taesd.as_mut()), captures);
        if let Some(decoder) = taesd {
            executables.cache.put_decoder(latent, decoder);
        }
        result
    }

    /// The same; the decoder is that of previews.
    fn steps(
        &self,
        executables: &mut Executables<'_>,
        callbacks: &mut Callbacks<'_>,
        (step_seconds, mut taesd): (&mut Vec<f64>, Option<&mut Box<dyn ImageDecoder>>),
        captures: &mut Captures,
    ) -> Result<TensorRef<'static>> {
        let (request, plan) = (self.request, self.plan);
        let [h, w] = plan.latent;
        let c = executables.compiler.models.unet.config.out_channels;
        let shape = [c, h, w];
        let n = h * w * c;
        let mut generator = Generator::new(request.rng, request.seed.wrapping_add(self.image as u64));
        let begin = InitialLatents::draw(request, plan, self.init_image, (self.image, shape), &mut generator);
        let table = &plan.table.steps;
        let denoise_loop = executables.denoise_loop(&plan.denoise, plan.placement)?;
        let mut inputs = self.conditioning.inputs(&plan.branches, table.len())?;
        inputs.extend(bound(denoise_loop.graph(), &plan.lora_scales.unet).map(TensorRef::from));
        let Callbacks { on_progress, on_preview, cancel } = callbacks;
        let every = on_preview.as_ref().map(|on| on.every);
        let mut show = |done: usize, clean: &[f32]| {
            if let Some(on) = on_preview {
                (on.show)(self.preview(done, clean, taesd.as_deref_mut())?);
            }
            cancel.check()
        };
        let inputs = DenoiseInputs {
            inputs: &inputs,
            table,
            guidance_scale: request.guidance_scale,
            guidance_rescale: request.guidance_rescale,
            latents: &begin.latents,
            extra: &begin.extra,
            kept: begin.kept(),
            noise: &mut |_| to_channels_last(&generator.randn(n, request.noise_dtype), shape),
            capture_first: self.image == 0 && captures.enabled(),
            preview: every.map(|every| LatentPreview { every, show: &mut show }),
        };
        let (mut told, mut last) = (0, Instant::now());
        let mut reached = |done: usize| {
            for step in told..done {
                step_seconds.push(last.elapsed().as_secs_f64());
                last = Instant::now();
                if let Some(call) = on_progress {
                    call(self.progress(step + 1));
                }
            }
            told = told.max(done);
            cancel.check()
        };
        let output = denoise_loop.denoise(inputs, &mut reached)?;
        if let Some(step) = output.not_finite {
            let stage = format!("step {} of {}", step + 1, table.len());
            let hint = "check the model file and the guidance scale".into();
            return Err(Error::NotFinite { stage, hint });
        }
        captures.add("noise", &[1, c, h, w], || begin.noise);
        for (name, latents) in [("init_latents", begin.image), ("masked_image_latents", begin.masked_image)] {
            if let Some(latents) = latents {
                captures.add(name, &[1, c, h, w], || to_channels_first(&latents, [h, w, c]));
            }
        }
        if !output.first_output.is_empty() {
            let rows = || output.first_output.chunks_exact(n).flat_map(|r| to_channels_first(r, [h, w, c])).collect();
            captures.add("model_output_0", &[plan.denoise.shape.batch, c, h, w], rows);
        }
        if captures.enabled() {
            let latents = output.latents.read()?;
            captures.add("latents", &[1, c, h, w], || to_channels_first(&latents, [h, w, c]));
        }
        Ok(output.latents)
    }

    /// The preview after that many steps.
    fn preview(&self, done: usize, clean: &[f32], taesd: Option<&mut Box<dyn ImageDecoder>>) -> Result<Preview> {
        let [h, w] = self.plan.latent;
        let pixels = match taesd {
            Some(taesd) => {
                let rgb = taesd.decode(&clean.into(), false)?.rgb;
                let factor = (rgb.len() / (3 * h * w)).isqrt();
                Image::new(w * factor, h * factor, rgb)?
            }
            None => colours(clean, [h, w])?,
        };
        Ok(Preview { pixels, image: self.image, done, steps: self.plan.table.steps.len() })
    }

    /// The progress after that many steps.
    fn progress(&self, done: usize) -> Progress {
        let (image, num_images) = (self.image, self.request.num_images);
        Progress { stage: Stage::Denoise, image, num_images, done, steps: self.plan.table.steps.len() }
    }
}
