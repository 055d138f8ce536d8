//! The VAE in f32, where its values are not finite in its own type.

use crate::error::Error;

/// The error of a stage whose values are not finite, where there is no memory for it in f32; other errors stay what they are.
pub(super) fn no_room(stage: &str, error: Error) -> Error {
    match error {
        Error::Memory { .. } => {
            let hint = format!("it may not in f32, for which there is no memory: {error}");
            Error::NotFinite { stage: stage.into(), hint }
        }
        error => error,
    }
}
