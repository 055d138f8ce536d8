//! Latent consistency models (Luo et al. 2023), as diffusers' `LCMScheduler`.
//!
//! Here x = sqrt(a) * x0 + sqrt(1 - a) * noise, where a is the cumulative product of 1 - beta.

use super::betas::{BetaRange, BetaSchedule};
use super::definition::{Scheduler, SchedulerDefinition};
use super::settings::{ClassDefaults, ClipSettings, SchedulerSettings};
use super::step_table::{ExactCoefficients, NoiseLevel, StepCoefficients, StepTable};
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
    },
    timesteps_from: Some("original_inference_steps"),
    karras_sigmas: false,
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
    let most = settings.num_train_timesteps;
    let original_inference_steps = fields.count("original_inference_steps", 50, 1, most)?;
    if original_inference_steps > most {
        let what = format!("its default, {original_inference_steps}, is more than num_train_timesteps, {most}");
        return Err(fields.refuse("original_inference_steps", what));
    }
    let timestep_scaling = fields.positive("timestep_scaling")?.unwrap_or(10.0);
    settings.refuse_epsilon_without_signal(fields)?;
    Ok(Box::new(Lcm { settings, clip, original_inference_steps, timestep_scaling }))
}

impl Scheduler for Lcm {
    /// Computes the table: each step predicts the clean sample and noises it again to the next level, all but the last.
    /// The timesteps are a subset of the `original_inference_steps` of the distillation.
    fn table(&self, steps: usize) -> Result<StepTable> {
        let (settings, original) = (&self.settings, self.original_inference_steps);
        if steps > original {
            let what = format!("must be from 1 to {original} with lcm (its original_inference_steps), got {steps}");
            return Err(Error::parameter(Field::Steps, what));
        }
        let stride = settings.num_train_timesteps / original;
        let spread = original as f64 / steps as f64;
        let timestep = |i: usize| (original - (i as f64 * spread) as usize) * stride - 1;
        let level = |i: usize| settings.alphas_cumprod.get(timestep(i)).map(|&a| f64::from(a));
        let row = |i: usize| {
            let now = level(i)?;
            let (alpha, sigma) = (now.sqrt(), (1.0 - now).sqrt());
            let scaled = timestep(i) as f64 * self.timestep_scaling;
            let norm = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
            let (skip, out) = (SIGMA_DATA * SIGMA_DATA / norm, scaled / norm.sqrt());
            let (kept, noise) = match i + 1 < steps {
                true => level(i + 1).map(|next| (next.sqrt(), Some((1.0 - next).sqrt())))?,
                false => (1.0, None),
            };
            let row = ExactCoefficients {
                timestep: timestep(i) as f32,
                level: NoiseLevel::of_alpha_cumprod(now),
                input_scale: 1.0,
                x0: settings.prediction_type.x0_weights(alpha, sigma),
                clip: self.clip.clip_sample_range,
                x_from_x: kept * skip,
                x_from_output: 0.0,
                x_from_x0: kept * out,
                x_from_previous: 0.0,
                noise,
            };
            Some(row.rounded())
        };
        let rows: Option<Vec<StepCoefficients>> = (0..steps).map(row).collect();
        let Some(rows) = rows else {
            let levels = settings.alphas_cumprod.len();
            let what = format!(
                "{steps} steps need the {} of num_train_timesteps, trained_betas has {levels}",
                settings.num_train_timesteps
            );
            return Err(Error::parameter(Field::Steps, what));
        };
        Ok(StepTable { steps: rows, init_noise_sigma: 1.0 })
    }
}
