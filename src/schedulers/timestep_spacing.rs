//! Number sequences with numpy's and torch's rounding, and the whole timesteps made of them.

use super::TimestepSpacing;

/// numpy's `linspace(start, stop, n)`, both ends included.
pub(super) fn linspace(start: f64, stop: f64, n: usize) -> Vec<f64> {
    if n < 2 {
        return vec![start; n];
    }
    let step = (stop - start) / (n - 1) as f64;
    let mut values: Vec<f64> = (0..n).map(|i| i as f64 * step + start).collect();
    values[n - 1] = stop;
    values
}

/// torch's f32 `linspace` on the CPU: fused multiply-adds, counted from whichever end is nearer.
pub(super) fn linspace_f32(start: f32, stop: f32, n: usize) -> Vec<f32> {
    if n < 2 {
        return vec![start; n];
    }
    let step = (stop - start) / (n - 1) as f32;
    let value = |i: usize| {
        if i < n / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((n - 1 - i) as f32, stop) }
    };
    (0..n).map(value).collect()
}

/// numpy's `arange(start, 0, -step)` for a positive step.
fn descending(start: f64, step: f64) -> Vec<f64> {
    let count = (start / step).ceil() as usize;
    let delta = (start - step) - start;
    (0..count).map(|i| start + i as f64 * delta).collect()
}

/// Timesteps in descending order, `spacing` as diffusers understands it for Euler (both kinds) and DDIM; only
/// [`TimestepSpacing::Linspace`] gives fractions. Never more than `steps`: numpy's `arange` has one element too many at some
/// numbers of steps (61 of 1000 is the first), timestep -1, at which diffusers evaluates the model once more.
pub(super) fn timesteps(spacing: TimestepSpacing, train_steps: usize, offset: usize, steps: usize) -> Vec<f64> {
    match spacing {
        TimestepSpacing::Linspace => linspace(0.0, (train_steps - 1) as f64, steps).into_iter().rev().collect(),
        TimestepSpacing::Leading => {
            let ratio = train_steps / steps;
            (0..steps).rev().map(|i| (i * ratio + offset) as f64).collect()
        }
        TimestepSpacing::Trailing => trailing(train_steps, train_steps, steps),
    }
}

/// [`TimestepSpacing::Trailing`] from `last` down, in strides of `train_steps / steps`.
pub(super) fn trailing(last: usize, train_steps: usize, steps: usize) -> Vec<f64> {
    let values = descending(last as f64, train_steps as f64 / steps as f64);
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

    #[test]
    fn torch_linspace() {
        let values = linspace_f32(0.00085f64.sqrt() as f32, 0.012f64.sqrt() as f32, 1000);
        let bits = [0, 1, 333, 499, 500, 777, 999].map(|i: usize| values[i].to_bits());
        // torch.linspace(...).view(torch.int32) of torch 2.11
        let torch = [1022285302, 1022328504, 1030040892, 1032712726, 1032723526, 1035715273, 1038112991];
        assert_eq!(bits, torch);
    }
}
