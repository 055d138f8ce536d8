//! DPM-Solver-2 in the noise level (Karras et al. 2022, algorithm 2 without churn), as diffusers'
//! `KDPM2DiscreteScheduler`: two model evaluations a step but for the last, the second at the geometric mean of
//! the step's two levels.
//!
//! Here x = x0 + sigma * noise, and the model sees x / sqrt(sigma^2 + 1).

use super::definition::{Scheduler, SchedulerDefinition};
use super::levels::{self, Levels, geometric_mean};
use super::settings::SchedulerSettings;
use super::sigmas::{SigmaSettings, timestep_of};
use super::step_table::{ExactCoefficients, ExactHistory, NoiseLevel, StepCoefficients, StepTable, kept};
use crate::config_json::Fields;
use crate::error::Result;

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "dpm2",
    label: "DPM2",
    class_names: &["KDPM2DiscreteScheduler"],
    config_keys: levels::CONFIG_KEYS,
    defaults: levels::TWO_EVALUATIONS,
    timesteps_from: None,
    sigma_schedules: true,
    prepare: |fields, settings| Ok(Box::new(KDpm2::read(fields, settings, false)?)),
};

/// DPM-Solver-2, deterministic or ancestral.
pub(super) struct KDpm2 {
    settings: SchedulerSettings,
    sigmas: SigmaSettings,
    ancestral: bool,
}

/// Splits a step that goes down past the next level and comes back up by fresh noise, in f32 as diffusers' tables are.
fn ancestral(now: f32, next: f32) -> (f32, Option<f64>) {
    let up = (next * next * (now * now - next * next) / (now * now)).sqrt();
    ((next * next - up * up).sqrt(), Some(f64::from(up)))
}

impl KDpm2 {
    pub(super) fn read(fields: &Fields<'_>, settings: SchedulerSettings, ancestral: bool) -> Result<Self> {
        Ok(Self { settings, sigmas: SigmaSettings::read(fields)?, ancestral })
    }

    /// Computes the two evaluations of the step from level `i` of `levels`.
    fn pair(&self, levels: &Levels, i: usize) -> [StepCoefficients; 2] {
        let [now, next] = [levels.sigmas[i], levels.sigmas[i + 1]];
        let (down, noise) = if self.ancestral { ancestral(now, next) } else { (next, None) };
        let [now, down, middle] = [now, down, geometric_mean(down, now)].map(f64::from);
        let change = middle / now - 1.0;
        let prediction = self.settings.prediction_type;
        let first = ExactCoefficients {
            x_from_x: 1.0 + change,
            x_from_x0: -change,
            history: kept([ExactHistory { from_x: 1.0, ..ExactHistory::default() }]),
            ..ExactCoefficients::at(levels.timesteps[i], prediction, now)
        };
        let weight = (down - now) / middle;
        let second = ExactCoefficients {
            x_from_x: weight,
            x_from_x0: -weight,
            x_from_history: [1.0, 0.0, 0.0],
            noise,
            // For what is drawn over it, diffusers takes the level at the step's end.
            level: NoiseLevel { alpha: 1.0, sigma: next },
            ..ExactCoefficients::at(timestep_of(middle, &levels.training) as f32, prediction, middle)
        };
        [first.rounded(), second.rounded()]
    }
}

impl Scheduler for KDpm2 {
    fn order(&self) -> usize {
        2
    }

    fn table(&self, steps: usize) -> Result<StepTable> {
        let levels = Levels::new(&self.settings, &self.sigmas, true, steps);
        Ok(levels.two_evaluations(&self.settings, |i| self.pair(&levels, i)))
    }
}
