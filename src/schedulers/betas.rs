//! The training noise schedule: betas and the cumulative product of their complements, in torch's f32.

use super::timestep_spacing::linspace_f32;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(betas: Betas, zero_snr: bool) -> [u32; 4] {
        let alphas = alphas_cumprod(&betas, 1000, zero_snr).unwrap();
        [0, 500, 998, 999].map(|i: usize| alphas[i].to_bits())
    }

    #[test]
    fn alphas_are_those_of_diffusers_to_the_bit() {
        let sdxl = Betas::ScaledLinear { start: 0.00085, end: 0.012 };
        assert_eq!(bits(sdxl, false), [0x3f7fc84b, 0x3e8d7b73, 0x3b9a8e83, 0x3b98b3b6]);
        let linear = Betas::Linear { start: 0.0001, end: 0.02 };
        assert_eq!(bits(linear, false), [0x3f7ff972, 0x3d9f53da, 0x382cbac6, 0x38294666]);
        assert_eq!(bits(Betas::SquaredCosine, false), [0x3f7ffd4b, 0x3efc0cc9, 0x3622fde3, 0x3126e6c2]);
    }

    #[test]
    fn zero_terminal_snr_agrees_but_for_the_square_roots() {
        // torch's vectorised square root is off by a unit in the last place for some arguments, so a few bits differ.
        let found = bits(Betas::ScaledLinear { start: 0.00085, end: 0.012 }, true).map(f32::from_bits);
        let torch = [0x3f7fc84b, 0x3e76cd97, 0x34534ef7, 0].map(f32::from_bits);
        for (f, t) in found.iter().zip(torch) {
            assert!((f - t).abs() <= 1e-6 * t, "{found:?} {torch:?}");
        }
    }
}
