//! The plan of an image that a request begins with.

use super::load::Models;
use super::request::Request;
use crate::error::{Error, Field, Result};

/// Whether a request begins with an image; refuses what the model cannot begin with.
///
/// # Errors
/// [`Error::Parameter`].
pub(super) fn begins_with_image(models: &Models, request: &Request) -> Result<bool> {
    // Tensors of an encoder that is there are checked when it is compiled.
    if request.init_image.is_some() && models.vae_encoder.is_empty() {
        let path = models.vae_encoder.path().display();
        let what =
            format!("the VAE of {path} has no encoder (encoder.*), only a decoder; a model with a whole VAE is needed");
        return Err(Error::parameter(Field::InitImage, what));
    }
    Ok(request.init_image.is_some())
}
