//! The coefficients of every model evaluation, and the reference implementation of a step.

use super::prediction_type::PredictionType;
use crate::error::{Error, Result};

/// A noise level: x = alpha * x0 + sigma * noise.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NoiseLevel {
    /// The weight of the clean sample.
    pub alpha: f32,
    /// The weight of the noise.
    pub sigma: f32,
}

impl NoiseLevel {
    /// The level of the clean sample, at which the steps end.
    pub const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0 };

    /// Puts noise on a clean sample, as diffusers' `add_noise`.
    pub fn add_noise(self, sample: f32, noise: f32) -> f32 {
        self.alpha * sample + self.sigma * noise
    }
}

/// The tensors, each as large as the latents, in which a table keeps what later rows need.
pub const HISTORY: usize = 3;

/// The weights of one history tensor's next value; all zero leaves it as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HistoryCoefficients {
    /// The weight of x.
    pub from_x: f32,
    /// The weight of the model's output.
    pub from_output: f32,
    /// The weight of the clamped x0; 0 where there is no clamp, as the two weights above hold it then.
    pub from_x0: f32,
    /// The weight of the row's fresh noise.
    pub noise: f32,
    /// The weights of the history before this row.
    pub from_history: [f32; HISTORY],
}

impl HistoryCoefficients {
    fn all(&self) -> impl Iterator<Item = f32> {
        [self.from_x, self.from_output, self.from_x0, self.noise].into_iter().chain(self.from_history)
    }

    /// Whether the row writes the tensor.
    fn is_written(&self) -> bool {
        self.all().any(|weight| weight != 0.0)
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
    /// The weights of the history in the next x; 0 for a tensor that no row before has written.
    pub x_from_history: [f32; HISTORY],
    /// The history's next values.
    pub history: [HistoryCoefficients; HISTORY],
    /// The weight of fresh noise in the next x. `Some` where diffusers draws noise, even if the weight is 0 as in the
    /// last step of [`super::SchedulerKind::EulerAncestral`]: draw for exactly these steps, in order, to follow its
    /// generator.
    pub noise: Option<f32>,
}

impl StepCoefficients {
    /// Whether the step adds fresh noise: a step that only draws it, to follow the peer's generator, does not.
    pub fn adds_noise(&self) -> bool {
        self.noise.is_some_and(|weight| weight != 0.0 || self.history.iter().any(|to| to.noise != 0.0))
    }

    /// The clean sample that the model's guided output says x is made of.
    pub fn x0(&self, x: f32, output: f32) -> f32 {
        let x0 = self.x0_from_x * x + self.x0_from_output * output;
        self.clip.map_or(x0, |bound| x0.clamp(-bound, bound))
    }

    /// The history tensors that the row reads.
    fn reads(&self) -> [bool; HISTORY] {
        std::array::from_fn(|k| {
            self.x_from_history[k] != 0.0 || self.history.iter().any(|to| to.from_history[k] != 0.0)
        })
    }

    /// Whether the row reads or writes the history.
    pub fn uses_history(&self) -> bool {
        self.reads().contains(&true) || self.history.iter().any(HistoryCoefficients::is_written)
    }

    /// Whether every weight and the timestep are finite; the clamp may be infinite.
    pub(super) fn is_finite(&self) -> bool {
        let x0 = [self.x0_from_x, self.x0_from_output];
        let next = [self.x_from_x, self.x_from_output, self.x_from_x0];
        let rest = [self.timestep, self.input_scale, self.level.alpha, self.level.sigma, self.noise.unwrap_or(0.0)];
        let history = self.history.iter().flat_map(HistoryCoefficients::all).chain(self.x_from_history);
        x0.into_iter().chain(next).chain(rest).chain(history).all(f32::is_finite)
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
    noise: f32,
    x_from_history: [f32; HISTORY],
    /// For each tensor the weights of x, the output, x0, noise and the history.
    history: [[f32; 4 + HISTORY]; HISTORY],
    /// A bit for each history tensor that the row reads.
    reads: u32,
    /// A bit for each history tensor that the row writes.
    writes: u32,
    padding: u32,
}

impl From<&StepCoefficients> for PackedStepCoefficients {
    fn from(row: &StepCoefficients) -> Self {
        let mask = |bits: [bool; HISTORY]| (0u32..).zip(bits).map(|(k, bit)| u32::from(bit) << k).sum();
        let weights = |to: HistoryCoefficients| {
            let [first, second, third] = to.from_history;
            [to.from_x, to.from_output, to.from_x0, to.noise, first, second, third]
        };
        Self {
            timestep: row.timestep,
            input_scale: row.input_scale,
            x0_from_x: row.x0_from_x,
            x0_from_output: row.x0_from_output,
            clip: row.clip.unwrap_or(f32::INFINITY),
            x_from_x: row.x_from_x,
            x_from_output: row.x_from_output,
            x_from_x0: row.x_from_x0,
            noise: row.noise.unwrap_or(0.0),
            x_from_history: row.x_from_history,
            history: row.history.map(weights),
            reads: mask(row.reads()),
            writes: mask(row.history.map(|to| to.is_written())),
            padding: 0,
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
    /// Whether any row reads or writes the history.
    pub fn uses_history(&self) -> bool {
        self.steps.iter().any(StepCoefficients::uses_history)
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

/// A row before rounding to f32, with x0's weights not yet folded into those of x and the output.
#[derive(Clone, Copy, Default)]
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
    pub x_from_history: [f64; HISTORY],
    pub history: [ExactHistory; HISTORY],
    pub noise: Option<f64>,
}

/// [`HistoryCoefficients`] before rounding; the output enters through x0 alone.
#[derive(Clone, Copy, Default)]
pub(super) struct ExactHistory {
    pub from_x: f64,
    pub from_x0: f64,
    pub noise: f64,
    pub from_history: [f64; HISTORY],
}

impl ExactCoefficients {
    /// A row that keeps nothing, for a model that sees x = alpha * x0 + sigma * noise as it is.
    pub(super) fn unscaled(timestep: f32, prediction: PredictionType, alpha: f64, sigma: f64) -> Self {
        let level = NoiseLevel { alpha: alpha as f32, sigma: sigma as f32 };
        Self { timestep, level, input_scale: 1.0, x0: prediction.x0_weights(alpha, sigma), ..Self::default() }
    }

    /// A row that keeps nothing, for a model that sees x = x0 + sigma * noise as x / sqrt(sigma^2 + 1).
    pub(super) fn at(timestep: f32, prediction: PredictionType, sigma: f64) -> Self {
        let input_scale = 1.0 / (sigma * sigma + 1.0).sqrt();
        let level = NoiseLevel { alpha: 1.0, sigma: sigma as f32 };
        Self { timestep, level, input_scale, x0: prediction.x0_weights_at(sigma), ..Self::default() }
    }

    /// Rounds to f32, after folding x0's weights where nothing clamps x0.
    pub(super) fn rounded(&self) -> StepCoefficients {
        // Folded in f64: one rounding less, and no cancellation where x0 is a small difference of large terms.
        let folded = |from_x: f64, from_output: f64, from_x0: f64| match self.clip {
            Some(_) => [from_x, from_output, from_x0].map(|w| w as f32),
            None => [from_x + from_x0 * self.x0.0, from_output + from_x0 * self.x0.1, 0.0].map(|w| w as f32),
        };
        let [x_from_x, x_from_output, x_from_x0] = folded(self.x_from_x, self.x_from_output, self.x_from_x0);
        let history = self.history.map(|to| {
            let [from_x, from_output, from_x0] = folded(to.from_x, 0.0, to.from_x0);
            let from_history = to.from_history.map(|w| w as f32);
            HistoryCoefficients { from_x, from_output, from_x0, noise: to.noise as f32, from_history }
        });
        StepCoefficients {
            timestep: self.timestep,
            level: self.level,
            input_scale: self.input_scale as f32,
            x0_from_x: self.x0.0 as f32,
            x0_from_output: self.x0.1 as f32,
            clip: self.clip,
            x_from_x,
            x_from_output,
            x_from_x0,
            x_from_history: self.x_from_history.map(|w| w as f32),
            history,
            noise: self.noise.map(|w| w as f32),
        }
    }
}

/// The history's next values where the first tensors have those, and the others stay as they are.
pub(super) fn kept<const N: usize>(first: [ExactHistory; N]) -> [ExactHistory; HISTORY] {
    std::array::from_fn(|k| first.get(k).copied().unwrap_or_default())
}

/// The weights of a sum over a step's operands.
struct Sum {
    x: f32,
    output: f32,
    x0: f32,
    history: [f32; HISTORY],
    noise: f32,
}

impl Sum {
    /// Adds up; a weight of zero skips its operand, which may be unwritten.
    fn of(&self, x: f32, output: f32, x0: f32, history: &[f32; HISTORY], noise: f32) -> f32 {
        let mut sum = self.x * x + self.output * output;
        let rest = [(self.x0, x0), (self.history[0], history[0]), (self.history[1], history[1])];
        for (weight, operand) in rest.into_iter().chain([(self.history[2], history[2]), (self.noise, noise)]) {
            if weight != 0.0 {
                sum += weight * operand;
            }
        }
        sum
    }
}

/// Applies one row to the latents of any number of images: the reference of the device's step kernel.
///
/// `x` becomes the next latents. `output` is the model's guided output. `history` holds [`HISTORY`] tensors, one after the
/// other, as the rows before left them; it may be empty where [`StepTable::uses_history`] is false. `noise` holds fresh
/// normal values where [`StepCoefficients::noise`] is `Some`. All of one length, the history of three times that; any
/// layout. Nothing is allocated.
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
    if history.len() != HISTORY * n && (row.uses_history() || !history.is_empty()) {
        return Err(Error::Graph(format!("step: {n} latents but a history of {}", history.len())));
    }
    let noise = if row.adds_noise() { noise.filter(|noise| noise.len() == n) } else { None };
    if row.adds_noise() && noise.is_none() {
        return Err(Error::Graph(format!("step: this row needs {n} values of noise")));
    }
    let next = Sum {
        x: row.x_from_x,
        output: row.x_from_output,
        x0: row.x_from_x0,
        history: row.x_from_history,
        noise: row.noise.unwrap_or(0.0),
    };
    let kept = row.history.map(|to| {
        let sum =
            Sum { x: to.from_x, output: to.from_output, x0: to.from_x0, history: to.from_history, noise: to.noise };
        to.is_written().then_some(sum)
    });
    for (i, (x, &output)) in x.iter_mut().zip(output).enumerate() {
        let x0 = row.x0(*x, output);
        let fresh = noise.map_or(0.0, |noise| noise[i]);
        let before = std::array::from_fn(|k| history.get(k * n + i).copied().unwrap_or(0.0));
        for (k, sum) in kept.iter().enumerate() {
            if let Some(sum) = sum {
                history[k * n + i] = sum.of(*x, output, x0, &before, fresh);
            }
        }
        *x = next.of(*x, output, x0, &before, fresh);
    }
    Ok(())
}
