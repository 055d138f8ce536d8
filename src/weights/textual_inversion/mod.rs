//! Textual inversions: vectors that stand in a prompt for a word.

pub(super) mod names;

use super::contents::quoted;
use super::detect::detect;
use super::weight::{Weight, Weights};
use crate::error::{Error, Result};
use names::{KEYED, UNKEYED, unkeyed};

/// The vectors of a file.
#[derive(Debug, Clone)]
pub struct TextualInversion {
    /// `[N, C]` for each text encoder; one may be missing.
    pub vectors: [Option<Weight>; 2],
    /// Whether the file says which encoder's they are.
    pub keyed: bool,
    /// The word by which the file calls them, where it has one.
    pub word: Option<String>,
}

impl TextualInversion {
    /// Reads a file: tensors `clip_l` and `clip_g`, as for SDXL; or one tensor, as diffusers (`<token>`) and AUTOMATIC1111
    /// (`emb_params`, `string_to_param`) write it, which goes to the encoder of its width. `widths` are those of the model's
    /// encoders.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the file is something else, or its vectors are as wide as no encoder; [`Error::Malformed`] for
    /// values that are not finite.
    pub fn read(weights: &Weights, widths: [usize; 2]) -> Result<Self> {
        let keyed = KEYED.map(|names| names.into_iter().find(|name| weights.contains(name)));
        let found = if keyed == [None; 2] { unkeyed(weights) } else { None };
        let mut read = Self { vectors: [None, None], keyed: found.is_none(), word: None };
        let mut used = Vec::new();
        if let Some(name) = found {
            let vectors = rows(weights, name)?;
            let encoder = encoder(weights, vectors.shape()[1], widths)?;
            read.vectors[encoder] = Some(vectors);
            read.word = (!UNKEYED.contains(&name)).then(|| name.to_owned());
            used.push(name);
        } else if keyed == [None; 2] {
            let family = detect(weights);
            return Err(Error::mismatch(weights.path(), format!("this is {family}; a textual inversion is needed")));
        }
        for (i, name) in keyed.into_iter().enumerate() {
            let Some(name) = name else { continue };
            let vectors = rows(weights, name)?;
            let (width, place) = (vectors.shape()[1], ["first", "second"][i]);
            if width != widths[i] {
                let what = format!("`{name}` is {width} wide, the model's {place} text encoder {}", widths[i]);
                return Err(Error::mismatch(weights.path(), what + "; a textual inversion for this model is needed"));
            }
            read.vectors[i] = Some(vectors);
            used.push(name);
        }
        let others: Vec<_> = weights.iter().map(|(name, _)| name).filter(|name| !used.contains(name)).collect();
        if let Some(first) = others.first() {
            let (path, count) = (weights.path().display(), others.len());
            tracing::warn!(
                "{path}: {count} tensor(s) are no part of a textual inversion for SDXL: {}, ..",
                quoted(first)
            );
        }
        Ok(read)
    }
}

/// Reads a tensor as rows of vectors.
fn rows(weights: &Weights, name: &str) -> Result<Weight> {
    let path = weights.path();
    let Some(weight) = weights.get(name) else {
        let dtype = weights.skipped_type(name).unwrap_or("unknown");
        let what = format!("{} is of type {dtype}; F32, F16 or BF16 is needed", quoted(name));
        return Err(Error::mismatch(path, what));
    };
    let shape = match *weight.shape() {
        [width] if width > 0 => [1, width],
        [count, width] if count > 0 && width > 0 => [count, width],
        ref shape => {
            let what = format!("{} is {shape:?}; one vector or rows of vectors are needed", quoted(name));
            return Err(Error::mismatch(path, what));
        }
    };
    let values = weight.to_f32();
    if !values.iter().all(|value| value.is_finite()) {
        return Err(Error::malformed(path, format!("{} holds NaN or infinity", quoted(name))));
    }
    Weight::from_f32(&values, &shape, name)
        .ok_or_else(|| Error::malformed(path, format!("{} is damaged", quoted(name))))
}

/// The encoder of vectors of that width in a file that does not say which.
fn encoder(weights: &Weights, width: usize, widths: [usize; 2]) -> Result<usize> {
    let mismatch = |what: String| Err(Error::mismatch(weights.path(), what));
    let [first, second] = widths;
    match width {
        width if width == first && first == second => mismatch(format!(
            "both text encoders are {width} wide and the file does not say for which its vectors are; name them clip_l and \
             clip_g"
        )),
        width if width == first => Ok(0),
        width if width == second => Ok(1),
        width => {
            let family = match width {
                768 => "a textual inversion for Stable Diffusion 1.x",
                1024 => "a textual inversion for Stable Diffusion 2.x",
                1280 => "a textual inversion for SDXL's second text encoder",
                _ => "a textual inversion for another model",
            };
            mismatch(format!(
                "this is {family}: its vectors are {width} wide, the model's text encoders {first} and {second}"
            ))
        }
    }
}
