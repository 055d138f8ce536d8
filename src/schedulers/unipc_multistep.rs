//! UniPC of order 1 and 2 (Zhao et al. 2023, multistep, predicting x0), as diffusers' `UniPCMultistepScheduler`.
//!
//! Here x = alpha * x0 + s * noise with alpha^2 + s^2 = 1; levels are given as sigma = s / alpha, and lambda = -ln
//! sigma. The model's output at a step corrects the sample that it was predicted from, before the next is predicted from
//! that. The corrected sample is a sum of this step's x0 and of what was known a step before: the second history tensor
//! holds the latter, the first the x0 before.

use serde_json::Value;

use super::betas::DEFAULT_BETAS;
use super::definition::{Scheduler, SchedulerDefinition};
use super::multistep_levels::{MultistepLevels, alpha};
use super::settings::{ClassDefaults, SchedulerSettings};
use super::sigmas::SigmaSettings;
use super::step_table::{ExactCoefficients, ExactHistory, StepCoefficients, StepTable, kept};
use super::timestep_spacing::TimestepSpacing;
use crate::config_json::Fields;
use crate::error::Result;

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "unipc",
    label: "UniPC",
    class_names: &["UniPCMultistepScheduler"],
    config_keys: &[
        "disable_corrector",
        "final_sigmas_type",
        "lower_order_final",
        "predict_x0",
        "sigma_max",
        "sigma_min",
        "solver_order",
        "solver_p",
        "solver_type",
        "thresholding",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_karras_sigmas",
    ],
    defaults: ClassDefaults {
        betas: DEFAULT_BETAS,
        timestep_spacing: TimestepSpacing::Linspace,
        prediction_types: &["epsilon", "v_prediction", "sample"],
        zero_snr: true,
    },
    timesteps_from: None,
    sigma_schedules: true,
    prepare,
};

struct UniPcMultistep {
    levels: MultistepLevels,
    solver_order: usize,
    /// `solver_type` is `bh1`, not `bh2`.
    bh1: bool,
    lower_order_final: bool,
    /// Steps after which nothing is corrected.
    disable_corrector: Vec<usize>,
}

fn prepare(fields: &Fields<'_>, settings: SchedulerSettings) -> Result<Box<dyn Scheduler>> {
    let sigmas = SigmaSettings::read(fields)?;
    fields.off("thresholding", "dynamic thresholding is for pixels, not latents; false is supported")?;
    fields.off("use_flow_sigmas", "flow matching models are not supported; false is")?;
    fields.only("predict_x0", &[true.into()])?;
    fields.only("solver_p", &[])?;
    // diffusers reads the names of other solvers' types as its default.
    let types = [("bh2", false), ("bh1", true), ("midpoint", false), ("heun", false), ("logrho", false)];
    let disable_corrector = match fields.present("disable_corrector") {
        None => Vec::new(),
        Some(value) => {
            let number = |step: &Value| step.as_u64().and_then(|step| usize::try_from(step).ok());
            let numbers = value.as_array().map(|list| list.iter().map(number).collect::<Option<Vec<usize>>>());
            numbers.flatten().ok_or_else(|| fields.refuse("disable_corrector", "a list of the numbers of steps"))?
        }
    };
    Ok(Box::new(UniPcMultistep {
        levels: MultistepLevels { settings, sigmas, lambda_min_clipped: f64::NEG_INFINITY, rounded: true },
        bh1: fields.choice("solver_type", false, &types)?,
        solver_order: fields.count("solver_order", 2, 1, 2)?,
        lower_order_final: fields.flag("lower_order_final", true)?,
        disable_corrector,
    }))
}

/// The weights of a sum over the sample that a step begins with, this step's x0, and the x0 of the step before.
#[derive(Clone, Copy, Default)]
struct Weights {
    sample: f64,
    x0: f64,
    previous: f64,
}

/// The way from one noise level to a lower one.
struct Step {
    /// The weight of the sample.
    decay: f64,
    alpha: f64,
    /// exp(-h) - 1, and the paper's B(h).
    phi: f64,
    b: f64,
    h: f64,
    /// The log-SNR of the level before, from the first level's, in h.
    ratio: f64,
}

impl UniPcMultistep {
    fn step(&self, sigmas: &[f32], i: usize) -> Step {
        let level = |k: usize| f64::from(sigmas[k]);
        let (now, next) = (level(i), level(i + 1));
        let h = (now / next).ln();
        let phi = next / now - 1.0;
        Step {
            decay: next * alpha(next) / (now * alpha(now)),
            alpha: alpha(next),
            phi,
            b: if self.bh1 { -h } else { phi },
            h,
            ratio: if i > 0 { -(level(i - 1) / now).ln() / h } else { 0.0 },
        }
    }

    /// The order of the step i of `count`, of which the first is `first`.
    fn order(&self, i: usize, first: usize, count: usize) -> usize {
        let most = if self.lower_order_final { self.solver_order.min(count - i) } else { self.solver_order };
        most.min(i - first + 1)
    }

    /// Whether the model's output at step i corrects the sample.
    fn corrects(&self, i: usize, first: usize) -> bool {
        i > first && !self.disable_corrector.contains(&(i - 1))
    }

    /// The prediction of the next sample.
    fn predictor(&self, step: &Step, order: usize) -> Weights {
        let mut weights = Weights { sample: step.decay, x0: -step.alpha * step.phi, previous: 0.0 };
        if order == 2 {
            weights.previous = -step.alpha * step.b * 0.5 / step.ratio;
            weights.x0 -= weights.previous;
        }
        weights
    }

    /// The corrected sample at the end of a step: a sum over what the step knew, and the weight of the x0 at its end.
    fn corrector(&self, step: &Step, order: usize) -> (Weights, f64) {
        let mut weights = Weights { sample: step.decay, x0: -step.alpha * step.phi, previous: 0.0 };
        let scale = -step.alpha * step.b;
        let rho = if order == 1 {
            0.5
        } else {
            let first = step.phi / -step.h - 1.0;
            let second = first / -step.h - 0.5;
            let (b1, b2) = (first / step.b, 2.0 * second / step.b);
            let rho = (b1 - b2) / (1.0 - step.ratio);
            weights.previous = scale * rho / step.ratio;
            b1 - rho
        };
        weights.x0 -= weights.previous + scale * rho;
        (weights, scale * rho)
    }

    /// Computes row i of a table that begins at `first`.
    fn row(&self, i: usize, first: usize, timesteps: &[f32], sigmas: &[f32]) -> StepCoefficients {
        let (count, now) = (timesteps.len(), f64::from(sigmas[i]));
        let predicted = self.predictor(&self.step(sigmas, i), self.order(i, first, count));
        // This step's corrected sample: the second history tensor and a part of x0, or x as it is.
        let corrects = self.corrects(i, first);
        let own = match corrects {
            true => self.corrector(&self.step(sigmas, i - 1), self.order(i - 1, first, count)).1,
            false => 0.0,
        };
        let sum = |weights: Weights| ExactHistory {
            from_x: if corrects { 0.0 } else { weights.sample },
            from_x0: weights.x0 + weights.sample * own,
            from_history: [weights.previous, if corrects { weights.sample } else { 0.0 }, 0.0],
            ..ExactHistory::default()
        };
        let known = match i + 1 < count && self.corrects(i + 1, first) {
            true => sum(self.corrector(&self.step(sigmas, i), self.order(i, first, count)).0),
            false => ExactHistory::default(),
        };
        let next = sum(predicted);
        let row = ExactCoefficients {
            x_from_x: next.from_x,
            x_from_x0: next.from_x0,
            x_from_history: next.from_history,
            history: kept([ExactHistory { from_x0: 1.0, ..ExactHistory::default() }, known]),
            ..self.levels.row(timesteps[i], now)
        };
        row.rounded()
    }
}

impl Scheduler for UniPcMultistep {
    fn table(&self, steps: usize) -> Result<StepTable> {
        self.table_from(steps, 0)
    }

    /// Computes the table: the first step is of order 1 and corrects nothing.
    fn table_from(&self, steps: usize, first: usize) -> Result<StepTable> {
        Ok(self.levels.table(steps, first, |i, timesteps, sigmas| self.row(i, first, timesteps, sigmas)))
    }
}
