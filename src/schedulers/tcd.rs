//! Trajectory consistency distillation (Zheng et al. 2024), as diffusers' `TCDScheduler`; eta is the paper's gamma.
//!
//! Here x = sqrt(a) * x0 + sqrt(1 - a) * noise, where a is the cumulative product of 1 - beta.

use super::definition::{Scheduler, SchedulerDefinition};
use super::lcm::{self, distilled_timesteps, original_inference_steps, too_few_levels};
use super::settings::SchedulerSettings;
use super::step_table::{ExactCoefficients, StepTable};
use crate::config_json::Fields;
use crate::error::Result;

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "tcd",
    label: "TCD",
    class_names: &["TCDScheduler"],
    config_keys: &["original_inference_steps"],
    prepare,
    ..lcm::DEFINITION
};

struct Tcd {
    settings: SchedulerSettings,
    original_inference_steps: usize,
}

fn prepare(fields: &Fields<'_>, settings: SchedulerSettings) -> Result<Box<dyn Scheduler>> {
    let original_inference_steps = original_inference_steps(fields, &settings)?;
    settings.refuse_epsilon_without_signal(fields)?;
    Ok(Box::new(Tcd { settings, original_inference_steps }))
}

impl Scheduler for Tcd {
    /// Computes the table: each step predicts the sample at a level past the next one, by eta, and noises it up to that one.
    fn table(&self, steps: usize) -> Result<StepTable> {
        let settings = &self.settings;
        let timesteps = distilled_timesteps(settings, self.original_inference_steps, steps, DEFINITION.name)?;
        let level = |t: usize| settings.alphas_cumprod.get(t).map(|&a| f64::from(a));
        let row = |i: usize| {
            let next = timesteps.get(i + 1).copied().unwrap_or(0);
            // In f32, as torch multiplies a whole number by Python's float.
            let past = ((1.0 - settings.eta) as f32 * next as f32) as usize;
            let (now, next, past) = (level(timesteps[i])?, level(next)?, level(past)?);
            let (alpha, sigma) = (now.sqrt(), (1.0 - now).sqrt());
            let epsilon = settings.prediction_type.epsilon_weights(alpha, sigma);
            let noised = settings.eta > 0.0 && i + 1 < steps;
            let kept = if noised { (next / past).sqrt() } else { 1.0 };
            let row = ExactCoefficients {
                x_from_x: kept * (1.0 - past).sqrt() * epsilon.0,
                x_from_output: kept * (1.0 - past).sqrt() * epsilon.1,
                x_from_x0: kept * past.sqrt(),
                noise: noised.then(|| (1.0 - next / past).sqrt()),
                ..ExactCoefficients::unscaled(timesteps[i] as f32, settings.prediction_type, alpha, sigma)
            };
            Some(row.rounded())
        };
        let rows: Option<Vec<_>> = (0..steps).map(row).collect();
        Ok(StepTable { steps: rows.ok_or_else(|| too_few_levels(settings, steps))?, init_noise_sigma: 1.0 })
    }
}
