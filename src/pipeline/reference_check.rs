//! Checks that references which need no image encoder fit the adapter that they are given to.

use super::compile::Compiler;
use super::denoise_plan::DenoisePlan;
use super::encoded_image::EncodedImage;
use super::image_prompt::{ImagePrompt, ReferenceImage};
use super::load::Models;
use super::model::Model;
use super::request::Request;
use crate::error::{Error, Field, Message, Result, escape};
use crate::models::clip::ClipVisionConfig;
use crate::models::ip_adapter::AdapterConfig;
use crate::names::counted;
use xxhash_rust::xxh3::Xxh3;

/// Checks the length of an image embedding for an adapter.
///
/// # Errors
/// [`Error::Parameter`].
pub(super) fn check_embedding(
    field: Field,
    embedding: &[f32],
    adapter: &AdapterConfig,
    positions: usize,
) -> Result<()> {
    let (given, need) = (embedding.len(), adapter.embedding_len(positions));
    if given == need {
        return Ok(());
    }
    let takes = if adapter.takes_hidden_states() {
        let width = adapter.embedding_dim;
        format!(
            "an IP-Adapter Plus takes {need}: an image's hidden states before the encoder's last layer, {positions} x {width}"
        )
    } else {
        format!("the adapter takes {need}")
    };
    Err(Error::parameter(field, format!("an image embedding of {given} values, {takes}")))
}

/// Checks that the texts of references can be added to their images: that encoder and adapter leave them in one space, as far as sizes
/// tell, and that the texts are whole.
pub(super) fn check_texts(models: &Models, request: &Request, plan: &DenoisePlan) -> Result<()> {
    let wrong = |what: String| Err(Error::parameter(Field::ReferenceTexts, what));
    let text_dim = models.text[1].config.projection_dim.unwrap_or_default();
    for &a in &plan.adapters {
        let adapter = &models.adapters[a].config;
        for (text, _) in request.image_prompts[a].references.iter().flat_map(|reference| &reference.texts) {
            if adapter.takes_hidden_states() {
                return wrong(
                    "an IP-Adapter Plus takes hidden states, to which no text can be added; take a base adapter".into(),
                );
            }
            if adapter.embedding_dim != text_dim {
                return wrong(format!(
                    "the adapter's image embeddings have {} values, those of texts {text_dim}: they are of other encoders; SDXL's texts \
                     go with ViT-bigG",
                    adapter.embedding_dim
                ));
            }
            let truncated = models.tokenizers[1].encode_padded(text).truncated;
            if truncated > 0 {
                return wrong(format!("{} too long: `{}`", counted(truncated, "token"), escape(text)));
            }
        }
    }
    Ok(())
}

/// Checks all embeddings and encoded images of a request.
///
/// # Errors
/// [`Error::Parameter`].
pub(super) fn check_references(compiler: &Compiler<'_>, request: &Request, plan: &DenoisePlan) -> Result<()> {
    for &a in &plan.adapters {
        let prompt = &request.image_prompts[a];
        let references = prompt.references.iter().map(|reference| (Field::ImagePrompts, &reference.image));
        for (field, image) in references.chain(prompt.negative_image.iter().map(|i| (Field::NegativeImage, i))) {
            let adapter = &compiler.models.adapters[a];
            if let ReferenceImage::Encoded(image) = image {
                check_origin(field, image, compiler.models, adapter, prompt)?;
            }
            if let Some(embedding) = image.embedding() {
                check_embedding(field, embedding, &adapter.config, plan.positions)?;
            }
        }
        if let Some(zero) = prompt.zero_image() {
            check_embedding(Field::ImagePrompts, zero, &compiler.models.adapters[a].config, plan.positions)?;
        }
    }
    Ok(())
}

/// Checks that an image was encoded for this adapter, by the encoder where there is one, and as the prompt says.
fn check_origin(
    field: Field,
    image: &EncodedImage,
    models: &Models,
    adapter: &Model<AdapterConfig>,
    prompt: &ImagePrompt,
) -> Result<()> {
    let origin = &image.origin;
    let file = match origin.path.as_os_str().is_empty() {
        true => "an encoded image".to_owned(),
        false => escape(&origin.path.to_string_lossy()),
    };
    let refuse = |what: String| Err(Error::parameter(field, format!("{file} {what}")));
    if origin.adapter != adapter.hash() {
        let path = escape(&adapter.path().to_string_lossy());
        return refuse(format!("was encoded for another IP-Adapter than {path}; encode the image for this one"));
    }
    if let Some(vision) = models.vision.as_ref().filter(|vision| encoder_hash(vision) != origin.encoder) {
        let path = escape(&vision.path().to_string_lossy());
        let what = format!(
            "{file} was encoded with another image encoder than {path}; encode the image with this one, or leave "
        );
        return Err(Error::parameter(field, Message::from(what).field(Field::ClipVision).text(" out")));
    }
    if prompt.fit != Default::default() && prompt.fit != origin.fit {
        let what = format!("{file} was encoded with {}; encode it with {}, or leave this out", origin.fit, prompt.fit);
        return Err(Error::parameter(Field::Fit, what));
    }
    if prompt.resize.is_some() && prompt.resize != origin.resize {
        let size = origin.resize.map_or("no size".to_owned(), |(width, height)| format!("{width}x{height}"));
        return Err(Error::parameter(Field::Resize, format!("{file} was encoded with {size}; leave this out")));
    }
    Ok(())
}

/// A hash of an image encoder's weights and of the sizes that no tensor has.
pub(super) fn encoder_hash(vision: &Model<ClipVisionConfig>) -> u128 {
    let config = &vision.config;
    let mut hasher = Xxh3::new();
    hasher.update(&vision.hash().to_le_bytes());
    for number in [config.num_attention_heads, config.image_size, config.patch_size, config.eps.to_bits() as usize] {
        hasher.update(&(number as u64).to_le_bytes());
    }
    hasher.update(format!("{:?}", config.activation).as_bytes());
    hasher.digest128()
}
