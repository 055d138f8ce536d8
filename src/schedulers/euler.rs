//! Euler's method in the noise level (Karras et al. 2022, algorithm 2 without churn), as diffusers'
//! `EulerDiscreteScheduler`, and its ancestral variant (k-diffusion), as `EulerAncestralDiscreteScheduler`.
//!
//! Here x = x0 + sigma * noise, and the model sees x / sqrt(sigma^2 + 1).

use super::settings::SchedulerSettings;
use super::sigmas::{self, SigmaSpacing};
use super::{PredictionType, Row, StepTable, TimestepSpacing, timestep_spacing};

/// The table of `EulerDiscreteScheduler`.
pub(super) fn table(settings: &SchedulerSettings, steps: usize) -> StepTable {
    let (timesteps, levels) = schedule(settings, steps);
    rows(settings, &timesteps, &levels, |now, next| (next / now, None))
}

/// The table of `EulerAncestralDiscreteScheduler`: a step goes down past the next level and comes back up by fresh
/// noise. It draws in the last step too, with weight 0.
pub(super) fn ancestral(settings: &SchedulerSettings, steps: usize) -> StepTable {
    let timesteps = timestep_spacing::timesteps(settings.spacing, settings.train_steps, settings.steps_offset, steps);
    let timesteps: Vec<f32> = timesteps.into_iter().map(|t| t as f32).collect();
    let training = training(settings);
    let mut levels: Vec<f32> = interpolated(&timesteps, &training).into_iter().map(|s| s as f32).collect();
    levels.push(0.0);
    rows(settings, &timesteps, &levels, |now, next| {
        let up = (next * next * (now * now - next * next) / (now * now)).sqrt();
        let down = (next * next - up * up).sqrt();
        (down / now, Some(up))
    })
}

/// One row for each timestep. `advance` takes this level and the next to the part of x - x0 that is kept, and to the
/// weight of fresh noise.
fn rows(
    settings: &SchedulerSettings,
    timesteps: &[f32],
    levels: &[f32],
    advance: impl Fn(f64, f64) -> (f64, Option<f64>),
) -> StepTable {
    let row = |(&timestep, pair): (&f32, &[f32])| {
        let (now, next) = (f64::from(pair[0]), f64::from(pair[1]));
        let (kept, noise) = advance(now, next);
        let norm = (now * now + 1.0).sqrt();
        let x0 = match settings.prediction {
            PredictionType::Epsilon => (1.0, -now),
            PredictionType::V => (1.0 / (norm * norm), -now / norm),
            PredictionType::Sample => (0.0, 1.0),
        };
        let row = Row {
            timestep,
            input_scale: 1.0 / norm,
            x0,
            clip: None,
            from_x: kept,
            from_output: 0.0,
            from_x0: 1.0 - kept,
            from_previous: 0.0,
            noise,
        };
        row.step()
    };
    let max = levels.iter().fold(0.0f32, |a, &b| a.max(b));
    let init_noise_sigma = match settings.spacing {
        TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
        TimestepSpacing::Trailing | TimestepSpacing::Linspace => max,
    };
    StepTable { steps: timesteps.iter().zip(levels.windows(2)).map(row).collect(), init_noise_sigma }
}

fn training(settings: &SchedulerSettings) -> Vec<f32> {
    let mut alphas = settings.alphas.clone();
    sigmas::floor_last(&mut alphas, settings.zero_snr);
    sigmas::training(&alphas)
}

fn interpolated(timesteps: &[f32], training: &[f32]) -> Vec<f64> {
    timesteps.iter().map(|&t| sigmas::interpolate(f64::from(t), training)).collect()
}

/// The timesteps, and the noise level before each of them and after the last.
fn schedule(settings: &SchedulerSettings, steps: usize) -> (Vec<f32>, Vec<f32>) {
    let timesteps = timestep_spacing::timesteps(settings.spacing, settings.train_steps, settings.steps_offset, steps);
    let mut timesteps: Vec<f32> = timesteps.into_iter().map(|t| t as f32).collect();
    let training = training(settings);
    let ends = (training[0], training[training.len() - 1]);
    let mut levels = if settings.log_linear {
        // One level more than there are timesteps: the last step ends at the lowest training level, not at 0.
        let logs = timestep_spacing::linspace_f32(ends.1.ln(), ends.0.ln(), steps + 1);
        logs.into_iter().map(|log| f64::from(log.exp())).collect()
    } else {
        interpolated(&timesteps, &training)
    };
    let (first, last) = (levels[0], levels[levels.len() - 1]);
    let (max, min) = (settings.sigma_max.unwrap_or(first), settings.sigma_min.unwrap_or(last));
    let spaced = match settings.sigmas {
        SigmaSpacing::Interpolated => None,
        SigmaSpacing::Karras => Some(sigmas::karras(min, max, steps)),
        SigmaSpacing::Exponential | SigmaSpacing::Lu => Some(sigmas::exponential(min, max, steps)),
    };
    if let Some(spaced) = spaced {
        timesteps = spaced.iter().map(|&s| sigmas::timestep_of(s, &training) as f32).collect();
        levels = spaced;
    }
    let mut levels: Vec<f32> = levels.into_iter().map(|s| s as f32).collect();
    levels.push(if settings.ends_at_sigma_min { ends.0 } else { 0.0 });
    if settings.continuous && settings.prediction == PredictionType::V {
        timesteps = levels[..timesteps.len()].iter().map(|s| 0.25 * s.ln()).collect();
    }
    (timesteps, levels)
}
