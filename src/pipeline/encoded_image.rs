//! Images as an image encoder leaves them for an adapter: references that need the encoder no more.

use crate::inputs::fit::Fit;
use crate::inputs::image::Image;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// An image as the image encoder leaves it for one adapter, of [`super::Pipeline::encode_references`] or of a file
/// ([`Self::load`]). As a [`super::ReferenceImage`] it gives the image that its source gives, without the encoder. It knows the weights
/// that it was made with: a request for another adapter, or beside another encoder, is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedImage {
    pub(super) origin: Arc<EncodingOrigin>,
    pub(super) embedding: Vec<f32>,
    pub(super) tokens: Vec<f32>,
    pub(super) source: SourceImage,
}

/// The origin that images encoded together share.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EncodingOrigin {
    /// The file that they were read from; empty where there is none.
    pub(super) path: PathBuf,
    /// A hash of the adapter's weights.
    pub(super) adapter: u128,
    /// A hash of the image encoder's weights and sizes.
    pub(super) encoder: u128,
    /// The shape of an image's embedding: `[E]`, or `[T, E]` of hidden states.
    pub(super) shape: Vec<usize>,
    /// The shape of its image tokens, `[N, D]`.
    pub(super) tokens: [usize; 2],
    /// The encoder's hidden states `[T, E]` of a zero image, for the negative row of an IP-Adapter Plus.
    pub(super) zero: Option<Arc<[f32]>>,
    pub(super) fit: Fit,
    pub(super) resize: Option<(usize, usize)>,
    /// The type in which the encoder computed, and the device.
    pub(super) dtype: DType,
    pub(super) device: String,
}

/// An image that was encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SourceImage {
    pub(super) width: usize,
    pub(super) height: usize,
    /// A hash of its pixels, see [`Self::of`].
    pub(super) xxh3: String,
}

impl SourceImage {
    /// Describes an image; the hash is XXH3's 128 bits of width and height (u64, little-endian) and the RGB bytes.
    pub(super) fn of(image: &Image) -> Self {
        let (width, height) = (image.width(), image.height());
        let mut hasher = Xxh3::new();
        [width, height].iter().for_each(|side| hasher.update(&(*side as u64).to_le_bytes()));
        hasher.update(image.rgb());
        Self { width, height, xxh3: format!("{:032x}", hasher.digest128()) }
    }
}

impl EncodedImage {
    /// The embedding: `image_embeds` `[E]` of a base adapter, hidden states `[T, E]` of an IP-Adapter Plus.
    pub fn embedding(&self) -> &[f32] {
        &self.embedding
    }

    /// The image tokens `[N, D]` that the adapter's projection makes of it. Requests compute them anew.
    pub fn tokens(&self) -> &[f32] {
        &self.tokens
    }

    /// The number of image tokens.
    pub fn num_tokens(&self) -> usize {
        self.origin.tokens[0]
    }

    /// Width and height of the image that was encoded.
    pub fn source_size(&self) -> (usize, usize) {
        (self.source.width, self.source.height)
    }

    /// The file that it was read from; empty where there is none.
    pub fn path(&self) -> &Path {
        &self.origin.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same bytes in another shape are another image.
    #[test]
    fn sources_by_size() {
        let of = |width, height| SourceImage::of(&Image::new(width, height, vec![7; 18]).unwrap()).xxh3;
        assert_eq!(of(2, 3), of(2, 3));
        assert_ne!(of(2, 3), of(3, 2));
    }
}
