//! DPM-Solver++ of order 1 and 2, multistep (Lu et al. 2022, algorithm 2), as diffusers'
//! `DPMSolverMultistepScheduler`.
//!
//! Here x = alpha * x0 + s * noise with alpha^2 + s^2 = 1; levels are given as sigma = s / alpha, and lambda = -ln
//! sigma.

use serde_json::Value;

use super::betas::DEFAULT_BETAS;
use super::definition::{Scheduler, SchedulerDefinition};
use super::linspace::linspace;
use super::settings::{ClassDefaults, SchedulerSettings};
use super::sigmas::{self, SigmaSettings, SigmaSpacing};
use super::step_table::{ExactCoefficients, NoiseLevel, StepCoefficients, StepTable};
use super::timestep_spacing::{self, TimestepSpacing};
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
    },
    timesteps_from: None,
    karras_sigmas: true,
    prepare,
};

/// The number of steps below which diffusers' `lower_order_final` holds.
const FEW_STEPS: usize = 15;

struct DpmSolverMultistep {
    settings: SchedulerSettings,
    sigmas: SigmaSettings,
    solver_order: usize,
    /// `solver_type` is `heun`, not `midpoint`.
    heun: bool,
    lower_order_final: bool,
    euler_at_final: bool,
    lambda_min_clipped: f64,
}

fn prepare(fields: &Fields<'_>, settings: SchedulerSettings) -> Result<Box<dyn Scheduler>> {
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
    let deis = fields.choice("algorithm_type", false, &[("dpmsolver++", false), ("deis", true)])?;
    if deis && !sigmas.ends_at_sigma_min {
        return Err(
            fields.refuse("algorithm_type", "supported: dpmsolver++, or deis if final_sigmas_type is sigma_min")
        );
    }
    let types = [("midpoint", false), ("heun", true), ("logrho", false), ("bh1", false), ("bh2", false)];
    Ok(Box::new(DpmSolverMultistep {
        settings,
        sigmas,
        heun: fields.choice("solver_type", false, &types)?,
        solver_order: fields.count("solver_order", 2, 1, 2)?,
        lower_order_final: fields.flag("lower_order_final", true)?,
        euler_at_final: fields.flag("euler_at_final", false)?,
        lambda_min_clipped: match fields.get("lambda_min_clipped") {
            Some(Value::String(text)) if text == "-Infinity" => f64::NEG_INFINITY,
            _ => fields.optional("lambda_min_clipped")?.unwrap_or(f64::NEG_INFINITY),
        },
    }))
}

impl Scheduler for DpmSolverMultistep {
    fn table(&self, steps: usize) -> Result<StepTable> {
        self.table_from(steps, 0)
    }

    /// Computes the table. The history is the x0 of the step before: a step without one is of the first order.
    fn table_from(&self, steps: usize, first: usize) -> Result<StepTable> {
        let (timesteps, sigmas) = self.schedule(steps);
        let row = |i: usize| self.row(i, i == first, &timesteps, &sigmas);
        Ok(StepTable { steps: (first..timesteps.len()).map(row).collect(), init_noise_sigma: 1.0 })
    }
}

impl DpmSolverMultistep {
    /// Computes row i; `begins` where there is no history.
    fn row(&self, i: usize, begins: bool, timesteps: &[f32], sigmas: &[f32]) -> StepCoefficients {
        let count = timesteps.len();
        let (now, next) = (f64::from(sigmas[i]), f64::from(sigmas[i + 1]));
        let (alpha, alpha_next) = (alpha(now), alpha(next));
        // alpha_next * (1 - exp(-h)), where exp(-h) = next / now
        let gain = alpha_next * (1.0 - next / now);
        let final_first =
            self.euler_at_final || (self.lower_order_final && count < FEW_STEPS) || !self.sigmas.ends_at_sigma_min;
        let first_order = self.solver_order == 1 || begins || (i + 1 == count && final_first);
        // The second order's weight of the difference between this x0 and the one before.
        let change = if first_order {
            0.0
        } else {
            let h = (now / next).ln();
            let before = (f64::from(sigmas[i - 1]) / now).ln();
            let weight = if self.heun { alpha_next - gain / h } else { 0.5 * gain };
            weight * h / before
        };
        let row = ExactCoefficients {
            timestep: timesteps[i],
            level: NoiseLevel { alpha: alpha as f32, sigma: (now * alpha) as f32 },
            input_scale: 1.0,
            x0: self.settings.prediction_type.x0_weights(alpha, now * alpha),
            clip: None,
            x_from_x: (next * alpha_next) / (now * alpha),
            x_from_output: 0.0,
            x_from_x0: gain + change,
            x_from_previous: -change,
            noise: None,
        };
        row.rounded()
    }

    /// Computes the timesteps, whole in this scheduler, and the noise level before each of them and after the last.
    fn schedule(&self, steps: usize) -> (Vec<f32>, Vec<f32>) {
        let mut alphas_cumprod = self.settings.alphas_cumprod.clone();
        sigmas::floor_last(&mut alphas_cumprod, self.settings.rescale_betas_zero_snr);
        let training = sigmas::training(&alphas_cumprod);
        let ends = (training[0], training[training.len() - 1]);
        let max = self.sigmas.sigma_max.unwrap_or(f64::from(ends.1));
        let min = self.sigmas.sigma_min.unwrap_or(f64::from(ends.0));
        let of = |levels: Vec<f64>, rounded: bool| {
            let timestep = |&s: &f64| {
                let t = sigmas::timestep_of(s, &training);
                if rounded { t.round_ties_even() } else { t.trunc() }
            };
            (levels.iter().map(timestep).collect::<Vec<f64>>(), levels)
        };
        let rounded = !self.settings.squared_cosine;
        let (timesteps, levels) = match self.sigmas.spacing {
            SigmaSpacing::Karras => of(sigmas::karras(min, max, steps), rounded),
            SigmaSpacing::Exponential => of(sigmas::exponential(min, max, steps), false),
            SigmaSpacing::Lu => of(sigmas::exponential(f64::from(ends.0), f64::from(ends.1), steps), rounded),
            SigmaSpacing::Interpolated => {
                let timesteps = self.spaced_timesteps(&alphas_cumprod, steps);
                let levels = timesteps.iter().map(|&t| sigmas::interpolate(t, &training)).collect();
                (timesteps, levels)
            }
        };
        let mut levels: Vec<f32> = levels.into_iter().map(|s| s as f32).collect();
        levels.push(if self.sigmas.ends_at_sigma_min { ends.0 } else { 0.0 });
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

fn alpha(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}
