//! Faults: the reasons for which a file is not decoded.

use crate::error::Error;
use crate::inputs::image_file;

/// The reason for which a file is not decoded.
#[derive(Debug)]
pub(in crate::inputs) enum Fault {
    /// The bytes end before the image does.
    CutShort,
    /// The bytes are no image, or one of a kind that is not read.
    Refused(String),
    /// There is no room for the image.
    Memory(Error),
}

impl Fault {
    pub(super) fn refused(why: impl Into<String>) -> Self {
        Self::Refused(why.into())
    }
}

pub(super) type Result<T> = std::result::Result<T, Fault>;

/// Allocates `n` values of `zero`.
pub(super) fn zeros<T: Clone>(n: usize, zero: T) -> Result<Vec<T>> {
    image_file::zeroed(n, zero).map_err(Fault::Memory)
}
