//! The parts that graphs have in a request.

use super::denoise_loop::LoopSpec;
use super::image_decoder::PixelRounding;

/// The role that a graph is compiled for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// An executable whose results the host reads.
    Plain,
    /// A conditioner.
    Condition,
    /// An encoder of images.
    Encode,
    /// A denoise loop.
    Denoise(LoopSpec),
    /// An image decoder.
    Decode(PixelRounding),
}
