//! Means, deviations, percentiles.

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The standard deviation of samples, with n - 1; none of fewer than two.
pub fn deviation(values: &[f64]) -> Option<f64> {
    let middle = mean(values);
    let squares: f64 = values.iter().map(|v| (v - middle).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// The nearest rank of sorted samples: the smallest that at least that many percent do not exceed.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// The samples in rising order.
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle sample, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let (sorted, half) = (sorted(values), values.len() / 2);
    mean(&sorted[half.saturating_sub(usize::from(values.len().is_multiple_of(2)))..(half + 1).min(sorted.len())])
}

/// The percentage by which `with` exceeds `without`: the median over the pairs, so that a slow moment counts little.
pub fn overhead(with: &[f64], without: &[f64]) -> f64 {
    let ratios: Vec<f64> = with.iter().zip(without).map(|(a, b)| a / b).collect();
    100.0 * (median(&ratios) - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let samples: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!([50, 90, 99].map(|p| percentile(&samples, p)), [5.0, 9.0, 10.0]);
        assert_eq!(percentile(&[3.0], 50), 3.0);
        assert!(percentile(&[], 50).is_nan());
    }

    #[test]
    fn middles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
        assert_eq!(deviation(&[1.0, 3.0]), Some(2f64.sqrt()));
        assert_eq!(deviation(&[1.0]), None);
    }

    #[test]
    fn paired_ratios() {
        // Neither the third run, slowed by something else, nor the slow second pair counts.
        let percent = overhead(&[1.1, 5.5, 3.0], &[1.0, 5.0, 2.0]);
        assert!((percent - 10.0).abs() < 1e-9, "{percent}");
    }
}
