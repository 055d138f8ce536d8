//! Image prompts: the references of one adapter and how they act.

use super::encoded_image::EncodedImage;
use crate::error::{Error, Field, Result};
use crate::inputs::fit::Fit;
use crate::inputs::image::Image;
use crate::models::ip_adapter::Scales;
use crate::names::{counted, named_values};
use crate::setters::setters;
use std::sync::Arc;

/// The content of a reference: an image, the embedding that [`super::Pipeline::encode_image`] made of one, or an encoded image, which also
/// knows the adapter that it is for.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ReferenceImage {
    /// An image; it is encoded for each request.
    Image(Image),
    /// `image_embeds`, as wide as the adapter's projection takes.
    Embedding(Vec<f32>),
    /// An image that was encoded earlier, by [`super::Pipeline::encode_references`] or for a file.
    Encoded(EncodedImage),
}

impl ReferenceImage {
    /// The embedding that it brings; an image brings none.
    pub(super) fn embedding(&self) -> Option<&[f32]> {
        match self {
            Self::Image(_) => None,
            Self::Embedding(values) => Some(values),
            Self::Encoded(image) => Some(&image.embedding),
        }
    }
}

impl From<Image> for ReferenceImage {
    fn from(image: Image) -> Self {
        Self::Image(image)
    }
}

impl From<EncodedImage> for ReferenceImage {
    fn from(image: EncodedImage) -> Self {
        Self::Encoded(image)
    }
}

/// A reference: its image, its weight and the part of the result in which it acts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Reference {
    /// The image, or an embedding of it.
    pub image: ReferenceImage,
    /// Its weight, 1 by default. [`Combine`] says what it multiplies.
    pub weight: f32,
    /// Texts whose embeddings are added to the image's, each times its factor: one below 0 takes out what the text names (InstantStyle's
    /// `neg_content_emb`). For base adapters on the image encoder that belongs to the second text encoder: SDXL's own is ViT-bigG's.
    pub texts: Vec<(String, f32)>,
    /// A grey image of any size: white where the reference acts, black where it does not.
    pub mask: Option<Image>,
}

impl<T: Into<ReferenceImage>> From<T> for Reference {
    fn from(image: T) -> Self {
        Self { image: image.into(), weight: 1.0, texts: Vec::new(), mask: None }
    }
}

impl Reference {
    /// A reference of weight 1 that acts everywhere.
    pub fn new(image: impl Into<ReferenceImage>) -> Self {
        image.into().into()
    }

    setters! {
        /// Sets the weight.
        with_weight(weight: f32);
        /// Sets the mask.
        with_mask(mask: Image => Some(mask));
    }

    /// Adds a text's embedding, times `factor`, to the image's.
    #[must_use]
    pub fn with_text(mut self, text: impl Into<String>, factor: f32) -> Self {
        self.texts.push((text.into(), factor));
        self
    }
}

/// The way in which several references of one adapter act together, where none has a mask. References with masks have a softmax
/// each, multiplied by mask and weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Combine {
    /// One softmax over the tokens of all; a weight multiplies the values of its reference's tokens.
    #[default]
    Concat,
    /// The mean of their embeddings, each times its weight; weights that are all 0 leave the adapter without effect.
    Average,
    /// A softmax for each, whose result is multiplied by the weight; the results are added.
    Add,
}

const COMBINE: &[(&str, Combine)] =
    &[("concat", Combine::Concat), ("average", Combine::Average), ("add", Combine::Add)];
named_values!(Combine, COMBINE, Field::Combine);

/// Whether a step, from 0, of that many lies in a part of them: diffusers' rule for its ControlNets.
pub(super) fn is_within([start, end]: [f64; 2], step: usize, steps: usize) -> bool {
    let part = |step: usize| step as f64 / steps as f64;
    part(step) >= start && part(step + 1) <= end
}

/// The image prompt for one adapter.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImagePrompt {
    /// One or more references.
    pub references: Vec<Reference>,
    /// The weight of the image branch in each transformer.
    pub scales: Scales,
    /// The way in which several references act together.
    pub combine: Combine,
    /// The part of the steps, from 0, at which the adapter begins to act: in step i of N where `start <= i / N`.
    pub start: f64,
    /// The part of the steps, up to 1, at which it ends: step i of N is the last where `(i + 1) / N <= end`.
    pub end: f64,
    /// The reference of the negative row; absent, it has the embedding that the adapter was trained with.
    pub negative_image: Option<ReferenceImage>,
    /// The treatment of images that are not square.
    pub fit: Fit,
    /// Stretches each image to this width and height before CLIP's own preprocessing.
    pub resize: Option<(usize, usize)>,
}

impl Default for ImagePrompt {
    fn default() -> Self {
        Self {
            references: Vec::new(),
            scales: Scales::default(),
            combine: Combine::default(),
            start: 0.0,
            end: 1.0,
            negative_image: None,
            fit: Fit::default(),
            resize: None,
        }
    }
}

impl ImagePrompt {
    /// One image at scale 1 in every block.
    pub fn new(image: Image) -> Self {
        Self::default().with_reference(image)
    }

    /// Adds a reference.
    #[must_use]
    pub fn with_reference(mut self, reference: impl Into<Reference>) -> Self {
        self.references.push(reference.into());
        self
    }

    setters! {
        /// Sets the scales: one number for every block, or [`Scales`].
        with_scale(scales: impl Into<Scales> => scales.into());
        /// Sets the way in which several references act together.
        with_combine(combine: Combine);
        /// Sets the part of the steps at which the adapter begins to act, 0 to 1.
        with_start(start: f64);
        /// Sets the part of the steps at which the adapter ceases to act, 0 to 1.
        with_end(end: f64);
        /// Sets the reference of the negative row.
        with_negative_image(negative_image: impl Into<ReferenceImage> => Some(negative_image.into()));
        /// Sets the treatment of images that are not square.
        with_fit(fit: Fit);
        /// Sets the width and height to which each image is stretched before CLIP's own preprocessing.
        with_resize(resize: (usize, usize) => Some(resize));
    }

    /// The images that the image encoder takes; the negative one counts with guidance.
    pub(super) fn images(&self, do_cfg: bool) -> impl Iterator<Item = &Image> {
        let negative = self.negative_image.as_ref().filter(|_| do_cfg);
        let all = self.references.iter().map(|reference| &reference.image).chain(negative);
        all.filter_map(|image| match image {
            ReferenceImage::Image(image) => Some(image),
            _ => None,
        })
    }

    /// The hidden states of a zero image that an encoded reference brings for the negative row.
    pub(super) fn zero_image(&self) -> Option<&Arc<[f32]>> {
        self.references.iter().find_map(|reference| match &reference.image {
            ReferenceImage::Encoded(image) => image.origin.zero.as_ref(),
            _ => None,
        })
    }

    /// Whether it acts in a step, from 0, of that many.
    pub(super) fn acts(&self, step: usize, steps: usize) -> bool {
        is_within([self.start, self.end], step, steps)
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub(crate) fn check(&self) -> Result<()> {
        self.scales.check()?;
        self.check_range()?;
        self.check_weights()?;
        self.check_masks()?;
        if self.references.is_empty() && self.negative_image.is_some() {
            return Err(Error::parameter(
                Field::NegativeImage,
                "given without a reference, so that nothing would show it",
            ));
        }
        Ok(())
    }

    fn check_range(&self) -> Result<()> {
        let (start, end) = (self.start, self.end);
        for (field, value) in [(Field::Start, start), (Field::End, end)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::parameter(field, format!("{value} given; 0 to 1 is allowed")));
            }
        }
        if start > end {
            return Err(Error::parameter(Field::Start, format!("{start} given, which is after the end, {end}")));
        }
        Ok(())
    }

    fn check_weights(&self) -> Result<()> {
        let weights = || self.references.iter().map(|reference| reference.weight);
        if let Some(weight) = weights().find(|weight| !weight.is_finite()) {
            return Err(Error::parameter(Field::ReferenceWeight, format!("{weight} is not a finite number")));
        }
        let mut factors = self.references.iter().flat_map(|reference| &reference.texts).map(|(_, factor)| factor);
        if let Some(factor) = factors.find(|factor| !factor.is_finite()) {
            return Err(Error::parameter(Field::ReferenceTexts, format!("{factor} is not a finite number")));
        }
        let none = weights().all(|weight| weight == 0.0);
        if self.combine == Combine::Average && !none && weights().map(f64::from).sum::<f64>() == 0.0 {
            let what = "the weights of an average add up to 0; change one, or make all of them 0";
            return Err(Error::parameter(Field::ReferenceWeight, what));
        }
        Ok(())
    }

    fn check_masks(&self) -> Result<()> {
        let (masks, all) = (self.references.iter().filter(|r| r.mask.is_some()).count(), self.references.len());
        if masks > 0 && masks < all {
            let what = format!("{} for {all} references; give one to each of them, or to none", counted(masks, "mask"));
            return Err(Error::parameter(Field::ReferenceMask, what));
        }
        if masks > 0 && self.combine == Combine::Average {
            let what = "an average has no masks: it is one embedding; take concat or add";
            return Err(Error::parameter(Field::Combine, what));
        }
        Ok(())
    }
}
