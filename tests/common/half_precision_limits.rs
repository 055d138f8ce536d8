//! The error that half precision may have in a golden case, against the f32 of diffusers.

/// Relative L2 of the latents at most, dB of the images at least: in f16, in bf16.
pub type Limits = [(f64, f64); 2];

/// The general limits of half precision.
pub const ASKED: Limits = [(1e-2, 45.0), (6e-2, 36.0)];

/// The error of diffusers' own halves in a case, the VAE in bf16 (tools/goldens/half_diffusers.py), where they do not keep to
/// [`ASKED`]: some random weights magnify every rounding.
pub fn of_diffusers(case: &str) -> Option<Limits> {
    Some(match case {
        "euler" => [(3.1e-2, 46.8), (2.5e-1, 29.3)],
        "compel" => [(4.8e-3, 52.5), (4.8e-2, 42.6)],
        "lora-kohya" => [(5.1e-3, 52.1), (4.4e-2, 45.0)],
        "v-trailing-rescale" => [(3.1e-2, 44.6), (1.4e-1, 33.3)],
        _ => return None,
    })
}
