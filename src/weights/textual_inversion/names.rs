//! The names by which files have the vectors of a textual inversion.

use crate::weights::Weights;

/// The names of each text encoder's vectors in a file for SDXL.
pub(super) const KEYED: [[&str; 2]; 2] = [["clip_l", "text_encoders_0"], ["clip_g", "text_encoders_1"]];
/// The names of the only vectors in a file by AUTOMATIC1111's interface.
pub(super) const UNKEYED: [&str; 2] = ["string_to_param.*", "emb_params"];
/// Widths of the text encoders of Stable Diffusion 1.x, 2.x and XL.
const WIDTHS: [usize; 3] = [768, 1024, 1280];

/// The name of the vectors in a file that has them for one encoder.
pub(super) fn unkeyed(weights: &Weights) -> Option<&str> {
    if let Some(name) = UNKEYED.into_iter().find(|name| weights.contains(name)) {
        return Some(name);
    }
    let mut names = weights.names();
    let only = names.next().filter(|_| names.next().is_none())?;
    // A lone tensor of a model is none.
    let rank = weights.get(only).map_or(1, |weight| weight.shape().len());
    ((1..=2).contains(&rank) && !only.ends_with(".weight") && !only.ends_with(".bias")).then_some(only)
}

/// Whether the tensors are those of a textual inversion for any published model.
pub(crate) fn is_textual_inversion(weights: &Weights) -> bool {
    let sized = |name: &str| {
        let width = weights.get(name).and_then(|weight| weight.shape().last().copied());
        width.is_none_or(|width| WIDTHS.contains(&width))
    };
    KEYED.as_flattened().iter().any(|name| weights.contains(name)) || unkeyed(weights).is_some_and(sized)
}
