//! The activations in f64.

/// By its series, which loses its digits far out, where erf is 1 to 1e-9.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.3 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// The share of the normal distribution below -a, for a of 3 and more: Mills' ratio by its continued fraction.
fn tail(a: f64) -> f64 {
    let ratio = (1..200).rev().fold(a, |rest, n| a + f64::from(n) / rest);
    (-a * a / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() / ratio
}

pub fn gelu(x: f64) -> f64 {
    if x < -3.0 { x * tail(-x) } else { x * 0.5 * (1.0 + erf(x / 2f64.sqrt())) }
}

pub fn swish(x: f64, factor: f64) -> f64 {
    x / (1.0 + (-factor * x).exp())
}
