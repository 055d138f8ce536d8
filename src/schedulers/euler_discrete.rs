//! Euler's method in the noise level (Karras et al. 2022, algorithm 2 without churn), as diffusers'
//! `EulerDiscreteScheduler`.
//!
//! Here x = x0 + sigma * noise, and the model sees x / sqrt(sigma^2 + 1).

use super::betas::DEFAULT_BETAS;
use super::definition::{Scheduler, SchedulerDefinition};
use super::levels::{init_noise_sigma, interpolated, spaced_timesteps, training_sigmas};
use super::linspace::linspace_f32;
use super::prediction_type::PredictionType;
use super::settings::{ClassDefaults, SchedulerSettings};
use super::sigmas::SigmaSettings;
use super::step_table::{ExactCoefficients, StepTable};
use super::timestep_spacing::TimestepSpacing;
use crate::config_json::Fields;
use crate::error::Result;

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "euler",
    label: "Euler",
    class_names: &["EulerDiscreteScheduler"],
    config_keys: &[
        "final_sigmas_type",
        "interpolation_type",
        "sigma_max",
        "sigma_min",
        "timestep_type",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
    ],
    defaults: ClassDefaults {
        betas: DEFAULT_BETAS,
        timestep_spacing: TimestepSpacing::Linspace,
        prediction_types: &["epsilon", "v_prediction", "sample", "original_sample"],
        zero_snr: true,
    },
    timesteps_from: None,
    sigma_schedules: true,
    prepare,
};

struct EulerDiscrete {
    settings: SchedulerSettings,
    sigmas: SigmaSettings,
    /// `interpolation_type` is `log_linear`.
    log_linear: bool,
    /// `timestep_type` is `continuous`.
    continuous: bool,
}

fn prepare(fields: &Fields<'_>, settings: SchedulerSettings) -> Result<Box<dyn Scheduler>> {
    Ok(Box::new(EulerDiscrete {
        settings,
        sigmas: SigmaSettings::read(fields)?,
        log_linear: fields.choice("interpolation_type", false, &[("linear", false), ("log_linear", true)])?,
        continuous: fields.choice("timestep_type", false, &[("discrete", false), ("continuous", true)])?,
    }))
}

impl Scheduler for EulerDiscrete {
    fn table(&self, steps: usize) -> Result<StepTable> {
        let (timesteps, sigmas) = self.schedule(steps);
        Ok(euler_table(&self.settings, &timesteps, &sigmas, |now, next| (next / now, None)))
    }
}

impl EulerDiscrete {
    /// Computes the timesteps, and the noise level before each of them and after the last.
    fn schedule(&self, steps: usize) -> (Vec<f32>, Vec<f32>) {
        let training = training_sigmas(&self.settings);
        let mut timesteps = spaced_timesteps(&self.settings, steps);
        let ends = (training[0], training[training.len() - 1]);
        let mut levels = if self.log_linear {
            // One level more than there are timesteps: the last step ends at the lowest training level, not at 0.
            let logs = linspace_f32(ends.1.ln(), ends.0.ln(), steps + 1);
            logs.into_iter().map(|log| f64::from(log.exp())).collect()
        } else {
            interpolated(&timesteps, &training)
        };
        let (first, last) = (levels[0], levels[levels.len() - 1]);
        if let Some(spaced) = self.sigmas.spaced(&training, (last, first), steps) {
            timesteps = spaced.timesteps.iter().map(|&t| t as f32).collect();
            levels = spaced.levels;
        }
        let mut levels: Vec<f32> = levels.into_iter().map(|s| s as f32).collect();
        levels.push(if self.sigmas.ends_at_sigma_min { ends.0 } else { 0.0 });
        if self.continuous && self.settings.prediction_type == PredictionType::V {
            timesteps = levels[..timesteps.len()].iter().map(|s| 0.25 * s.ln()).collect();
        }
        (timesteps, levels)
    }
}

/// Makes one row for each timestep, where `sigmas` has one level more. `advance` takes this level and the next to the
/// part of x - x0 that is kept, and to the weight of fresh noise.
pub(super) fn euler_table(
    settings: &SchedulerSettings,
    timesteps: &[f32],
    sigmas: &[f32],
    advance: impl Fn(f64, f64) -> (f64, Option<f64>),
) -> StepTable {
    let row = |(&timestep, pair): (&f32, &[f32])| {
        let (now, next) = (f64::from(pair[0]), f64::from(pair[1]));
        let (kept, noise) = advance(now, next);
        let row = ExactCoefficients {
            x_from_x: kept,
            x_from_x0: 1.0 - kept,
            noise,
            ..ExactCoefficients::at(timestep, settings.prediction_type, now)
        };
        row.rounded()
    };
    StepTable {
        steps: timesteps.iter().zip(sigmas.windows(2)).map(row).collect(),
        init_noise_sigma: init_noise_sigma(settings, sigmas),
    }
}
