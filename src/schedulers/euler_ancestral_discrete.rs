//! Euler's method with ancestral sampling (k-diffusion), as diffusers' `EulerAncestralDiscreteScheduler`: a step goes
//! down past the next level and comes back up by fresh noise.

use super::betas::DEFAULT_BETAS;
use super::definition::{Scheduler, SchedulerDefinition};
use super::euler_discrete::euler_table;
use super::levels::{interpolated, spaced_timesteps, training_sigmas};
use super::settings::{ClassDefaults, SchedulerSettings};
use super::step_table::StepTable;
use super::timestep_spacing::TimestepSpacing;
use crate::error::Result;

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "euler-a",
    label: "Euler a",
    class_names: &["EulerAncestralDiscreteScheduler"],
    config_keys: &[],
    defaults: ClassDefaults {
        betas: DEFAULT_BETAS,
        timestep_spacing: TimestepSpacing::Linspace,
        prediction_types: &["epsilon", "v_prediction"],
        zero_snr: true,
    },
    timesteps_from: None,
    sigma_schedules: false,
    prepare: |_, settings| Ok(Box::new(EulerAncestralDiscrete { settings })),
};

struct EulerAncestralDiscrete {
    settings: SchedulerSettings,
}

impl Scheduler for EulerAncestralDiscrete {
    /// Computes the table. It draws noise in the last step too, with weight 0.
    fn table(&self, steps: usize) -> Result<StepTable> {
        let timesteps = spaced_timesteps(&self.settings, steps);
        let sigmas = interpolated(&timesteps, &training_sigmas(&self.settings));
        let mut sigmas: Vec<f32> = sigmas.into_iter().map(|s| s as f32).collect();
        sigmas.push(0.0);
        Ok(euler_table(&self.settings, &timesteps, &sigmas, |now, next| {
            let up = (next * next * (now * now - next * next) / (now * now)).sqrt();
            let down = (next * next - up * up).sqrt();
            (down / now, Some(up))
        }))
    }
}
