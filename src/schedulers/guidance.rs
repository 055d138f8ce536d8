//! Classifier-free guidance.

use crate::error::{Error, Result};

/// Guides one image's model output: `negative + scale * (positive - negative)`, and with a `rescale` phi above 0
/// `phi * guided * std(positive) / std(guided) + (1 - phi) * guided`, the standard deviations (unbiased) over the whole
/// image. The three slices hold one image, in any one layout; `out` receives the result. As diffusers'
/// `rescale_noise_cfg` (Lin et al. 2023, section 3.4), but a constant guided output is left as it is instead of
/// becoming NaN.
///
/// # Errors
/// [`Error::Graph`] if the lengths differ.
pub fn classifier_free_guidance(
    negative: &[f32],
    positive: &[f32],
    scale: f32,
    rescale: f32,
    out: &mut [f32],
) -> Result<()> {
    if negative.len() != out.len() || positive.len() != out.len() {
        let (n, p, o) = (negative.len(), positive.len(), out.len());
        return Err(Error::Graph(format!("guidance: lengths {n}, {p} and {o} differ")));
    }
    for ((out, &n), &p) in out.iter_mut().zip(negative).zip(positive) {
        *out = n + scale * (p - n);
    }
    if rescale > 0.0 {
        let (wanted, found) = (deviation(positive), deviation(out));
        if found > 0.0 {
            let ratio = (wanted as f32) / (found as f32);
            for out in out.iter_mut() {
                *out = rescale * (*out * ratio) + (1.0 - rescale) * *out;
            }
        }
    }
    Ok(())
}

/// The standard deviation with Bessel's correction.
fn deviation(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let squares = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
    (squares / (n - 1.0)).sqrt()
}
