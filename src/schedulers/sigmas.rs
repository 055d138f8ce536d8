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
    /// Karras et al. 2022, rho 7: diffusers' `use_karras_sigmas`.
    Karras,
    /// Evenly spaced logarithms: diffusers' `use_exponential_sigmas`.
    Exponential,
    /// Quantiles of the beta distribution with alpha = beta = 0.6 (Lee et al. 2024): diffusers' `use_beta_sigmas`.
    Beta,
    /// Align Your Steps (Sabour et al. 2024): the ten timesteps published for SDXL, diffusers'
    /// `AysSchedules["StableDiffusionXLTimesteps"]`; for other numbers of steps their noise levels, interpolated evenly
    /// in the logarithm.
    AlignYourSteps,
    /// Evenly spaced timesteps from the last one down: `timestep_spacing` "trailing", as diffusers documents it, with the
    /// training schedule's noise levels.
    SgmUniform,
}

const NAMES: &[(&str, SigmaSchedule)] = &[
    ("default", SigmaSchedule::Default),
    ("karras", SigmaSchedule::Karras),
    ("exponential", SigmaSchedule::Exponential),
    ("beta", SigmaSchedule::Beta),
    ("ays", SigmaSchedule::AlignYourSteps),
    ("sgm-uniform", SigmaSchedule::SgmUniform),
];
named_values!(SigmaSchedule, NAMES, Field::SigmaSchedule);

impl SigmaSchedule {
    /// Every schedule.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        NAMES.iter().map(|entry| entry.1)
    }

    /// The names of all schedules, as help texts list them.
    pub const EACH_NAME: &'static str = "default, karras, exponential, beta, ays or sgm-uniform";

    /// The name that AUTOMATIC1111's interface appends to the scheduler's, such as `Karras`.
    pub fn label(self) -> Option<&'static str> {
        match self {
            Self::Default => None,
            Self::Karras => Some("Karras"),
            Self::Exponential => Some("Exponential"),
            Self::Beta => Some("Beta"),
            Self::AlignYourSteps => Some("Align Your Steps"),
            Self::SgmUniform => Some("SGM Uniform"),
        }
    }

    /// The field of scheduler_config.json that turns the schedule on.
    pub(super) fn field(self) -> Option<&'static str> {
        match self {
            Self::Default | Self::SgmUniform => None,
            Self::Karras => Some("use_karras_sigmas"),
            Self::Exponential => Some("use_exponential_sigmas"),
            Self::Beta => Some("use_beta_sigmas"),
            Self::AlignYourSteps => Some(ALIGN_YOUR_STEPS),
        }
    }
}

/// A field that diffusers does not have: its pipelines take these timesteps as an argument.
const ALIGN_YOUR_STEPS: &str = "_align_your_steps";

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
    /// Quantiles of a beta distribution.
    Beta,
    /// [`SigmaSchedule::AlignYourSteps`].
    AlignYourSteps,
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
        let spacings = [
            ("use_karras_sigmas", SigmaSpacing::Karras),
            ("use_exponential_sigmas", SigmaSpacing::Exponential),
            ("use_beta_sigmas", SigmaSpacing::Beta),
            (ALIGN_YOUR_STEPS, SigmaSpacing::AlignYourSteps),
        ];
        let mut chosen: Option<(&str, SigmaSpacing)> = None;
        for (name, spacing) in spacings {
            if fields.flag(name, false)? {
                if let Some((other, _)) = chosen {
                    return Err(fields.refuse(name, format!("not together with {other}")));
                }
                chosen = Some((name, spacing));
            }
        }
        Ok(Self {
            spacing: chosen.map_or(SigmaSpacing::Interpolated, |(_, spacing)| spacing),
            sigma_min: fields.positive("sigma_min")?,
            sigma_max: fields.positive("sigma_max")?,
            ends_at_sigma_min: fields.choice("final_sigmas_type", false, &[("zero", false), ("sigma_min", true)])?,
        })
    }
}

/// Noise levels that do not follow the timesteps, and the training timesteps at which they lie, mostly fractions.
pub(super) struct SpacedLevels {
    pub timesteps: Vec<f64>,
    pub levels: Vec<f64>,
}

impl SigmaSettings {
    /// Spaces the levels between the configured ends, by default `ends` (the least, the greatest); `None` where the levels
    /// are those of the timesteps.
    pub(super) fn spaced(&self, training: &[f32], ends: (f64, f64), steps: usize) -> Option<SpacedLevels> {
        let (min, max) = (self.sigma_min.unwrap_or(ends.0), self.sigma_max.unwrap_or(ends.1));
        let levels = match self.spacing {
            SigmaSpacing::Interpolated => return None,
            SigmaSpacing::AlignYourSteps => return Some(align_your_steps(training, steps)),
            SigmaSpacing::Karras => karras(min, max, steps),
            SigmaSpacing::Exponential | SigmaSpacing::Lu => exponential(min, max, steps),
            SigmaSpacing::Beta => beta(min, max, steps),
        };
        Some(SpacedLevels { timesteps: levels.iter().map(|&s| timestep_of(s, training)).collect(), levels })
    }
}

/// The training timesteps of Align Your Steps for SDXL (Sabour et al. 2024).
const AYS_TIMESTEPS: [usize; 10] = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13];
/// The number of training timesteps for which they were found.
pub(super) const AYS_TRAIN_TIMESTEPS: usize = 1000;

/// Takes the published timesteps, or interpolates the logarithms of their levels for another number of steps. Needs
/// [`AYS_TRAIN_TIMESTEPS`] training levels.
fn align_your_steps(training: &[f32], steps: usize) -> SpacedLevels {
    let level = |t: usize| f64::from(training.get(t).copied().unwrap_or(f32::NAN));
    if steps == AYS_TIMESTEPS.len() {
        let timesteps = AYS_TIMESTEPS.iter().map(|&t| t as f64).collect();
        return SpacedLevels { timesteps, levels: AYS_TIMESTEPS.map(level).to_vec() };
    }
    // The level after the last step closes the list; the schedulers end at 0 in its place.
    let logs: Vec<f64> = AYS_TIMESTEPS.into_iter().chain([0]).map(|t| level(t).ln()).collect();
    let at = |i: usize| {
        let place = i as f64 / steps as f64 * AYS_TIMESTEPS.len() as f64;
        let low = (place as usize).min(AYS_TIMESTEPS.len() - 1);
        (logs[low] + (logs[low + 1] - logs[low]) * (place - low as f64)).exp()
    };
    let levels: Vec<f64> = (0..steps).map(at).collect();
    SpacedLevels { timesteps: levels.iter().map(|&s| timestep_of(s, training)).collect(), levels }
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

/// Spaces noise levels from `max` down to `min` by the quantiles of the beta distribution with both parameters 0.6.
fn beta(min: f64, max: f64, steps: usize) -> Vec<f64> {
    let quantiles = linspace(0.0, 1.0, steps).into_iter().map(|x| beta_quantile(0.6, 1.0 - x));
    quantiles.map(|q| min + q * (max - min)).collect()
}

/// The quantile of probability `p` of the beta distribution whose parameters are both `a`.
fn beta_quantile(a: f64, p: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    if p > 0.5 {
        return 1.0 - beta_quantile(a, 1.0 - p);
    }
    // With x = y^(1/a) the density is smooth at 0, where the quantiles are closest together.
    let target = p * 2.0 * half_beta_integral(a, 0.5f64.powf(a));
    let (mut low, mut high) = (0.0, 0.5f64.powf(a));
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if half_beta_integral(a, middle) < target { low = middle } else { high = middle }
    }
    (0.5 * (low + high)).powf(1.0 / a)
}

/// The integral of x^(a-1) (1-x)^(a-1) from 0 to y^(1/a), at most a half: the binomial series of the second factor.
fn half_beta_integral(a: f64, y: f64) -> f64 {
    let x = y.powf(1.0 / a);
    // The terms fall at least as fast as 2^-k.
    let (mut coefficient, mut power, mut sum) = (1.0, 1.0, 0.0);
    for k in 0..80 {
        let k = f64::from(k);
        sum += coefficient * power / (k + a);
        coefficient *= (k + 1.0 - a) / (k + 1.0);
        power *= x;
    }
    y * sum
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

    /// scipy 1.17's `scipy.stats.beta.ppf(p, 0.6, 0.6)`.
    #[test]
    fn beta_quantiles() {
        let quantiles = [
            (0.0, 0.0),
            (0.001, 1.855873851745199e-05),
            (0.1, 0.03958440558878085),
            (0.25, 0.17568037865269498),
            (0.5, 0.5),
            (0.9, 0.9604155944112192),
            (0.999, 0.9999814412614826),
            (1.0, 1.0),
        ];
        for (p, quantile) in quantiles {
            assert!(
                (beta_quantile(0.6, p) - quantile).abs() < 1e-14 + 1e-12 * quantile,
                "{p}: {}",
                beta_quantile(0.6, p)
            );
        }
    }

    #[test]
    fn align_your_steps_levels() {
        let training: Vec<f32> = (0..1000).map(|t| (t as f32 / 250.0).exp()).collect();
        let ten = align_your_steps(&training, 10);
        assert_eq!((ten.timesteps[1], ten.levels[1]), (845.0, f64::from(training[845])));
        // Twice as many: every second level is a published one, and the first is the greatest.
        let twenty = align_your_steps(&training, 20);
        for i in 0..10 {
            assert!((twenty.levels[2 * i] / ten.levels[i] - 1.0).abs() < 1e-12);
        }
        assert!((twenty.timesteps[1] - 922.0).abs() < 1e-3, "{}", twenty.timesteps[1]);
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
