//! Latent consistency models (Luo et al. 2023), as diffusers' `LCMScheduler`.
//!
//! Here x = sqrt(a) * x0 + sqrt(1 - a) * noise, where a is the cumulative product of 1 - beta.

use super::settings::SchedulerSettings;
use super::{Row, StepCoefficients, StepTable};
use crate::{Error, Result};

/// The standard deviation of the data that the boundary condition assumes.
const SIGMA_DATA: f64 = 0.5;

/// The table of `LCMScheduler`: each step predicts the clean sample and noises it again to the next level, all but the
/// last. The timesteps are a subset of the `original_inference_steps` of the distillation.
pub(super) fn table(settings: &SchedulerSettings, steps: usize) -> Result<StepTable> {
    let original = settings.original_inference_steps;
    if steps > original {
        let what = format!("{steps} is not usable; lcm has 1 to {original}, its original_inference_steps");
        return Err(Error::parameter("--steps", what));
    }
    let stride = settings.train_steps / original;
    let spread = original as f64 / steps as f64;
    let timestep = |i: usize| (original - (i as f64 * spread) as usize) * stride - 1;
    let level = |i: usize| settings.alphas.get(timestep(i)).map(|&a| f64::from(a));
    let row = |i: usize| {
        let now = level(i)?;
        let (alpha, sigma) = (now.sqrt(), (1.0 - now).sqrt());
        let scaled = timestep(i) as f64 * settings.timestep_scaling;
        let norm = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / norm, scaled / norm.sqrt());
        let (kept, noise) = match i + 1 < steps {
            true => level(i + 1).map(|next| (next.sqrt(), Some((1.0 - next).sqrt())))?,
            false => (1.0, None),
        };
        let row = Row {
            timestep: timestep(i) as f32,
            input_scale: 1.0,
            x0: settings.prediction.x0(alpha, sigma),
            clip: settings.clip,
            from_x: kept * skip,
            from_output: 0.0,
            from_x0: kept * out,
            from_previous: 0.0,
            noise,
        };
        Some(row.step())
    };
    let rows: Option<Vec<StepCoefficients>> = (0..steps).map(row).collect();
    let Some(steps) = rows else {
        let levels = settings.alphas.len();
        let what =
            format!("{steps} is not usable: trained_betas has {levels} timesteps, fewer than num_train_timesteps");
        return Err(Error::parameter("--steps", what));
    };
    Ok(StepTable { steps, init_noise_sigma: 1.0 })
}
