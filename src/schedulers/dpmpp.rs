//! DPM-Solver++ of order 1 and 2, multistep (Lu et al. 2022, algorithm 2), as diffusers'
//! `DPMSolverMultistepScheduler`.
//!
//! Here x = alpha * x0 + s * noise with alpha^2 + s^2 = 1; levels are given as sigma = s / alpha, and lambda = -ln sigma.

use super::settings::SchedulerSettings;
use super::sigmas::{self, SigmaSpacing};
use super::{Row, StepCoefficients, StepTable, TimestepSpacing, timestep_spacing};

/// diffusers' `lower_order_final` holds for fewer steps than this.
const FEW_STEPS: usize = 15;

/// The table of `DPMSolverMultistepScheduler`. The history is the x0 of the step before.
pub(super) fn table(settings: &SchedulerSettings, steps: usize) -> StepTable {
    let (timesteps, levels) = schedule(settings, steps);
    let count = timesteps.len();
    let row = |i: usize| -> StepCoefficients {
        let (now, next) = (f64::from(levels[i]), f64::from(levels[i + 1]));
        let (alpha, alpha_next) = (alpha(now), alpha(next));
        // alpha_next * (1 - exp(-h)), where exp(-h) = next / now
        let gain = alpha_next * (1.0 - next / now);
        let final_first =
            settings.euler_at_final || (settings.lower_order_final && count < FEW_STEPS) || !settings.ends_at_sigma_min;
        let first_order = settings.solver_order == 1 || i == 0 || (i + 1 == count && final_first);
        // The second order's weight of the difference between this x0 and the one before.
        let change = if first_order {
            0.0
        } else {
            let h = (now / next).ln();
            let before = (f64::from(levels[i - 1]) / now).ln();
            let weight = if settings.heun { alpha_next - gain / h } else { 0.5 * gain };
            weight * h / before
        };
        let row = Row {
            timestep: timesteps[i],
            input_scale: 1.0,
            x0: settings.prediction.x0(alpha, now * alpha),
            clip: None,
            from_x: (next * alpha_next) / (now * alpha),
            from_output: 0.0,
            from_x0: gain + change,
            from_previous: -change,
            noise: None,
        };
        row.step()
    };
    StepTable { steps: (0..count).map(row).collect(), init_noise_sigma: 1.0 }
}

fn alpha(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}

/// The timesteps, whole in this sampler, and the noise level before each of them and after the last.
fn schedule(settings: &SchedulerSettings, steps: usize) -> (Vec<f32>, Vec<f32>) {
    let mut alphas = settings.alphas.clone();
    sigmas::floor_last(&mut alphas, settings.zero_snr);
    let training = sigmas::training(&alphas);
    let ends = (training[0], training[training.len() - 1]);
    let (max, min) = (settings.sigma_max.unwrap_or(f64::from(ends.1)), settings.sigma_min.unwrap_or(f64::from(ends.0)));
    let of = |levels: Vec<f64>, rounded: bool| {
        let timestep = |&s: &f64| {
            let t = sigmas::timestep_of(s, &training);
            if rounded { t.round_ties_even() } else { t.trunc() }
        };
        (levels.iter().map(timestep).collect::<Vec<f64>>(), levels)
    };
    let (timesteps, levels) = match settings.sigmas {
        SigmaSpacing::Karras => of(sigmas::karras(min, max, steps), !settings.cosine),
        SigmaSpacing::Exponential => of(sigmas::exponential(min, max, steps), false),
        SigmaSpacing::Lu => of(sigmas::exponential(f64::from(ends.0), f64::from(ends.1), steps), !settings.cosine),
        SigmaSpacing::Interpolated => {
            let timesteps = spaced(settings, &alphas, steps);
            let levels = timesteps.iter().map(|&t| sigmas::interpolate(t, &training)).collect();
            (timesteps, levels)
        }
    };
    let mut levels: Vec<f32> = levels.into_iter().map(|s| s as f32).collect();
    levels.push(if settings.ends_at_sigma_min { ends.0 } else { 0.0 });
    (timesteps.into_iter().map(|t| t as f32).collect(), levels)
}

/// The timesteps of a spacing. Other than Euler's they leave out the last of `steps + 1`, and they begin where the
/// log-SNR reaches `lambda_min_clipped`.
fn spaced(settings: &SchedulerSettings, alphas: &[f32], steps: usize) -> Vec<f64> {
    let lambda = |a: f32| a.sqrt().ln() - (1.0 - a).sqrt().ln();
    let clipped = alphas.iter().filter(|&&a| f64::from(lambda(a)) < settings.lambda_min_clipped).count();
    let last = settings.train_steps.saturating_sub(clipped).max(1);
    match settings.spacing {
        TimestepSpacing::Linspace => {
            let values = timestep_spacing::linspace(0.0, (last - 1) as f64, steps + 1);
            values.into_iter().skip(1).rev().map(f64::round_ties_even).collect()
        }
        TimestepSpacing::Leading => {
            let ratio = last / (steps + 1);
            (1..=steps).rev().map(|i| (i * ratio + settings.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => timestep_spacing::trailing(last, settings.train_steps, steps),
    }
}
