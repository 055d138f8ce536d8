//! The two orders of latents: torch draws and prints `[C, h, w]`, models here take `[h, w, C]`.

/// `[c, h, w]` to `[h, w, c]`.
pub(super) fn to_channels_last(x: &[f32], [c, h, w]: [usize; 3]) -> Vec<f32> {
    (0..h * w * c).map(|i| x[i % c * h * w + i / c]).collect()
}

/// `[h, w, c]` to `[c, h, w]`.
pub(super) fn to_channels_first(x: &[f32], [h, w, c]: [usize; 3]) -> Vec<f32> {
    (0..h * w * c).map(|i| x[i % (h * w) * c + i / (h * w)]).collect()
}
