//! Noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar) for the samplers that step in them.

/// How the noise levels follow from the timesteps.
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
}

/// The noise level of each training timestep, in torch's f32.
pub(super) fn training(alphas: &[f32]) -> Vec<f32> {
    alphas.iter().map(|&a| ((1.0 - a) / a).sqrt()).collect()
}

/// The smallest positive number of binary16 in place of a last alpha_bar of 0, so that the first sigma is finite.
pub(super) fn floor_last(alphas: &mut [f32], zero_snr: bool) {
    if let Some(last) = alphas.last_mut().filter(|_| zero_snr) {
        *last = 2f32.powi(-24);
    }
}

/// numpy's `interp` over the indices of `values`: linear between, constant beyond.
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

/// Noise levels from `max` down to `min`, both included, Karras' way.
pub(super) fn karras(min: f64, max: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
    let ramp = super::timestep_spacing::linspace(0.0, 1.0, steps);
    ramp.into_iter().map(|r| (high + r * (low - high)).powf(RHO)).collect()
}

/// Noise levels from `max` down to `min`, both included, with evenly spaced logarithms.
pub(super) fn exponential(min: f64, max: f64, steps: usize) -> Vec<f64> {
    super::timestep_spacing::linspace(max.ln(), min.ln(), steps).into_iter().map(f64::exp).collect()
}

/// The fractional training timestep of a noise level, interpolated in its logarithm.
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

    #[test]
    fn timestep_of_inverts_the_schedule() {
        let training = [0.1, 0.2, 0.5, 3.0];
        for (i, &sigma) in training.iter().enumerate() {
            assert!((timestep_of(f64::from(sigma), &training) - i as f64).abs() < 1e-6);
        }
        assert_eq!(timestep_of(0.0, &training), 0.0);
        assert_eq!(timestep_of(1e9, &training), 3.0);
    }
}
