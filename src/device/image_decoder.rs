//! From latents to pixels.

use super::executable::Compiled;
use super::tensors::TensorRef;
use crate::error::Result;

/// The rounding of a value to a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelRounding {
    /// To the nearest byte, halves to the even one.
    Nearest,
    /// Down.
    Truncate,
}

impl PixelRounding {
    /// The byte of a decoder's value: -1 becomes 0, 1 becomes 255.
    pub fn pixel(self, value: f32) -> u8 {
        let value = denormalize(value) * 255.0;
        match self {
            Self::Nearest => value.round_ties_even() as u8,
            Self::Truncate => value as u8,
        }
    }
}

/// Maps -1 to 1, a decoder's range, to 0 to 1.
pub fn denormalize(value: f32) -> f32 {
    (value / 2.0 + 0.5).clamp(0.0, 1.0)
}

/// The result of an [`ImageDecoder`].
#[derive(Debug, Clone, PartialEq)]
pub struct DecodedImage {
    /// A byte for each value of the decoder's first output: -1 becomes 0, 1 becomes 255.
    pub rgb: Vec<u8>,
    /// Whether all of the output is finite.
    pub finite: bool,
    /// The output itself, -1 to 1, if it was asked for.
    pub image: Vec<f32>,
}

/// Decodes latents to RGB bytes.
pub trait ImageDecoder: Compiled {
    /// Decodes the graph's one input; with `capture` the decoder's output comes with the bytes.
    ///
    /// # Errors
    /// [`crate::Error::Graph`] where the latents' type or length is not the declared one.
    fn decode(&mut self, latents: &TensorRef<'_>, capture: bool) -> Result<DecodedImage>;
}
