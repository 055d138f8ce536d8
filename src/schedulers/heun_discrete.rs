//! Heun's method in the noise level (Karras et al. 2022, algorithm 1), as diffusers' `HeunDiscreteScheduler`: two model
//! evaluations a step but for the last, whose second one would be at noise level 0.
//!
//! Here x = x0 + sigma * noise, and the model sees x / sqrt(sigma^2 + 1).

use super::definition::{Scheduler, SchedulerDefinition};
use super::levels::{self, Levels, init_noise_sigma};
use super::settings::{ClassDefaults, SchedulerSettings};
use super::sigmas::SigmaSettings;
use super::step_table::{ExactCoefficients, ExactHistory, StepTable, kept};
use crate::config_json::Fields;
use crate::error::Result;

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "heun",
    label: "Heun",
    class_names: &["HeunDiscreteScheduler"],
    config_keys: &[
        "clip_sample",
        "clip_sample_range",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
    ],
    defaults: ClassDefaults { prediction_types: &["epsilon", "v_prediction", "sample"], ..levels::TWO_EVALUATIONS },
    timesteps_from: None,
    sigma_schedules: true,
    prepare,
};

struct HeunDiscrete {
    settings: SchedulerSettings,
    sigmas: SigmaSettings,
    clip_sample_range: Option<f32>,
}

fn prepare(fields: &Fields<'_>, settings: SchedulerSettings) -> Result<Box<dyn Scheduler>> {
    let range = fields.positive("clip_sample_range")?.unwrap_or(1.0);
    Ok(Box::new(HeunDiscrete {
        settings,
        sigmas: SigmaSettings::read(fields)?,
        clip_sample_range: fields.flag("clip_sample", false)?.then_some(range as f32),
    }))
}

impl Scheduler for HeunDiscrete {
    fn order(&self) -> usize {
        2
    }

    fn table(&self, steps: usize) -> Result<StepTable> {
        let levels = Levels::new(&self.settings, &self.sigmas, false, steps);
        let mut rows = Vec::new();
        for (i, &timestep) in levels.timesteps.iter().enumerate() {
            let (now, next) = levels.pair(i);
            // The part of x - x0 that a step of Euler adds.
            let change = next / now - 1.0;
            let at = |timestep, level| ExactCoefficients {
                clip: self.clip_sample_range,
                ..ExactCoefficients::at(timestep, self.settings.prediction_type, level)
            };
            // Half of it stays for the second evaluation.
            let half = ExactHistory { from_x: 1.0 + 0.5 * change, from_x0: -0.5 * change, ..ExactHistory::default() };
            let predicted = ExactCoefficients { x_from_x: 1.0 + change, x_from_x0: -change, ..at(timestep, now) };
            let Some(&after) = levels.timesteps.get(i + 1) else {
                rows.push(predicted.rounded());
                break;
            };
            rows.push(ExactCoefficients { history: kept([half]), ..predicted }.rounded());
            let weight = 0.5 * (next - now) / next;
            let corrected = ExactCoefficients {
                x_from_x: weight,
                x_from_x0: -weight,
                x_from_history: [1.0, 0.0, 0.0],
                ..at(after, next)
            };
            rows.push(corrected.rounded());
        }
        Ok(StepTable { steps: rows, init_noise_sigma: init_noise_sigma(&self.settings, &levels.sigmas) })
    }
}
