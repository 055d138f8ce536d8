//! Samplers, each reduced to a table of coefficients; host arithmetic only.
//!
//! A [`SchedulerConfig`] (from a model folder's `scheduler_config.json`, or a built-in one) and a number of steps give
//! a [`StepTable`] with one [`StepCoefficients`] for each model evaluation. All samplers share one form, so that one kernel serves all:
//!
//! ```text
//! model input = input_scale * x
//! x0          = x0_from_x * x + x0_from_output * output                        then clamped to [-clip, clip]
//! x'          = x_from_x * x + x_from_output * output + x_from_x0 * x0 + x_from_previous * previous x0 + noise * randn
//! ```
//!
//! where `output` is the model's guided output ([`classifier_free_guidance`]) and `x` the latents, which begin as
//! `init_noise_sigma * randn`. [`step`] is the reference implementation.
//!
//! To add a sampler: a file here with a `table` function, a [`SchedulerKind`] with its name and class, and a line in
//! [`SchedulerConfig::table`].

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

mod betas;
mod config;
mod ddim;
mod dpmpp;
mod euler;
mod fields;
mod guidance;
mod lcm;
mod settings;
mod sigmas;
mod timestep_spacing;

pub use config::SchedulerConfig;
pub use guidance::classifier_free_guidance;

/// A sampling method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SchedulerKind {
    /// diffusers' `EulerDiscreteScheduler` without churn.
    Euler,
    /// diffusers' `EulerAncestralDiscreteScheduler`: adds noise in every step.
    EulerAncestral,
    /// diffusers' `DDIMScheduler`.
    Ddim,
    /// diffusers' `DPMSolverMultistepScheduler` with `dpmsolver++` of order 1 or 2.
    Dpmpp2M,
    /// diffusers' `LCMScheduler`: adds noise in every step but the last.
    Lcm,
}

/// What the model's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity, alpha * noise - sigma * x0.
    V,
    /// The clean sample x0.
    Sample,
}

/// How the timesteps are spread over the training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimestepSpacing {
    /// Multiples of a whole number of timesteps, from `steps_offset` up.
    Leading,
    /// From the last timestep down.
    Trailing,
    /// Both ends included.
    Linspace,
}

/// How the noise levels follow from the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SigmaSchedule {
    /// The training schedule's noise level at each timestep.
    Default,
    /// Karras et al. 2022, rho 7; for [`SchedulerKind::Euler`] and [`SchedulerKind::Dpmpp2M`].
    Karras,
}

const METHODS: &[(&str, SchedulerKind)] = &[
    ("euler", SchedulerKind::Euler),
    ("euler-a", SchedulerKind::EulerAncestral),
    ("ddim", SchedulerKind::Ddim),
    ("dpmpp-2m", SchedulerKind::Dpmpp2M),
    ("lcm", SchedulerKind::Lcm),
];
const PREDICTIONS: &[(&str, PredictionType)] =
    &[("epsilon", PredictionType::Epsilon), ("v", PredictionType::V), ("sample", PredictionType::Sample)];
const SPACINGS: &[(&str, TimestepSpacing)] = &[
    ("leading", TimestepSpacing::Leading),
    ("trailing", TimestepSpacing::Trailing),
    ("linspace", TimestepSpacing::Linspace),
];
const SCHEDULES: &[(&str, SigmaSchedule)] = &[("default", SigmaSchedule::Default), ("karras", SigmaSchedule::Karras)];

fn named<T: Copy>(table: &[(&str, T)], flag: &str, name: &str) -> Result<T> {
    table.iter().find(|entry| entry.0 == name).map(|entry| entry.1).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|entry| entry.0).collect();
        Error::parameter(flag, format!("`{name}` is not known; one of {} is", names.join(", ")))
    })
}

fn name_of<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|entry| entry.1 == *value).map_or("?", |entry| entry.0)
}

macro_rules! command_line_name {
    ($type:ty, $table:ident, $flag:literal) => {
        impl FromStr for $type {
            type Err = Error;

            /// The value of the name that the command line uses; [`Error::Parameter`] lists the names.
            fn from_str(name: &str) -> Result<Self> {
                named($table, $flag, name)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(name_of($table, self))
            }
        }
    };
}

command_line_name!(SchedulerKind, METHODS, "--sampling-method");
command_line_name!(PredictionType, PREDICTIONS, "--prediction");
command_line_name!(TimestepSpacing, SPACINGS, "--timestep-spacing");
command_line_name!(SigmaSchedule, SCHEDULES, "--schedule");

/// The coefficients of one model evaluation; see the [module](self) for the form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCoefficients {
    /// What the model's timestep embedding takes; not always whole.
    pub timestep: f32,
    /// The model sees `input_scale * x`.
    pub input_scale: f32,
    /// Weight of x in x0.
    pub x0_from_x: f32,
    /// Weight of the model's output in x0.
    pub x0_from_output: f32,
    /// The bound of x0's magnitude, where it has one.
    pub clip: Option<f32>,
    /// Weight of x in the next x.
    pub x_from_x: f32,
    /// Weight of the model's output in the next x.
    pub x_from_output: f32,
    /// Weight of the clamped x0 in the next x; 0 where there is no clamp, as the two weights above hold it then.
    pub x_from_x0: f32,
    /// Weight of the step before's x0 in the next x; 0 in the first step.
    pub x_from_previous: f32,
    /// Weight of fresh noise in the next x. `Some` where the peer draws noise, even if the weight is 0 as in the last
    /// step of [`SchedulerKind::EulerAncestral`]: draw for exactly these steps, in order, to follow the peer's generator.
    pub noise: Option<f32>,
}

/// A sampler's coefficients for one number of steps.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTable {
    /// One row for each model evaluation, first to last.
    pub steps: Vec<StepCoefficients>,
    /// The latents begin as `init_noise_sigma * randn`.
    pub init_noise_sigma: f32,
}

impl StepCoefficients {
    /// The row as the devices' step takes it: timestep, input scale, x0's weights of x and the output, the clamp (infinity:
    /// none), the next x's weights of x, the output, x0 and the previous x0, the noise's; two of padding.
    pub fn packed(&self) -> [f32; 12] {
        let clip = self.clip.unwrap_or(f32::INFINITY);
        let (x0, noise) = ([self.x0_from_x, self.x0_from_output], self.noise.unwrap_or(0.0));
        let next = [self.x_from_x, self.x_from_output, self.x_from_x0, self.x_from_previous];
        [self.timestep, self.input_scale, x0[0], x0[1], clip, next[0], next[1], next[2], next[3], noise, 0.0, 0.0]
    }
}

impl StepTable {
    /// Whether a step reads the x0 of the step before.
    pub fn uses_history(&self) -> bool {
        self.steps.iter().any(|s| s.x_from_previous != 0.0)
    }

    /// How many times noise is drawn after the initial latents.
    pub fn draws(&self) -> usize {
        self.steps.iter().filter(|s| s.noise.is_some()).count()
    }
}

/// A row before rounding to f32, with x0's weight not yet folded into those of x and the output.
struct Row {
    timestep: f32,
    input_scale: f64,
    /// Weights of x and the output in x0.
    x0: (f64, f64),
    clip: Option<f32>,
    from_x: f64,
    from_output: f64,
    from_x0: f64,
    from_previous: f64,
    noise: Option<f64>,
}

impl Row {
    fn step(&self) -> StepCoefficients {
        let mut step = StepCoefficients {
            timestep: self.timestep,
            input_scale: self.input_scale as f32,
            x0_from_x: self.x0.0 as f32,
            x0_from_output: self.x0.1 as f32,
            clip: self.clip,
            x_from_x: self.from_x as f32,
            x_from_output: self.from_output as f32,
            x_from_x0: self.from_x0 as f32,
            x_from_previous: self.from_previous as f32,
            noise: self.noise.map(|w| w as f32),
        };
        if self.clip.is_none() {
            // Folded in f64: one rounding less, and no cancellation where x0 is a small difference of large terms.
            step.x_from_x = (self.from_x + self.from_x0 * self.x0.0) as f32;
            step.x_from_output = (self.from_output + self.from_x0 * self.x0.1) as f32;
            step.x_from_x0 = 0.0;
        }
        step
    }
}

impl PredictionType {
    /// The weights of (x, output) in x0 where x = alpha * x0 + sigma * noise.
    fn x0(self, alpha: f64, sigma: f64) -> (f64, f64) {
        match self {
            Self::Epsilon => (1.0 / alpha, -sigma / alpha),
            Self::V => (alpha, -sigma),
            Self::Sample => (0.0, 1.0),
        }
    }

    /// The weights of (x, output) in the noise where x = alpha * x0 + sigma * noise.
    fn epsilon(self, alpha: f64, sigma: f64) -> (f64, f64) {
        match self {
            Self::Epsilon => (0.0, 1.0),
            Self::V => (sigma, alpha),
            Self::Sample => (1.0 / sigma, -alpha / sigma),
        }
    }
}

/// Applies one row to the latents of any number of images: the reference of the device's step kernel.
///
/// `x` becomes the next latents. `output` is the model's guided output. `history` holds the step before's x0 and
/// receives this step's; it may be empty where [`StepTable::uses_history`] is false. `noise` holds fresh normal values
/// where [`StepCoefficients::noise`] is `Some`. All of one length, any layout. Nothing is allocated.
///
/// # Errors
/// [`Error::Graph`] if the lengths differ or if noise or history is needed and missing.
pub fn step(
    row: &StepCoefficients,
    x: &mut [f32],
    output: &[f32],
    history: &mut [f32],
    noise: Option<&[f32]>,
) -> Result<()> {
    let n = x.len();
    if output.len() != n {
        return Err(Error::Graph(format!("step: {n} latents but {} model outputs", output.len())));
    }
    if history.len() != n && !(history.is_empty() && row.x_from_previous == 0.0) {
        return Err(Error::Graph(format!("step: {n} latents but a history of {}", history.len())));
    }
    let weight = row.noise.unwrap_or(0.0);
    let noise = if weight == 0.0 { None } else { noise.filter(|noise| noise.len() == n) };
    if weight != 0.0 && noise.is_none() {
        return Err(Error::Graph(format!("step: this row needs {n} values of noise")));
    }
    for (i, (x, &output)) in x.iter_mut().zip(output).enumerate() {
        let mut x0 = row.x0_from_x * *x + row.x0_from_output * output;
        if let Some(bound) = row.clip {
            x0 = x0.clamp(-bound, bound);
        }
        let mut next = row.x_from_x * *x + row.x_from_output * output;
        // A weight of zero skips its operand, which may be unwritten.
        if row.x_from_x0 != 0.0 {
            next += row.x_from_x0 * x0;
        }
        if let Some(previous) = history.get_mut(i) {
            if row.x_from_previous != 0.0 {
                next += row.x_from_previous * *previous;
            }
            *previous = x0;
        }
        if let Some(noise) = noise {
            next += weight * noise[i];
        }
        *x = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_command_line() {
        for (name, method) in METHODS {
            assert_eq!(name.parse::<SchedulerKind>().unwrap(), *method);
            assert_eq!(method.to_string(), *name);
        }
        let error = "heun".parse::<SchedulerKind>().unwrap_err().to_string();
        assert_eq!(error, "--sampling-method: `heun` is not known; one of euler, euler-a, ddim, dpmpp-2m, lcm is");
        assert_eq!("v".parse::<PredictionType>().unwrap(), PredictionType::V);
    }

    #[test]
    fn step_checks_its_operands() {
        let table = SchedulerConfig::sdxl_default().with_kind(SchedulerKind::Dpmpp2M).unwrap().table(4).unwrap();
        assert!(table.uses_history());
        let (mut x, output) = ([1.0; 3], [0.5; 3]);
        assert!(step(&table.steps[0], &mut x, &output[..2], &mut [0.0; 3], None).is_err());
        // The first row ignores what the history holds, the second one does not.
        let mut history = [f32::NAN; 3];
        step(&table.steps[0], &mut x, &output, &mut history, None).unwrap();
        assert!(x.iter().chain(&history).all(|v| v.is_finite()));
        assert!(step(&table.steps[1], &mut x, &output, &mut [], None).is_err());
        let table = SchedulerConfig::sdxl_default().with_kind(SchedulerKind::EulerAncestral).unwrap().table(4).unwrap();
        assert_eq!(table.draws(), 4);
        assert!(step(&table.steps[0], &mut x, &output, &mut [], None).is_err());
        step(&table.steps[3], &mut x, &output, &mut [], None).unwrap();
    }
}
