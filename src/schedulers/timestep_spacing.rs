//! Timestep spacings, with numpy's and torch's rounding.

use super::linspace::linspace;
use crate::error::Field;
use crate::names::named_values;

/// The spread of the timesteps over the training timesteps.
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

/// The names on the command line and in scheduler_config.json.
pub(super) const NAMES: &[(&str, TimestepSpacing)] = &[
    ("leading", TimestepSpacing::Leading),
    ("trailing", TimestepSpacing::Trailing),
    ("linspace", TimestepSpacing::Linspace),
];
named_values!(TimestepSpacing, NAMES, Field::TimestepSpacing);

/// numpy's `arange(start, 0, -step)` for a positive step.
fn descending(start: f64, step: f64) -> Vec<f64> {
    let count = (start / step).ceil() as usize;
    let delta = (start - step) - start;
    (0..count).map(|i| start + i as f64 * delta).collect()
}

/// Computes the timesteps in descending order, `spacing` as diffusers understands it for Euler (both kinds) and DDIM;
/// only [`TimestepSpacing::Linspace`] gives fractions. Never more than `steps`: numpy's `arange` has one element too
/// many at some numbers of steps (61 of 1000 is the first), timestep -1, at which diffusers evaluates the model once
/// more.
pub(super) fn timesteps(
    spacing: TimestepSpacing,
    num_train_timesteps: usize,
    steps_offset: usize,
    steps: usize,
) -> Vec<f64> {
    match spacing {
        TimestepSpacing::Linspace => linspace(0.0, (num_train_timesteps - 1) as f64, steps).into_iter().rev().collect(),
        TimestepSpacing::Leading => {
            let ratio = num_train_timesteps / steps;
            (0..steps).rev().map(|i| (i * ratio + steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => trailing(num_train_timesteps, num_train_timesteps, steps),
    }
}

/// Computes [`TimestepSpacing::Trailing`] from `last` down, in strides of `num_train_timesteps / steps`.
pub(super) fn trailing(last: usize, num_train_timesteps: usize, steps: usize) -> Vec<f64> {
    let values = descending(last as f64, num_train_timesteps as f64 / steps as f64);
    values.into_iter().map(|t| t.round_ties_even() - 1.0).filter(|&t| t >= 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spacings() {
        assert_eq!(timesteps(TimestepSpacing::Leading, 1000, 1, 4), [751.0, 501.0, 251.0, 1.0]);
        assert_eq!(timesteps(TimestepSpacing::Trailing, 1000, 1, 7), [999.0, 856.0, 713.0, 570.0, 428.0, 285.0, 142.0]);
        assert_eq!(timesteps(TimestepSpacing::Linspace, 1000, 1, 3), [999.0, 499.5, 0.0]);
        assert_eq!(timesteps(TimestepSpacing::Linspace, 1000, 1, 1), [0.0]);
        for steps in [61, 103, 499, 998] {
            assert_eq!(timesteps(TimestepSpacing::Trailing, 1000, 0, steps).len(), steps);
        }
    }
}
