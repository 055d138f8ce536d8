//! DPM-Solver++ of order 2 with fresh noise in each evaluation (Lu et al. 2022; k-diffusion's `sample_dpmpp_sde`), as
//! diffusers' `DPMSolverSDEScheduler`: two model evaluations a step but for the last, the second at the geometric mean of
//! the step's two levels.
//!
//! diffusers takes the noise of both evaluations from one Brownian motion in the noise level, which is drawn by torchsde
//! from a seed of its own. Here it is made of the request's generator with the same joint law: the increment over the
//! whole step is the one up to the middle, kept in the history, and an independent rest.
//!
//! Here x = x0 + sigma * noise, and the model sees x / sqrt(sigma^2 + 1).

use super::definition::{Scheduler, SchedulerDefinition};
use super::levels::{self, Levels};
use super::settings::SchedulerSettings;
use super::sigmas::{SigmaSettings, timestep_of};
use super::step_table::{ExactCoefficients, ExactHistory, NoiseLevel, StepCoefficients, StepTable, kept};
use crate::config_json::Fields;
use crate::error::Result;

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "dpmpp-sde",
    label: "DPM++ SDE",
    class_names: &["DPMSolverSDEScheduler"],
    config_keys: levels::CONFIG_KEYS,
    defaults: levels::TWO_EVALUATIONS,
    timesteps_from: None,
    sigma_schedules: true,
    prepare,
};

struct DpmSolverSde {
    settings: SchedulerSettings,
    sigmas: SigmaSettings,
}

fn prepare(fields: &Fields<'_>, settings: SchedulerSettings) -> Result<Box<dyn Scheduler>> {
    Ok(Box::new(DpmSolverSde { settings, sigmas: SigmaSettings::read(fields)? }))
}

/// Splits the way from level `from` to `to`: the level that the deterministic part reaches, and the weight of the noise.
fn ancestral(from: f64, to: f64) -> (f64, f64) {
    let up = (to * to * (from * from - to * to) / (from * from)).sqrt().min(to);
    ((to * to - up * up).sqrt(), up)
}

impl DpmSolverSde {
    /// Computes the two evaluations of the step from level `i` of `levels`.
    fn pair(&self, levels: &Levels, i: usize) -> [StepCoefficients; 2] {
        let (now, next) = levels.pair(i);
        let middle = (now * next).sqrt();
        let prediction = self.settings.prediction_type;
        let (down, up) = ancestral(now, middle);
        let (down_all, up_all) = ancestral(now, next);
        // The increments are those of the noise level: their variances are its differences.
        let share = ((now - middle) / (now - next)).sqrt();
        let begun = ExactHistory { from_x: down_all / now, noise: up_all * share, ..ExactHistory::default() };
        let first = ExactCoefficients {
            x_from_x: down / now,
            x_from_x0: 1.0 - down / now,
            noise: Some(up),
            history: kept([begun]),
            ..ExactCoefficients::at(levels.timesteps[i], prediction, now)
        };
        let second = ExactCoefficients {
            x_from_x0: 1.0 - down_all / now,
            x_from_history: [1.0, 0.0, 0.0],
            noise: Some(up_all * ((middle - next) / (now - next)).sqrt()),
            // For what is drawn over it, diffusers takes the level at the step's end.
            level: NoiseLevel { alpha: 1.0, sigma: next as f32 },
            ..ExactCoefficients::at(timestep_of(middle, &levels.training) as f32, prediction, middle)
        };
        [first.rounded(), second.rounded()]
    }
}

impl Scheduler for DpmSolverSde {
    fn order(&self) -> usize {
        2
    }

    fn table(&self, steps: usize) -> Result<StepTable> {
        let levels = Levels::new(&self.settings, &self.sigmas, false, steps);
        Ok(levels.two_evaluations(&self.settings, |i| self.pair(&levels, i)))
    }
}
