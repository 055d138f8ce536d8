//! Options of a request's prompts and of its sizes.

use crate::error::{Error, Field, Result};
use crate::names::named_values;
use crate::setters::setters;

/// The treatment of a prompt of more tokens than the encoders take, in the diffusers profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum LongPrompts {
    /// The tokens beyond have no effect, as in diffusers.
    #[default]
    Truncate,
    /// Rows of as many tokens as fit, each with its own begin and end of text, encoded one by one and joined along the tokens.
    /// The pooled embedding is the first row's.
    Chunks,
}

const LONG_PROMPTS: &[(&str, LongPrompts)] = &[("truncate", LongPrompts::Truncate), ("chunks", LongPrompts::Chunks)];
named_values!(LongPrompts, LONG_PROMPTS, Field::LongPrompts);

/// The syntax of weights in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PromptWeights {
    /// None: brackets are text, as in diffusers.
    #[default]
    Off,
    /// AUTOMATIC1111's: `(word:1.3)`, `(word)`, `[word]`. The hidden states of each token are multiplied by its weight, then
    /// each encoder's row so that its mean is what it was. The pooled embedding is that of the text without the syntax.
    A1111,
    /// compel's, as its `CompelForSDXL` reads it: `(words)1.3`, `word++`, `word--`, `.attend()`, `.blend()`, `.and()`. The hidden states of each
    /// token move away from those of the empty text, or towards them; for a weight below 1 they are also mixed with those of
    /// the prompt in which no token sees the fragment. The pooled embedding is that of the text as it is given.
    Compel,
}

const PROMPT_WEIGHTS: &[(&str, PromptWeights)] =
    &[("off", PromptWeights::Off), ("a1111", PromptWeights::A1111), ("compel", PromptWeights::Compel)];
named_values!(PromptWeights, PROMPT_WEIGHTS, Field::PromptWeights);

/// The sizes that SDXL is conditioned on. Absent ones are the image's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SizeConditioning {
    /// Width and height that the image is said to have had before it was cropped.
    pub original_size: Option<(usize, usize)>,
    /// Left and top of the crop, by default 0.
    pub crop: Option<(usize, usize)>,
    /// Width and height that it is said to have.
    pub target_size: Option<(usize, usize)>,
}

impl SizeConditioning {
    setters! {
        /// Sets the original width and height.
        with_original_size(original_size: (usize, usize) => Some(original_size));
        /// Sets left and top of the crop.
        with_crop(crop: (usize, usize) => Some(crop));
        /// Sets the target width and height.
        with_target_size(target_size: (usize, usize) => Some(target_size));
    }

    /// The numbers in the model's order: heights before widths, top before left. `size` is the image's width and height.
    fn time_ids(&self, size: (usize, usize)) -> [f32; 6] {
        let (original, target) = (self.original_size.unwrap_or(size), self.target_size.unwrap_or(size));
        let crop = self.crop.unwrap_or_default();
        [original.1, original.0, crop.1, crop.0, target.1, target.0].map(|n| n as f32)
    }
}

/// The numbers of the positive and of the negative row, for an image of that width and height.
///
/// # Errors
/// [`Error::Parameter`] for a size of the negative row that would have no effect.
pub(super) fn time_ids(
    positive: &SizeConditioning,
    negative: &SizeConditioning,
    size: (usize, usize),
    image_to_image: bool,
) -> Result<[[f32; 6]; 2]> {
    let own = positive.time_ids(size);
    if image_to_image {
        // There each size falls back alone, and the crop is the positive row's, as in diffusers.
        if negative.crop.is_some() {
            return Err(Error::parameter(
                Field::NegativeCrop,
                "has no effect on image to image: the negative row's crop is the positive one's",
            ));
        }
        let sizes = SizeConditioning {
            original_size: negative.original_size.or(positive.original_size),
            crop: positive.crop,
            target_size: negative.target_size.or(positive.target_size),
        };
        return Ok([own, sizes.time_ids(size)]);
    }
    match (negative.original_size, negative.crop, negative.target_size) {
        (Some(_), _, Some(_)) => Ok([own, negative.time_ids(size)]),
        (None, None, None) => Ok([own, own]),
        (None, _, Some(_)) => Err(Error::parameter(
            Field::NegativeTargetSize,
            "has an effect only together with the negative original size",
        )),
        (Some(_), _, None) => Err(Error::parameter(
            Field::NegativeOriginalSize,
            "has an effect only together with the negative target size",
        )),
        (None, Some(_), None) => Err(Error::parameter(
            Field::NegativeCrop,
            "has an effect only together with the negative original and target size",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_sizes() {
        let given = SizeConditioning::default().with_original_size((3, 4)).with_crop((5, 6));
        let both = given.with_target_size((7, 8));
        let none = SizeConditioning::default();
        let ids = |positive: &SizeConditioning, negative: &SizeConditioning, image| {
            time_ids(positive, negative, (40, 30), image).map_err(|error| match error {
                Error::Parameter { field, .. } => field,
                other => panic!("{other}"),
            })
        };
        assert_eq!(ids(&given, &none, false), Ok([[4.0, 3.0, 6.0, 5.0, 30.0, 40.0]; 2]));
        assert_eq!(ids(&none, &both, false).unwrap()[1], [4.0, 3.0, 6.0, 5.0, 8.0, 7.0]);
        assert_eq!(ids(&none, &given, false), Err(Field::NegativeOriginalSize));
        assert_eq!(ids(&none, &none.with_target_size((1, 2)), false), Err(Field::NegativeTargetSize));
        assert_eq!(ids(&none, &none.with_crop((1, 2)), false), Err(Field::NegativeCrop));
        assert_eq!(ids(&none, &given, true), Err(Field::NegativeCrop));
        let alone = none.with_target_size((1, 2));
        assert_eq!(ids(&given, &alone, true).unwrap()[1], [4.0, 3.0, 6.0, 5.0, 2.0, 1.0]);
    }
}
