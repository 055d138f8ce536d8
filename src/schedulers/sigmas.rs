//! Noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar) for the schedulers that step in them.

use super::linspace::linspace;
use crate::config_json::Fields;
use crate::error::{Field, Result};
use crate::names::named_values;

/// The noise levels of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SigmaSchedule {
    /// The training schedule's noise level at each timestep.
    Default,
    /// Karras et al. 2022, rho 7; for [`super::SchedulerKind::Euler`] and [`super::SchedulerKind::Dpmpp2M`].
    Karras,
}

const NAMES: &[(&str, SigmaSchedule)] = &[("default", SigmaSchedule::Default), ("karras", SigmaSchedule::Karras)];
named_values!(SigmaSchedule, NAMES, Field::SigmaSchedule);

/// The spread of the noise levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SigmaSpacing {
    /// Of the training schedule, between its timesteps interpolated linearly.
    Interpolated,
    /// Karras et al. 2022, equation 5, rho 7.
    Karras,
    /// Evenly spaced logarithms.
    Exponential,
    /// Evenly spaced log-SNR (Lu et al. 2022); differs from `Exponential` only in its rounded timesteps.
    Lu,
}

/// The fields of scheduler_config.json that set the noise levels.
pub(super) struct SigmaSettings {
    pub spacing: SigmaSpacing,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    /// `final_sigmas_type` is `sigma_min`, not `zero`.
    pub ends_at_sigma_min: bool,
}

impl SigmaSettings {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self> {
        fields.off("use_beta_sigmas", "supported: use_karras_sigmas, use_exponential_sigmas, or neither")?;
        let karras = fields.flag("use_karras_sigmas", false)?;
        let exponential = fields.flag("use_exponential_sigmas", false)?;
        if karras && exponential {
            return Err(fields.refuse("use_exponential_sigmas", "not together with use_karras_sigmas"));
        }
        Ok(Self {
            spacing: match (karras, exponential) {
                (true, _) => SigmaSpacing::Karras,
                (false, true) => SigmaSpacing::Exponential,
                (false, false) => SigmaSpacing::Interpolated,
            },
            sigma_min: fields.positive("sigma_min")?,
            sigma_max: fields.positive("sigma_max")?,
            ends_at_sigma_min: fields.choice("final_sigmas_type", false, &[("zero", false), ("sigma_min", true)])?,
        })
    }
}

/// Computes the noise level of each training timestep, in torch's f32.
pub(super) fn training(alphas_cumprod: &[f32]) -> Vec<f32> {
    alphas_cumprod.iter().map(|&a| ((1.0 - a) / a).sqrt()).collect()
}

/// Puts the smallest positive number of binary16 in place of a last alpha_bar of 0, so that the first sigma is finite.
pub(super) fn floor_last(alphas_cumprod: &mut [f32], zero_snr: bool) {
    if let Some(last) = alphas_cumprod.last_mut().filter(|_| zero_snr) {
        *last = 2f32.powi(-24);
    }
}

/// Interpolates as numpy's `interp` over the indices of `values`: linear between, constant beyond.
pub(super) fn interpolate(t: f64, values: &[f32]) -> f64 {
    let last = values.len() - 1;
    if t <= 0.0 {
        return f64::from(values[0]);
    }
    if t >= last as f64 {
        return f64::from(values[last]);
    }
    let low = t.floor();
    let (a, b) = (f64::from(values[low as usize]), f64::from(values[low as usize + 1]));
    (b - a) * (t - low) + a
}

/// Spaces noise levels from `max` down to `min`, both included, Karras' way.
pub(super) fn karras(min: f64, max: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
    let ramp = linspace(0.0, 1.0, steps);
    ramp.into_iter().map(|r| (high + r * (low - high)).powf(RHO)).collect()
}

/// Spaces noise levels from `max` down to `min`, both included, with evenly spaced logarithms.
pub(super) fn exponential(min: f64, max: f64, steps: usize) -> Vec<f64> {
    linspace(max.ln(), min.ln(), steps).into_iter().map(f64::exp).collect()
}

/// Computes the fractional training timestep of a noise level, interpolated in its logarithm.
pub(super) fn timestep_of(sigma: f64, training: &[f32]) -> f64 {
    let log_sigma = sigma.max(1e-10).ln();
    let log = |i: usize| training[i].ln();
    let below = training.partition_point(|&s| f64::from(s.ln()) <= log_sigma);
    let low = below.saturating_sub(1).min(training.len() - 2);
    let weight = ((f64::from(log(low)) - log_sigma) / f64::from(log(low) - log(low + 1))).clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_stays_inside() {
        let values = [1.0, 3.0, 7.0];
        assert_eq!(interpolate(-1.0, &values), 1.0);
        assert_eq!(interpolate(1.25, &values), 4.0);
        assert_eq!(interpolate(1000.0, &values), 7.0);
    }

    #[test]
    fn timestep_of_inverse() {
        let training = [0.1, 0.2, 0.5, 3.0];
        for (i, &sigma) in training.iter().enumerate() {
            assert!((timestep_of(f64::from(sigma), &training) - i as f64).abs() < 1e-6);
        }
        assert_eq!(timestep_of(0.0, &training), 0.0);
        assert_eq!(timestep_of(1e9, &training), 3.0);
    }
}
