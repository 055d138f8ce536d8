//! Latent consistency models (Luo et al. 2023), as diffusers' `LCMScheduler`.
//!
//! Here x = sqrt(a) * x0 + sqrt(1 - a) * noise, where a is the cumulative product of 1 - beta.

use super::betas::{BetaRange, BetaSchedule};
use super::definition::{Scheduler, SchedulerDefinition};
use super::settings::{ClassDefaults, ClipSettings, SchedulerSettings};
use super::step_table::{ExactCoefficients, StepCoefficients, StepTable};
use super::timestep_spacing::TimestepSpacing;
use crate::config_json::Fields;
use crate::error::{Error, Field, Result};

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "lcm",
    label: "LCM",
    class_names: &["LCMScheduler"],
    config_keys: &[
        "clip_sample",
        "clip_sample_range",
        "original_inference_steps",
        "set_alpha_to_one",
        "thresholding",
        "timestep_scaling",
    ],
    defaults: ClassDefaults {
        betas: BetaRange { schedule: BetaSchedule::ScaledLinear, start: 0.00085, end: 0.012 },
        timestep_spacing: TimestepSpacing::Leading,
        prediction_types: &["epsilon", "v_prediction", "sample"],
        zero_snr: true,
    },
    timesteps_from: Some("original_inference_steps"),
    sigma_schedules: false,
    prepare,
};

/// The standard deviation of the data that the boundary condition assumes.
const SIGMA_DATA: f64 = 0.5;

struct Lcm {
    settings: SchedulerSettings,
    clip: ClipSettings,
    original_inference_steps: usize,
    timestep_scaling: f64,
}

fn prepare(fields: &Fields<'_>, settings: SchedulerSettings) -> Result<Box<dyn Scheduler>> {
    let clip = ClipSettings::read(fields, false)?;
    let original_inference_steps = original_inference_steps(fields, &settings)?;
    let timestep_scaling = fields.positive("timestep_scaling")?.unwrap_or(10.0);
    settings.refuse_epsilon_without_signal(fields)?;
    Ok(Box::new(Lcm { settings, clip, original_inference_steps, timestep_scaling }))
}

/// Reads the number of steps of the distillation.
pub(super) fn original_inference_steps(fields: &Fields<'_>, settings: &SchedulerSettings) -> Result<usize> {
    let most = settings.num_train_timesteps;
    let original = fields.count("original_inference_steps", 50, 1, most)?;
    if original > most {
        let what = format!("its default, {original}, is more than num_train_timesteps, {most}");
        return Err(fields.refuse("original_inference_steps", what));
    }
    Ok(original)
}

/// Picks the timesteps evenly from those of a distillation in `original` steps, for the scheduler of that name.
pub(super) fn distilled_timesteps(
    settings: &SchedulerSettings,
    original: usize,
    steps: usize,
    name: &str,
) -> Result<Vec<usize>> {
    if steps > original {
        let what = format!("must be from 1 to {original} with {name} (its original_inference_steps), got {steps}");
        return Err(Error::parameter(Field::Steps, what));
    }
    let stride = settings.num_train_timesteps / original;
    let spread = original as f64 / steps as f64;
    Ok((0..steps).map(|i| (original - (i as f64 * spread) as usize) * stride - 1).collect())
}

/// The error for a timestep beyond the levels of `trained_betas`.
pub(super) fn too_few_levels(settings: &SchedulerSettings, steps: usize) -> Error {
    let (levels, needed) = (settings.alphas_cumprod.len(), settings.num_train_timesteps);
    let what = format!("{steps} steps need the {needed} of num_train_timesteps, trained_betas has {levels}");
    Error::parameter(Field::Steps, what)
}

impl Scheduler for Lcm {
    /// Computes the table: each step predicts the clean sample and noises it again to the next level, all but the last.
    /// The timesteps are a subset of the `original_inference_steps` of the distillation.
    fn table(&self, steps: usize) -> Result<StepTable> {
        let settings = &self.settings;
        let timesteps = distilled_timesteps(settings, self.original_inference_steps, steps, DEFINITION.name)?;
        let level = |i: usize| settings.alphas_cumprod.get(timesteps[i]).map(|&a| f64::from(a));
        let row = |i: usize| {
            let now = level(i)?;
            let (alpha, sigma) = (now.sqrt(), (1.0 - now).sqrt());
            let scaled = timesteps[i] as f64 * self.timestep_scaling;
            let norm = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
            let (skip, out) = (SIGMA_DATA * SIGMA_DATA / norm, scaled / norm.sqrt());
            let (kept, noise) = match i + 1 < steps {
                true => level(i + 1).map(|next| (next.sqrt(), Some((1.0 - next).sqrt())))?,
                false => (1.0, None),
            };
            let row = ExactCoefficients {
                clip: self.clip.clip_sample_range,
                x_from_x: kept * skip,
                x_from_x0: kept * out,
                noise,
                ..ExactCoefficients::unscaled(timesteps[i] as f32, settings.prediction_type, alpha, sigma)
            };
            Some(row.rounded())
        };
        let rows: Option<Vec<StepCoefficients>> = (0..steps).map(row).collect();
        Ok(StepTable { steps: rows.ok_or_else(|| too_few_levels(settings, steps))?, init_noise_sigma: 1.0 })
    }
}
