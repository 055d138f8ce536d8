//! From noise to latents: on the device from the first step to the last where it can, else step by step from here.

use super::compile::{self, RequestPlan};
use super::generate::{Conditioning, RequestRun};
use super::request::{Progress, Stage};
use crate::device::{DenoiseInputs, LoopSteps, StepCoefficients, TensorRef};
use crate::error::{Error, Result};
use crate::inputs::noise::Generator;
use crate::schedulers::{classifier_free_guidance, step};
use std::ops::Range;
use std::time::Instant;

/// A picture's beginning.
struct LoopInput {
    /// `[h, w, C]`.
    latents: Vec<f32>,
    generator: Generator,
}

/// What steps give.
struct LoopOutput {
    latents: TensorRef<'static>,
    /// The model's output in the first step, if stages are kept.
    first: Vec<f32>,
}

impl Conditioning {
    /// The denoiser's inputs for these steps.
    fn inputs<'a>(&'a self, sample: &'a [f32], steps: Range<usize>) -> Result<Vec<TensorRef<'a>>> {
        let (text, images) = self.tokens.split_at(1);
        let mut inputs: Vec<TensorRef<'a>> =
            vec![sample.into(), text[0].as_slice().into(), self.scales.as_slice().into()];
        inputs.extend(images.iter().map(|counts| counts.as_slice().into()));
        for (k, values) in self.values[images.len()..].iter().enumerate() {
            let row = values.len() / self.plan.max_steps;
            let range = if k < self.per_step { steps.start * row..steps.end * row } else { 0..values.len() };
            inputs.push(values.slice(range)?);
        }
        Ok(inputs)
    }
}

impl RequestRun<'_, '_> {
    /// The latents `[h, w, C]` after the last step.
    pub(super) fn denoise(&mut self, state: &Conditioning) -> Result<TensorRef<'static>> {
        let [h, w] = self.latent;
        let c = self.p.models.unet.config.in_channels;
        let n = h * w * c;
        let seed = self.request.seed.wrapping_add(self.image as u64);
        let mut generator = Generator::new(self.request.rng, seed);
        let noise = match &self.request.noise {
            Some(all) => all[self.image * n..][..n].to_vec(),
            None => generator.randn(n, self.request.noise_dtype),
        };
        let mut latents = to_channels_last(&noise, [c, h, w]);
        latents.iter_mut().for_each(|x| *x *= self.table.init_noise_sigma);
        let start = LoopInput { latents, generator };
        let end = match self.steps(&state.plan) {
            Some(steps) => self.on_device(state, steps, start)?,
            None => self.stepwise(state, start)?,
        };
        self.capture("noise", &[1, c, h, w], || noise);
        if !end.first.is_empty() {
            let rows = || end.first.chunks_exact(n).flat_map(|r| to_channels_first(r, [h, w, c])).collect();
            self.capture("model_output_0", &[state.plan.shape.batch, c, h, w], rows);
        }
        if self.request.capture_intermediates {
            let latents = end.latents.read()?;
            self.capture("latents", &[1, c, h, w], || to_channels_first(&latents, [h, w, c]));
        }
        Ok(end.latents)
    }

    /// The device's sampler; none where it has none, or no room for this one's noise.
    pub(super) fn steps(&self, plan: &RequestPlan) -> Option<LoopSteps> {
        let adds = self.table.steps.iter().any(|row| row.noise.is_some_and(|weight| weight != 0.0));
        plan.sampler(self.p).filter(|steps| steps.noise || !adds)
    }

    /// What is told after a step.
    fn progress(&self, done: usize) -> Progress {
        let (picture, pictures) = (self.image, self.request.num_images);
        Progress { stage: Stage::Denoise, image: picture, num_images: pictures, done, steps: self.table.steps.len() }
    }

    fn not_finite(&self, step: usize) -> Error {
        let stage = format!("step {} of {}", step + 1, self.table.steps.len());
        Error::NotFinite { stage, hint: "check the model file and the guidance scale".into() }
    }

    /// All steps on the device.
    fn on_device(&mut self, state: &Conditioning, steps: LoopSteps, start: LoopInput) -> Result<LoopOutput> {
        let LoopInput { latents, mut generator } = start;
        let [h, w] = self.latent;
        let (n, shape) = (latents.len(), [self.p.models.unet.config.in_channels, h, w]);
        let dtype = self.request.noise_dtype;
        // Where a step only draws, to follow its peer's generator, what it draws is not needed.
        let fresh: Vec<Vec<f32>> = (self.table.steps.iter())
            .map(|row| match row.noise {
                Some(weight) => {
                    let drawn = generator.randn(n, dtype);
                    if weight == 0.0 { Vec::new() } else { to_channels_last(&drawn, shape) }
                }
                None => Vec::new(),
            })
            .collect();
        let table: Vec<StepCoefficients> = self.table.steps.iter().map(|row| row.packed()).collect();
        let inputs = state.inputs(&[], 0..table.len())?;
        let job = DenoiseInputs {
            inputs: &inputs,
            table: &table,
            guidance: [self.request.guidance_scale, self.request.guidance_rescale],
            latents: &latents,
            noise: &fresh,
            capture_first: self.image == 0 && self.request.capture_intermediates,
        };
        let progress = self.progress(0);
        let (mut told, mut last, mut seconds) = (0, Instant::now(), Vec::new());
        let watch = &mut *self.callbacks;
        let mut reached = |done: usize| {
            watch.cancel.check()?;
            for step in told..done {
                seconds.push(last.elapsed().as_secs_f64());
                last = Instant::now();
                watch.report(Progress { done: step + 1, ..progress });
            }
            told = told.max(done);
            Ok(())
        };
        let program = compile::denoiser(self.p, self.executables, &state.plan.shape, Some(steps))?;
        let Some(sampler) = program.denoise_loop() else {
            return Err(Error::Graph("the device has no sampler for its denoiser".into()));
        };
        let sampled = sampler.denoise(&job, &mut reached)?;
        self.step_seconds.extend(seconds);
        match sampled.not_finite {
            Some(step) => Err(self.not_finite(step)),
            None => Ok(LoopOutput { latents: sampled.latents.into(), first: sampled.first_output }),
        }
    }

    /// Step by step, with guidance and the sampler's arithmetic here.
    fn stepwise(&mut self, state: &Conditioning, start: LoopInput) -> Result<LoopOutput> {
        let LoopInput { latents: mut x, mut generator } = start;
        let [h, w] = self.latent;
        let (n, shape) = (x.len(), [self.p.models.unet.config.in_channels, h, w]);
        let batch = state.plan.shape.batch;
        let mut sample = vec![0.0; batch * n];
        let mut output = vec![0.0; batch * n];
        let mut guided = vec![0.0; n];
        let mut history = vec![0.0; if self.table.uses_history() { n } else { 0 }];
        let mut first = Vec::new();
        let steps = self.table.steps.clone();
        for (i, row) in steps.iter().enumerate() {
            self.callbacks.cancel.check()?;
            let begin = Instant::now();
            for sample in sample.chunks_exact_mut(n) {
                sample.iter_mut().zip(&x).for_each(|(s, x)| *s = x * row.input_scale);
            }
            let inputs = state.inputs(&sample, i..i + 1)?;
            let inputs = inputs.iter().map(TensorRef::read).collect::<Result<Vec<_>>>()?;
            let inputs: Vec<&[f32]> = inputs.iter().map(|values| values.as_ref()).collect();
            compile::denoiser(self.p, self.executables, &state.plan.shape, None)?.run(&inputs, &mut [&mut output])?;
            if i == 0 && self.image == 0 && self.request.capture_intermediates {
                first.clone_from(&output);
            }
            let (positive, negative) = output.split_at(n);
            let out = if batch == 2 {
                classifier_free_guidance(
                    negative,
                    positive,
                    self.request.guidance_scale,
                    self.request.guidance_rescale,
                    &mut guided,
                )?;
                &guided
            } else {
                positive
            };
            let fresh = row.noise.map(|_| to_channels_last(&generator.randn(n, self.request.noise_dtype), shape));
            step(row, &mut x, out, &mut history, fresh.as_deref())?;
            if !x.iter().all(|x| x.is_finite()) {
                return Err(self.not_finite(i));
            }
            self.step_seconds.push(begin.elapsed().as_secs_f64());
            let progress = self.progress(i + 1);
            self.callbacks.report(progress);
        }
        Ok(LoopOutput { latents: x.into(), first })
    }
}

fn to_channels_last(x: &[f32], [c, h, w]: [usize; 3]) -> Vec<f32> {
    (0..h * w * c).map(|i| x[i % c * h * w + i / c]).collect()
}

fn to_channels_first(x: &[f32], [h, w, c]: [usize; 3]) -> Vec<f32> {
    (0..h * w * c).map(|i| x[i % (h * w) * c + i / (h * w)]).collect()
}
