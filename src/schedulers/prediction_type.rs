//! Meanings of the model's output.

use crate::error::Field;
use crate::names::named_values;

/// The meaning of the model's output.
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

const NAMES: &[(&str, PredictionType)] =
    &[("epsilon", PredictionType::Epsilon), ("v", PredictionType::V), ("sample", PredictionType::Sample)];
named_values!(PredictionType, NAMES, Field::PredictionType);

/// The values of `prediction_type` in scheduler_config.json.
pub(super) const CONFIG_VALUES: &[(&str, PredictionType)] = &[
    ("epsilon", PredictionType::Epsilon),
    ("v_prediction", PredictionType::V),
    ("sample", PredictionType::Sample),
    ("original_sample", PredictionType::Sample),
];

impl PredictionType {
    /// Computes the weights of (x, output) in x0 where x = alpha * x0 + sigma * noise.
    pub(super) fn x0_weights(self, alpha: f64, sigma: f64) -> (f64, f64) {
        match self {
            Self::Epsilon => (1.0 / alpha, -sigma / alpha),
            Self::V => (alpha, -sigma),
            Self::Sample => (0.0, 1.0),
        }
    }

    /// Computes the weights of (x, output) in x0 where x = x0 + sigma * noise and the model sees x / sqrt(sigma^2 + 1).
    pub(super) fn x0_weights_at(self, sigma: f64) -> (f64, f64) {
        let norm = (sigma * sigma + 1.0).sqrt();
        match self {
            Self::Epsilon => (1.0, -sigma),
            Self::V => (1.0 / (norm * norm), -sigma / norm),
            Self::Sample => (0.0, 1.0),
        }
    }

    /// Computes the weights of (x, output) in the noise where x = alpha * x0 + sigma * noise.
    pub(super) fn epsilon_weights(self, alpha: f64, sigma: f64) -> (f64, f64) {
        match self {
            Self::Epsilon => (0.0, 1.0),
            Self::V => (sigma, alpha),
            Self::Sample => (1.0 / sigma, -alpha / sigma),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_command_line() {
        assert_eq!("v".parse::<PredictionType>().unwrap(), PredictionType::V);
    }
}
