//! DPM-Solver++ of order 1 and 2, multistep (Lu et al. 2022, algorithm 2, and its SDE), as diffusers'
//! `DPMSolverMultistepScheduler`.
//!
//! Here x = alpha * x0 + s * noise with alpha^2 + s^2 = 1; levels are given as sigma = s / alpha, and lambda = -ln
//! sigma.

use serde_json::Value;

use super::betas::DEFAULT_BETAS;
use super::definition::{Scheduler, SchedulerDefinition};
use super::multistep_levels::{MultistepLevels, alpha};
use super::settings::{ClassDefaults, SchedulerSettings};
use super::sigmas::{SigmaSettings, SigmaSpacing};
use super::step_table::{ExactCoefficients, ExactHistory, StepCoefficients, StepTable, kept};
use super::timestep_spacing::TimestepSpacing;
use crate::config_json::Fields;
use crate::error::Result;

pub(super) const DEFINITION: SchedulerDefinition = SchedulerDefinition {
    name: "dpmpp-2m",
    label: "DPM++ 2M",
    class_names: &["DPMSolverMultistepScheduler"],
    config_keys: &[
        "algorithm_type",
        "euler_at_final",
        "final_sigmas_type",
        "lambda_min_clipped",
        "lower_order_final",
        "sigma_max",
        "sigma_min",
        "solver_order",
        "solver_type",
        "thresholding",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    ],
    defaults: ClassDefaults {
        betas: DEFAULT_BETAS,
        timestep_spacing: TimestepSpacing::Linspace,
        prediction_types: &["epsilon", "v_prediction", "sample"],
        zero_snr: true,
    },
    timesteps_from: None,
    sigma_schedules: true,
    prepare: |fields, settings| Ok(Box::new(DpmSolverMultistep::read(fields, settings, false)?)),
};

/// The number of steps below which diffusers' `lower_order_final` holds.
const FEW_STEPS: usize = 15;

/// The solver, of the ordinary or of the stochastic differential equation.
pub(super) struct DpmSolverMultistep {
    levels: MultistepLevels,
    solver_order: usize,
    /// `solver_type` is `heun`, not `midpoint`.
    heun: bool,
    lower_order_final: bool,
    euler_at_final: bool,
    /// `algorithm_type` is `sde-dpmsolver++`: each step adds fresh noise.
    sde: bool,
}

impl DpmSolverMultistep {
    pub(super) fn read(fields: &Fields<'_>, settings: SchedulerSettings, sde: bool) -> Result<Self> {
        let mut sigmas = SigmaSettings::read(fields)?;
        fields.off("thresholding", "dynamic thresholding is for pixels, not latents; false is supported")?;
        fields.off("use_flow_sigmas", "flow matching models are not supported; false is")?;
        if fields.flag("use_lu_lambdas", false)? && sigmas.spacing != SigmaSpacing::Karras {
            sigmas.spacing = SigmaSpacing::Lu;
        }
        if !matches!(fields.get("variance_type"), None | Some(Value::Null)) {
            return Err(fields.refuse("variance_type", "models that predict a variance are not supported; null is"));
        }
        // diffusers reads the older names `deis`, `logrho`, `bh1` and `bh2` as its defaults, `deis` with one condition.
        let algorithms = [("dpmsolver++", false), ("sde-dpmsolver++", false), ("deis", true)];
        let deis = fields.choice("algorithm_type", false, &algorithms)?;
        if deis && !sigmas.ends_at_sigma_min {
            return Err(
                fields.refuse("algorithm_type", "supported: dpmsolver++, or deis if final_sigmas_type is sigma_min")
            );
        }
        let types = [("midpoint", false), ("heun", true), ("logrho", false), ("bh1", false), ("bh2", false)];
        let lambda_min_clipped = match fields.get("lambda_min_clipped") {
            Some(Value::String(text)) if text == "-Infinity" => f64::NEG_INFINITY,
            _ => fields.optional("lambda_min_clipped")?.unwrap_or(f64::NEG_INFINITY),
        };
        let rounded = !settings.squared_cosine;
        Ok(Self {
            levels: MultistepLevels { settings, sigmas, lambda_min_clipped, rounded },
            heun: fields.choice("solver_type", false, &types)?,
            solver_order: fields.count("solver_order", 2, 1, 2)?,
            lower_order_final: fields.flag("lower_order_final", true)?,
            euler_at_final: fields.flag("euler_at_final", false)?,
            sde,
        })
    }

    /// Computes row i; `begins` where there is no history.
    fn row(&self, i: usize, begins: bool, timesteps: &[f32], sigmas: &[f32]) -> StepCoefficients {
        let count = timesteps.len();
        let (now, next) = (f64::from(sigmas[i]), f64::from(sigmas[i + 1]));
        let (alpha, alpha_next) = (alpha(now), alpha(next));
        // exp(-h), and for the SDE exp(-2h)
        let decay = if self.sde { (next / now) * (next / now) } else { next / now };
        let gain = alpha_next * (1.0 - decay);
        let ends_at_sigma_min = self.levels.sigmas.ends_at_sigma_min;
        let final_first = self.euler_at_final || (self.lower_order_final && count < FEW_STEPS) || !ends_at_sigma_min;
        let first_order = self.solver_order == 1 || begins || (i + 1 == count && final_first);
        // The second order's weight of the difference between this x0 and the one before.
        let change = if first_order {
            0.0
        } else {
            let h = (now / next).ln();
            let before = (f64::from(sigmas[i - 1]) / now).ln();
            let exponent = if self.sde { 2.0 * h } else { h };
            let weight = if self.heun { alpha_next - gain / exponent } else { 0.5 * gain };
            weight * h / before
        };
        let kept_noise = if self.sde { next / now } else { 1.0 };
        let row = ExactCoefficients {
            x_from_x: (next * alpha_next) / (now * alpha) * kept_noise,
            x_from_x0: gain + change,
            x_from_history: [-change, 0.0, 0.0],
            history: kept([ExactHistory { from_x0: 1.0, ..ExactHistory::default() }]),
            noise: self.sde.then(|| next * alpha_next * (1.0 - decay).sqrt()),
            ..self.levels.row(timesteps[i], now)
        };
        row.rounded()
    }
}

impl Scheduler for DpmSolverMultistep {
    fn table(&self, steps: usize) -> Result<StepTable> {
        self.table_from(steps, 0)
    }

    /// Computes the table. The history is the x0 of the step before: a step without one is of the first order.
    fn table_from(&self, steps: usize, first: usize) -> Result<StepTable> {
        Ok(self.levels.table(steps, first, |i, timesteps, sigmas| self.row(i, i == first, timesteps, sigmas)))
    }
}
