//! DDIM (Song et al. 2020, equation 12), as diffusers' `DDIMScheduler`, and with DiffSynth-Studio's timesteps.
//!
//! Here x = sqrt(a) * x0 + sqrt(1 - a) * noise, where a is the cumulative product of 1 - beta.

use super::settings::SchedulerSettings;
use super::{Row, StepCoefficients, StepTable, TimestepSpacing, timestep_spacing};
use crate::{Error, Result};

/// The table of `DDIMScheduler`, with its `eta`.
///
/// The level that a step ends at is the one `train_steps / steps` timesteps below its own, which is the next step's
/// own level only where the spacing is leading.
pub(super) fn table(settings: &SchedulerSettings, steps: usize, eta: f64) -> Result<StepTable> {
    let stride = settings.train_steps / steps;
    let last = if settings.alpha_to_one { 1.0 } else { settings.alphas[0] };
    let mut timesteps =
        timestep_spacing::timesteps(settings.spacing, settings.train_steps, settings.steps_offset, steps);
    if settings.spacing == TimestepSpacing::Linspace {
        timesteps.iter_mut().for_each(|t| *t = t.round_ties_even());
    }
    let row = |&t: &f64| {
        let now = *settings.alphas.get(t as usize)?;
        let next = (t as usize).checked_sub(stride).map_or(Some(last), |i| settings.alphas.get(i).copied())?;
        Some(step(settings, t as f32, f64::from(now), f64::from(next), eta))
    };
    let rows: Option<Vec<StepCoefficients>> = timesteps.iter().map(row).collect();
    let Some(steps) = rows else {
        let (offset, levels) = (settings.steps_offset, settings.alphas.len());
        let what =
            format!("{steps} is not usable: with steps_offset {offset} it begins past the last of {levels} timesteps");
        return Err(Error::parameter("--steps", what));
    };
    Ok(StepTable { steps, init_noise_sigma: 1.0 })
}

/// The table of DiffSynth's `EnhancedDDIMScheduler`: timesteps from the last to 0, rounded half to even, each step
/// ending at the next one's level and the last at no noise.
pub(super) fn diffsynth(settings: &SchedulerSettings, steps: usize) -> StepTable {
    let last = settings.train_steps - 1;
    let steps = steps.min(settings.train_steps);
    let stride = last as f64 / (steps.max(2) - 1) as f64;
    let timestep = |i: usize| (last as f64 - i as f64 * stride).round_ties_even().max(0.0) as usize;
    let level = |i: usize| if i < steps { f64::from(settings.alphas[timestep(i)]) } else { 1.0 };
    let row = |i: usize| step(settings, timestep(i) as f32, level(i), level(i + 1), 0.0);
    StepTable { steps: (0..steps).map(row).collect(), init_noise_sigma: 1.0 }
}

/// From the level `now` to the level `next`.
fn step(settings: &SchedulerSettings, timestep: f32, now: f64, next: f64, eta: f64) -> StepCoefficients {
    let (alpha, sigma) = (now.sqrt(), (1.0 - now).sqrt());
    let variance = (1.0 - next) / (1.0 - now) * (1.0 - now / next);
    let fresh = eta * variance.sqrt();
    // The noise is that of the unclamped x0, as diffusers has it without `use_clipped_model_output`.
    let epsilon = settings.prediction.epsilon(alpha, sigma);
    let direction = (1.0 - next - fresh * fresh).sqrt();
    let row = Row {
        timestep,
        input_scale: 1.0,
        x0: settings.prediction.x0(alpha, sigma),
        clip: settings.clip,
        from_x: direction * epsilon.0,
        from_output: direction * epsilon.1,
        from_x0: next.sqrt(),
        from_previous: 0.0,
        noise: (eta > 0.0).then_some(fresh),
    };
    row.step()
}
