//! The training noise schedule: betas and the cumulative product of their complements, in torch's f32.

use super::linspace::linspace_f32;
use crate::config_json::Fields;
use crate::error::Result;

/// More training timesteps than any model has; bounds the memory that a configuration file can demand.
pub(super) const MAX_TRAIN_TIMESTEPS: usize = 100_000;

/// `beta_schedule`: the way from `beta_start` to `beta_end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum BetaSchedule {
    /// Evenly spaced.
    Linear,
    /// Evenly spaced square roots.
    ScaledLinear,
    /// Nichol and Dhariwal's cosine, capped at 0.999; it has no ends.
    SquaredCosCapV2,
}

/// Betas computed from a schedule and its ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BetaRange {
    pub schedule: BetaSchedule,
    pub start: f64,
    pub end: f64,
}

/// The default of most classes of diffusers.
pub(super) const DEFAULT_BETAS: BetaRange = BetaRange { schedule: BetaSchedule::Linear, start: 0.0001, end: 0.02 };

/// The source of the betas.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Betas {
    Range(BetaRange),
    /// `trained_betas`.
    Trained(Vec<f32>),
}

impl Betas {
    /// Reads the fields of a scheduler_config.json.
    pub(super) fn read(fields: &Fields<'_>, default: BetaRange) -> Result<Self> {
        if let Some(value) = fields.get("trained_betas").filter(|v| !v.is_null()) {
            let values = value.as_array().filter(|list| list.len() <= MAX_TRAIN_TIMESTEPS);
            let values = values.and_then(|list| list.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
            return values
                .map(Self::Trained)
                .ok_or_else(|| fields.refuse("trained_betas", "a list of numbers is needed"));
        }
        let schedules = [
            ("linear", BetaSchedule::Linear),
            ("scaled_linear", BetaSchedule::ScaledLinear),
            ("squaredcos_cap_v2", BetaSchedule::SquaredCosCapV2),
        ];
        Ok(Self::Range(BetaRange {
            start: fields.positive("beta_start")?.unwrap_or(default.start),
            end: fields.positive("beta_end")?.unwrap_or(default.end),
            schedule: fields.choice("beta_schedule", default.schedule, &schedules)?,
        }))
    }
}

impl BetaRange {
    fn betas(self, n: usize) -> Vec<f32> {
        let Self { schedule, start, end } = self;
        match schedule {
            BetaSchedule::Linear => linspace_f32(start as f32, end as f32, n),
            BetaSchedule::ScaledLinear => {
                let roots = linspace_f32(start.sqrt() as f32, end.sqrt() as f32, n);
                roots.into_iter().map(|r| r * r).collect()
            }
            BetaSchedule::SquaredCosCapV2 => {
                let bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
                let beta =
                    |i: usize| (1.0 - bar((i + 1) as f64 / n as f64) / bar(i as f64 / n as f64)).min(0.999) as f32;
                (0..n).map(beta).collect()
            }
        }
    }
}

/// Computes the cumulative products of 1 - beta, one for each training timestep; `None` where the betas make no
/// schedule (a value outside [0, 1)). With `rescale_betas_zero_snr` they are shifted to end at exactly 0 (Lin et al.
/// 2023, algorithm 1).
pub(super) fn alphas_cumprod(
    betas: &Betas,
    num_train_timesteps: usize,
    rescale_betas_zero_snr: bool,
) -> Option<Vec<f32>> {
    let mut betas = match betas {
        Betas::Range(range) => range.betas(num_train_timesteps),
        Betas::Trained(values) => values.clone(),
    };
    if betas.len() < 2 || !betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
        return None;
    }
    if rescale_betas_zero_snr {
        betas = rescaled(&betas);
    }
    let alphas = products(&betas);
    alphas.iter().all(|a| (0.0..1.0).contains(a)).then_some(alphas)
}

/// Computes torch's cumprod of 1 - beta, which accumulates in f64 and stores f32.
fn products(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    let mut next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(&mut next).collect()
}

fn rescaled(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = products(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let alphas: Vec<f32> = roots.into_iter().map(|r| (r - last) * scale).map(|r| r * r).collect();
    let mut before = 1.0;
    let mut beta = |&alpha: &f32| 1.0 - alpha / std::mem::replace(&mut before, alpha);
    alphas.iter().map(&mut beta).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(schedule: BetaSchedule, start: f64, end: f64, zero_snr: bool) -> [u32; 4] {
        let betas = Betas::Range(BetaRange { schedule, start, end });
        let alphas = alphas_cumprod(&betas, 1000, zero_snr).unwrap();
        [0, 500, 998, 999].map(|i: usize| alphas[i].to_bits())
    }

    #[test]
    fn alphas_parity() {
        let sdxl = bits(BetaSchedule::ScaledLinear, 0.00085, 0.012, false);
        assert_eq!(sdxl, [0x3f7fc84b, 0x3e8d7b73, 0x3b9a8e83, 0x3b98b3b6]);
        let linear = bits(BetaSchedule::Linear, 0.0001, 0.02, false);
        assert_eq!(linear, [0x3f7ff972, 0x3d9f53da, 0x382cbac6, 0x38294666]);
        let cosine = bits(BetaSchedule::SquaredCosCapV2, 0.0, 0.0, false);
        assert_eq!(cosine, [0x3f7ffd4b, 0x3efc0cc9, 0x3622fde3, 0x3126e6c2]);
    }

    #[test]
    fn zero_terminal_snr() {
        // torch's vectorised square root is off by a unit in the last place for some arguments, so a few bits differ.
        let found = bits(BetaSchedule::ScaledLinear, 0.00085, 0.012, true).map(f32::from_bits);
        let torch = [0x3f7fc84b, 0x3e76cd97, 0x34534ef7, 0].map(f32::from_bits);
        for (f, t) in found.iter().zip(torch) {
            assert!((f - t).abs() <= 1e-6 * t, "{found:?} {torch:?}");
        }
    }
}
