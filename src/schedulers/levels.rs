//! The timesteps and noise levels of diffusers' k-diffusion classes.

use super::betas::{BetaRange, BetaSchedule};
use super::settings::{ClassDefaults, SchedulerSettings};
use super::sigmas::{self, SigmaSettings, SigmaSpacing};
use super::step_table::{ExactCoefficients, StepCoefficients, StepTable};
use super::timestep_spacing::{self, TimestepSpacing};

/// The defaults of the classes of two evaluations a step.
pub(super) const TWO_EVALUATIONS: ClassDefaults = ClassDefaults {
    betas: BetaRange { schedule: BetaSchedule::Linear, start: 0.00085, end: 0.012 },
    timestep_spacing: TimestepSpacing::Linspace,
    prediction_types: &["epsilon", "v_prediction"],
    zero_snr: false,
};

/// The fields of scheduler_config.json that set the noise levels of these classes, Euler's own apart.
pub(super) const CONFIG_KEYS: &[&str] = &["use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"];

/// Timesteps and noise levels from noise to sample.
pub(super) struct Levels {
    pub timesteps: Vec<f32>,
    /// The level at each timestep, and 0 after the last.
    pub sigmas: Vec<f32>,
    /// The training schedule's level at each training timestep.
    pub training: Vec<f32>,
}

impl Levels {
    /// Computes them; `rounded` where the class rounds the timesteps of Karras' levels.
    pub(super) fn new(settings: &SchedulerSettings, sigmas: &SigmaSettings, rounded: bool, steps: usize) -> Self {
        let training = training_sigmas(settings);
        let mut timesteps = spaced_timesteps(settings, steps);
        let mut levels = interpolated(&timesteps, &training);
        let ends = (levels[levels.len() - 1], levels[0]);
        if let Some(spaced) = sigmas.spaced(&training, ends, steps) {
            let round = rounded && sigmas.spacing == SigmaSpacing::Karras;
            let timestep = |t: &f64| if round { t.round_ties_even() as f32 } else { *t as f32 };
            timesteps = spaced.timesteps.iter().map(timestep).collect();
            levels = spaced.levels;
        }
        let mut sigmas: Vec<f32> = levels.into_iter().map(|s| s as f32).collect();
        sigmas.push(0.0);
        Self { timesteps, sigmas, training }
    }

    /// Makes the table of a scheduler that takes two evaluations in each step but the last, which goes to x0 at once.
    pub(super) fn two_evaluations(
        &self,
        settings: &SchedulerSettings,
        pair: impl Fn(usize) -> [StepCoefficients; 2],
    ) -> StepTable {
        let last = self.timesteps.len() - 1;
        let mut steps: Vec<StepCoefficients> = (0..last).flat_map(pair).collect();
        let (now, _) = self.pair(last);
        let at = ExactCoefficients::at(self.timesteps[last], settings.prediction_type, now);
        steps.push(ExactCoefficients { x_from_x0: 1.0, ..at }.rounded());
        StepTable { steps, init_noise_sigma: init_noise_sigma(settings, &self.sigmas) }
    }

    /// The level at timestep i and the one after it.
    pub(super) fn pair(&self, i: usize) -> (f64, f64) {
        (f64::from(self.sigmas[i]), f64::from(self.sigmas[i + 1]))
    }
}

/// The geometric mean of two levels by torch's f32 logarithms, as diffusers interpolates them.
pub(super) fn geometric_mean(a: f32, b: f32) -> f32 {
    let (a, b) = (a.ln(), b.ln());
    // torch's `lerp` counts from the end at a weight of a half.
    (b - (b - a) * 0.5).exp()
}

/// Computes the standard deviation of the latents to begin with.
pub(super) fn init_noise_sigma(settings: &SchedulerSettings, sigmas: &[f32]) -> f32 {
    let max = sigmas.iter().fold(0.0f32, |a, &b| a.max(b));
    match settings.timestep_spacing {
        TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
        TimestepSpacing::Trailing | TimestepSpacing::Linspace => max,
    }
}

/// Computes the noise level of each training timestep; the last is finite.
pub(super) fn training_sigmas(settings: &SchedulerSettings) -> Vec<f32> {
    let mut alphas_cumprod = settings.alphas_cumprod.clone();
    sigmas::floor_last(&mut alphas_cumprod, settings.rescale_betas_zero_snr);
    sigmas::training(&alphas_cumprod)
}

/// Computes the timesteps of the settings' spacing, descending.
pub(super) fn spaced_timesteps(settings: &SchedulerSettings, steps: usize) -> Vec<f32> {
    let SchedulerSettings { timestep_spacing, num_train_timesteps, steps_offset, .. } = *settings;
    let timesteps = timestep_spacing::timesteps(timestep_spacing, num_train_timesteps, steps_offset, steps);
    timesteps.into_iter().map(|t| t as f32).collect()
}

/// Interpolates the noise level of each timestep.
pub(super) fn interpolated(timesteps: &[f32], training: &[f32]) -> Vec<f64> {
    timesteps.iter().map(|&t| sigmas::interpolate(f64::from(t), training)).collect()
}
