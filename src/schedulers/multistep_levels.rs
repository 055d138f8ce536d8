//! The timesteps and noise levels of diffusers' solvers in the log-SNR, DPM-Solver and UniPC.

use super::linspace::linspace;
use super::settings::SchedulerSettings;
use super::sigmas::{self, SigmaSettings, SigmaSpacing};
use super::step_table::{ExactCoefficients, StepCoefficients, StepTable};
use super::timestep_spacing::{self, TimestepSpacing};

/// The settings of these levels.
pub(super) struct MultistepLevels {
    pub settings: SchedulerSettings,
    pub sigmas: SigmaSettings,
    /// The log-SNR at which the timesteps begin.
    pub lambda_min_clipped: f64,
    /// Whether the timesteps of Karras' and Lu's levels are rounded; they are cut off else.
    pub rounded: bool,
}

impl MultistepLevels {
    /// Makes the rows from `first` on, each of its number, all timesteps and all noise levels.
    pub(super) fn table(
        &self,
        steps: usize,
        first: usize,
        row: impl Fn(usize, &[f32], &[f32]) -> StepCoefficients,
    ) -> StepTable {
        let (timesteps, sigmas) = self.schedule(steps);
        let rows = (first..timesteps.len()).map(|i| row(i, &timesteps, &sigmas));
        StepTable { steps: rows.collect(), init_noise_sigma: 1.0 }
    }

    /// A row that keeps nothing, at a noise level.
    pub(super) fn row(&self, timestep: f32, sigma: f64) -> ExactCoefficients {
        let alpha = alpha(sigma);
        ExactCoefficients::unscaled(timestep, self.settings.prediction_type, alpha, sigma * alpha)
    }

    /// Computes the timesteps, whole in these schedulers, and the noise level before each of them and after the last.
    fn schedule(&self, steps: usize) -> (Vec<f32>, Vec<f32>) {
        let mut alphas_cumprod = self.settings.alphas_cumprod.clone();
        sigmas::floor_last(&mut alphas_cumprod, self.settings.rescale_betas_zero_snr);
        let training = sigmas::training(&alphas_cumprod);
        let ends = (f64::from(training[0]), f64::from(training[training.len() - 1]));
        let lu = SigmaSettings { sigma_min: None, sigma_max: None, ..self.sigmas };
        let settings = if self.sigmas.spacing == SigmaSpacing::Lu { &lu } else { &self.sigmas };
        let rounded = match self.sigmas.spacing {
            SigmaSpacing::Karras | SigmaSpacing::Lu => self.rounded,
            SigmaSpacing::AlignYourSteps => true,
            SigmaSpacing::Interpolated | SigmaSpacing::Exponential | SigmaSpacing::Beta => false,
        };
        let (timesteps, levels) = match settings.spaced(&training, ends, steps) {
            Some(spaced) => {
                let whole = |t: f64| if rounded { t.round_ties_even() } else { t.trunc() };
                (spaced.timesteps.into_iter().map(whole).collect(), spaced.levels)
            }
            None => {
                let timesteps = self.spaced_timesteps(&alphas_cumprod, steps);
                let levels = timesteps.iter().map(|&t| sigmas::interpolate(t, &training)).collect();
                (timesteps, levels)
            }
        };
        let mut levels: Vec<f32> = levels.into_iter().map(|s| s as f32).collect();
        levels.push(if self.sigmas.ends_at_sigma_min { training[0] } else { 0.0 });
        (timesteps.into_iter().map(|t| t as f32).collect(), levels)
    }

    /// Computes the timesteps of the spacing. Other than Euler's they leave out the last of `steps + 1`, and they begin
    /// where the log-SNR reaches `lambda_min_clipped`.
    fn spaced_timesteps(&self, alphas_cumprod: &[f32], steps: usize) -> Vec<f64> {
        let SchedulerSettings { num_train_timesteps, steps_offset, .. } = self.settings;
        let lambda = |a: f32| a.sqrt().ln() - (1.0 - a).sqrt().ln();
        let clipped = alphas_cumprod.iter().filter(|&&a| f64::from(lambda(a)) < self.lambda_min_clipped).count();
        let last = num_train_timesteps.saturating_sub(clipped).max(1);
        match self.settings.timestep_spacing {
            TimestepSpacing::Linspace => {
                let values = linspace(0.0, (last - 1) as f64, steps + 1);
                values.into_iter().skip(1).rev().map(f64::round_ties_even).collect()
            }
            TimestepSpacing::Leading => {
                let ratio = last / (steps + 1);
                (1..=steps).rev().map(|i| (i * ratio + steps_offset) as f64).collect()
            }
            TimestepSpacing::Trailing => timestep_spacing::trailing(last, num_train_timesteps, steps),
        }
    }
}

/// The weight of x0 at a level, where those of x0 and noise are of length 1.
pub(super) fn alpha(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}
