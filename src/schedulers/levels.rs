//! The timesteps and noise levels of diffusers' k-diffusion classes, those of Euler apart.

use super::euler_discrete::{interpolated, spaced_timesteps, training_sigmas};
use super::settings::SchedulerSettings;
use super::sigmas::{SigmaSettings, SigmaSpacing};

/// The fields of scheduler_config.json that set the noise levels of these classes.
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
