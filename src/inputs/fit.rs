//! Fitting of an image that is not square to CLIP's square input.

use crate::error::Field;
use crate::names::named_values;

/// The treatment of a reference image that is not square, before CLIP's own preprocessing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Fit {
    /// None: CLIP's preprocessing keeps the middle square.
    #[default]
    Crop,
    /// The image is padded to a square.
    Pad,
    /// The image is stretched to a square.
    Stretch,
}

named_values!(Fit, &[("crop", Fit::Crop), ("pad", Fit::Pad), ("stretch", Fit::Stretch)], Field::Fit);
