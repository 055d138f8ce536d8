//! The training noise schedule: betas and the cumulative product of their complements, in torch's f32.

use super::grid::linspace_f32;

/// Where the betas come from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Betas {
    /// Evenly spaced.
    Linear { start: f64, end: f64 },
    /// Evenly spaced square roots.
    ScaledLinear { start: f64, end: f64 },
    /// Nichol and Dhariwal's cosine, capped at 0.999.
    SquaredCosine,
    /// Listed.
    Trained(Vec<f32>),
}

/// The cumulative products of 1 - beta, one for each training timestep; `None` where the betas make no schedule (a
/// value outside [0, 1)). With `zero_snr` they are shifted to end at exactly 0 (Lin et al. 2023, algorithm 1).
pub(super) fn alphas_cumprod(betas: &Betas, train_steps: usize, zero_snr: bool) -> Option<Vec<f32>> {
    let mut betas = match betas {
        Betas::Linear { start, end } => linspace_f32(*start as f32, *end as f32, train_steps),
        Betas::ScaledLinear { start, end } => {
            let roots = linspace_f32(start.sqrt() as f32, end.sqrt() as f32, train_steps);
            roots.into_iter().map(|r| r * r).collect()
        }
        Betas::SquaredCosine => {
            let bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos().powi(2);
            let n = train_steps as f64;
            let beta = |i: usize| (1.0 - bar((i + 1) as f64 / n) / bar(i as f64 / n)).min(0.999) as f32;
            (0..train_steps).map(beta).collect()
        }
        Betas::Trained(values) => values.clone(),
    };
    if betas.len() < 2 || !betas.iter().all(|beta| (0.0..1.0).contains(beta)) {
        return None;
    }
    if zero_snr {
        betas = rescaled(&betas);
    }
    let alphas = products(&betas);
    alphas.iter().all(|a| (0.0..1.0).contains(a)).then_some(alphas)
}

/// torch's cumprod accumulates in f64 and stores f32.
fn products(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    let mut next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(&mut next).collect()
}

fn rescaled(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = products(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let alphas: Vec<f32> = roots.into_iter().map(|r| (r - last) * scale).map(|r| r * r).collect();
    let mut before = 1.0;
    let mut beta = |&alpha: &f32| 1.0 - alpha / std::mem::replace(&mut before, alpha);
    alphas.iter().map(&mut beta).collect()
}
