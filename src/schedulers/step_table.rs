//! The coefficients of every model evaluation, and the reference implementation of a step.

use crate::error::{Error, Result};

/// A noise level: x = alpha * x0 + sigma * noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// The weight of the clean sample.
    pub alpha: f32,
    /// The weight of the noise.
    pub sigma: f32,
}

impl NoiseLevel {
    /// The level of the cumulative product of 1 - beta.
    pub(super) fn of_alpha_cumprod(alpha_cumprod: f64) -> Self {
        Self { alpha: alpha_cumprod.sqrt() as f32, sigma: (1.0 - alpha_cumprod).sqrt() as f32 }
    }

    /// Puts noise on a clean sample, as diffusers' `add_noise`.
    pub fn add_noise(self, sample: f32, noise: f32) -> f32 {
        self.alpha * sample + self.sigma * noise
    }
}

/// The coefficients of one model evaluation; see the [module](super) for the form.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCoefficients {
    /// The timestep that the model's timestep embedding takes; not always whole.
    pub timestep: f32,
    /// The noise level of x before the step.
    pub level: NoiseLevel,
    /// The scale of the model's input, `input_scale * x`.
    pub input_scale: f32,
    /// The weight of x in x0.
    pub x0_from_x: f32,
    /// The weight of the model's output in x0.
    pub x0_from_output: f32,
    /// The bound of x0's magnitude, where it has one.
    pub clip: Option<f32>,
    /// The weight of x in the next x.
    pub x_from_x: f32,
    /// The weight of the model's output in the next x.
    pub x_from_output: f32,
    /// The weight of the clamped x0 in the next x; 0 where there is no clamp, as the two weights above hold it then.
    pub x_from_x0: f32,
    /// The weight of the previous step's x0 in the next x; 0 in the first step.
    pub x_from_previous: f32,
    /// The weight of fresh noise in the next x. `Some` where diffusers draws noise, even if the weight is 0 as in the
    /// last step of [`super::SchedulerKind::EulerAncestral`]: draw for exactly these steps, in order, to follow its
    /// generator.
    pub noise: Option<f32>,
}

impl StepCoefficients {
    /// Whether the step adds fresh noise: a step that only draws it, to follow the peer's generator, does not.
    pub fn adds_noise(&self) -> bool {
        self.noise.is_some_and(|weight| weight != 0.0)
    }

    /// Whether every weight and the timestep are finite; the clamp may be infinite.
    pub(super) fn is_finite(&self) -> bool {
        let x0 = [self.x0_from_x, self.x0_from_output];
        let next = [self.x_from_x, self.x_from_output, self.x_from_x0, self.x_from_previous];
        let rest = [self.timestep, self.input_scale, self.level.alpha, self.level.sigma, self.noise.unwrap_or(0.0)];
        x0.iter().chain(&next).chain(&rest).all(|v| v.is_finite())
    }
}

/// [`StepCoefficients`] as kernels read a row of the table.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct PackedStepCoefficients {
    timestep: f32,
    input_scale: f32,
    x0_from_x: f32,
    x0_from_output: f32,
    /// Infinity where there is no clamp.
    clip: f32,
    x_from_x: f32,
    x_from_output: f32,
    x_from_x0: f32,
    x_from_previous: f32,
    noise: f32,
    padding: [f32; 2],
}

impl From<&StepCoefficients> for PackedStepCoefficients {
    fn from(row: &StepCoefficients) -> Self {
        Self {
            timestep: row.timestep,
            input_scale: row.input_scale,
            x0_from_x: row.x0_from_x,
            x0_from_output: row.x0_from_output,
            clip: row.clip.unwrap_or(f32::INFINITY),
            x_from_x: row.x_from_x,
            x_from_output: row.x_from_output,
            x_from_x0: row.x_from_x0,
            x_from_previous: row.x_from_previous,
            noise: row.noise.unwrap_or(0.0),
            padding: [0.0; 2],
        }
    }
}

/// A scheduler's coefficients for one number of steps.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTable {
    /// One row for each model evaluation, first to last.
    pub steps: Vec<StepCoefficients>,
    /// The scale of the initial latents, `init_noise_sigma * randn`.
    pub init_noise_sigma: f32,
}

impl StepTable {
    /// Whether a step reads the x0 of the step before.
    pub fn uses_history(&self) -> bool {
        self.steps.iter().any(|s| s.x_from_previous != 0.0)
    }

    /// Leaves out the first `rows` rows; those that are left still read the history of the step before.
    pub(super) fn tail(mut self, rows: usize) -> Self {
        self.steps.drain(..rows.min(self.steps.len()));
        self
    }

    /// The number of times that noise is drawn after the initial latents.
    pub fn draws(&self) -> usize {
        self.steps.iter().filter(|s| s.noise.is_some()).count()
    }
}

/// A row before rounding to f32, with x0's weight not yet folded into those of x and the output.
pub(super) struct ExactCoefficients {
    pub timestep: f32,
    pub level: NoiseLevel,
    pub input_scale: f64,
    /// Weights of x and the output in x0.
    pub x0: (f64, f64),
    pub clip: Option<f32>,
    pub x_from_x: f64,
    pub x_from_output: f64,
    pub x_from_x0: f64,
    pub x_from_previous: f64,
    pub noise: Option<f64>,
}

impl ExactCoefficients {
    /// Rounds to f32, after folding x0's weight where nothing clamps x0.
    pub(super) fn rounded(&self) -> StepCoefficients {
        let mut step = StepCoefficients {
            timestep: self.timestep,
            level: self.level,
            input_scale: self.input_scale as f32,
            x0_from_x: self.x0.0 as f32,
            x0_from_output: self.x0.1 as f32,
            clip: self.clip,
            x_from_x: self.x_from_x as f32,
            x_from_output: self.x_from_output as f32,
            x_from_x0: self.x_from_x0 as f32,
            x_from_previous: self.x_from_previous as f32,
            noise: self.noise.map(|w| w as f32),
        };
        if self.clip.is_none() {
            // Folded in f64: one rounding less, and no cancellation where x0 is a small difference of large terms.
            step.x_from_x = (self.x_from_x + self.x_from_x0 * self.x0.0) as f32;
            step.x_from_output = (self.x_from_output + self.x_from_x0 * self.x0.1) as f32;
            step.x_from_x0 = 0.0;
        }
        step
    }
}

/// Applies one row to the latents of any number of images: the reference of the device's step kernel.
///
/// `x` becomes the next latents. `output` is the model's guided output. `history` holds the previous step's x0 and
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
