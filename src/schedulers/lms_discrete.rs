//! The linear multistep method of order 4 in the noise level (k-diffusion's `sample_lms`), as diffusers'
//! `LMSDiscreteScheduler`.
//!
//! Here x = x0 + sigma * noise, and the model sees x / sqrt(sigma^2 + 1). A step adds a sum over the derivatives
//! (x - x0) / sigma of up to four steps. Each history tensor holds the part of a later step's sum that is known already.

use super::betas::DEFAULT_BETAS;
use super::definition::{Scheduler, SchedulerDefinition};
use super::levels::{self, Levels, init_noise_sigma};
use super::settings::{ClassDefaults, SchedulerSettings};
use super::sigmas::SigmaSettings;
use super::step_table::{ExactCoefficients, ExactHistory, HISTORY, StepCoefficients, StepTable};
use super::timestep_spacing::TimestepSpacing;
use crate::config_json::Fields;
use crate::error::Result;

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "lms",
    label: "LMS",
    class_names: &["LMSDiscreteScheduler"],
    config_keys: levels::CONFIG_KEYS,
    defaults: ClassDefaults {
        betas: DEFAULT_BETAS,
        timestep_spacing: TimestepSpacing::Linspace,
        prediction_types: &["epsilon", "v_prediction", "sample"],
        zero_snr: false,
    },
    timesteps_from: None,
    sigma_schedules: true,
    prepare,
};

/// Steps whose derivatives count.
const ORDER: usize = HISTORY + 1;

struct LmsDiscrete {
    settings: SchedulerSettings,
    sigmas: SigmaSettings,
}

fn prepare(fields: &Fields<'_>, settings: SchedulerSettings) -> Result<Box<dyn Scheduler>> {
    Ok(Box::new(LmsDiscrete { settings, sigmas: SigmaSettings::read(fields)? }))
}

/// The weight in step `i` of the derivative of `back` steps before: the integral over the step of that step's Lagrange
/// polynomial, of degree 3 at most, by Gauss and Legendre's rule of two points.
fn weight(sigmas: &[f32], i: usize, back: usize) -> f64 {
    let order = (i + 1).min(ORDER);
    if back >= order {
        return 0.0;
    }
    let level = |k: usize| f64::from(sigmas[k]);
    let polynomial = |at: f64| -> f64 {
        let others = (0..order).filter(|&k| k != back);
        others.map(|k| (at - level(i - k)) / (level(i - back) - level(i - k))).product()
    };
    let (middle, half) = (0.5 * (level(i) + level(i + 1)), 0.5 * (level(i + 1) - level(i)));
    let offset = half / 3f64.sqrt();
    half * (polynomial(middle - offset) + polynomial(middle + offset))
}

impl LmsDiscrete {
    /// Computes row i of a table that begins at `first`, before which there are no derivatives.
    fn row(&self, levels: &Levels, i: usize, first: usize) -> StepCoefficients {
        let (count, now) = (levels.timesteps.len(), f64::from(levels.sigmas[i]));
        // Tensor k holds what the step k + 1 after this one adds; each row hands it on to the tensor before.
        let history = std::array::from_fn(|k| {
            let later = i + 1 + k;
            if later >= count {
                return ExactHistory::default();
            }
            let weight = weight(&levels.sigmas, later, k + 1) / now;
            let mut from_history = [0.0; HISTORY];
            // What is unwritten is not read: the last tensor's successor does not exist, and the first row has none.
            if k + 1 < HISTORY && i > first {
                from_history[k + 1] = 1.0;
            }
            ExactHistory { from_x: weight, from_x0: -weight, from_history, ..ExactHistory::default() }
        });
        let own = weight(&levels.sigmas, i, 0) / now;
        let row = ExactCoefficients {
            x_from_x: 1.0 + own,
            x_from_x0: -own,
            x_from_history: [if i > first { 1.0 } else { 0.0 }, 0.0, 0.0],
            history,
            ..ExactCoefficients::at(levels.timesteps[i], self.settings.prediction_type, now)
        };
        row.rounded()
    }
}

impl Scheduler for LmsDiscrete {
    fn table(&self, steps: usize) -> Result<StepTable> {
        self.table_from(steps, 0)
    }

    /// Computes the table. As in diffusers the order is that of the whole schedule's step, while the derivatives before
    /// `first` are missing from its sum.
    fn table_from(&self, steps: usize, first: usize) -> Result<StepTable> {
        let levels = Levels::new(&self.settings, &self.sigmas, false, steps);
        let rows = (first..levels.timesteps.len()).map(|i| self.row(&levels, i, first)).collect();
        Ok(StepTable { steps: rows, init_noise_sigma: init_noise_sigma(&self.settings, &levels.sigmas) })
    }
}
