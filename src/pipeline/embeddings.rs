//! The textual inversions of a pipeline: words of its tokenizers, and rows behind its text encoders' tables.

use crate::compat::Compat;
use crate::error::{Error, Field, Result, escape};
use crate::inputs::tokenizer::Tokenizer;
use crate::models::clip::ClipTextConfig;
use crate::names::counted;
use crate::weights::textual_inversion::TextualInversion;
use crate::weights::{Weight, Weights};
use std::path::Path;
use std::sync::Arc;

const TABLE: &str = "text_model.embeddings.token_embedding.weight";
const ADDED: &str = "text_model.embeddings.token_embedding.added";

/// A word of the prompts that vectors stand for.
pub(super) struct Word {
    pub(super) word: String,
    /// For each text encoder the first of its ids; absent where the encoder reads the word as plain text.
    pub(super) first: [Option<u32>; 2],
}

/// A text encoder whose table gets rows.
pub(super) struct TextEncoder<'a> {
    config: &'a mut ClipTextConfig,
    weights: &'a mut Arc<Weights>,
    tokenizer: &'a mut Tokenizer,
}

impl<'a> TextEncoder<'a> {
    pub(super) fn new(
        config: &'a mut ClipTextConfig,
        weights: &'a mut Arc<Weights>,
        tokenizer: &'a mut Tokenizer,
    ) -> Self {
        Self { config, weights, tokenizer }
    }
}

/// Vectors of a word, of a file or of one for each encoder.
struct Found<'a> {
    word: String,
    path: &'a Path,
    read: TextualInversion,
}

/// Adds the files' words to the tokenizers and their vectors to the text encoders; a file's word is its stem.
///
/// # Errors
/// As [`TextualInversion::read`]; [`Error::Parameter`] for a word that cannot be one, or vectors that do not fit in a row of tokens;
/// [`Error::Mismatch`] where a file for another model has vectors for one encoder alone.
pub(super) fn add<'a>(encoders: impl Iterator<Item = TextEncoder<'a>>, files: &[Weights]) -> Result<Vec<Word>> {
    let mut encoders: Vec<_> = encoders.collect();
    let widths = [0, 1].map(|encoder: usize| encoders[encoder].config.hidden_size);
    let mut found: Vec<Found<'_>> = Vec::new();
    for file in files {
        let read = TextualInversion::read(file, widths)?;
        let path = file.path();
        let word = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(own) = read.word.as_ref().filter(|own| **own != word) {
            tracing::warn!(
                "{}: the file calls its word `{}`; here it is `{word}`, the file's name",
                path.display(),
                escape(own)
            );
        }
        match found.iter_mut().find(|other| other.word == word) {
            Some(other) => join(other, path, read)?,
            None => found.push(Found { word, path, read }),
        }
    }
    let mut words = Vec::new();
    let mut rows: [Vec<&Weight>; 2] = [Vec::new(), Vec::new()];
    for Found { word, path, read } in &found {
        demand_both(word, path, read)?;
        let mut first = [None, None];
        for encoder in [0, 1] {
            let Some(vectors) = &read.vectors[encoder] else { continue };
            let (tokenizer, count) = (&mut *encoders[encoder].tokenizer, vectors.shape()[0]);
            let room = tokenizer.max_length() - 2;
            let id = match count {
                count if count > room => {
                    Err(format!("{} of `{word}`; a prompt has room for {room}", counted(count, "vector")))
                }
                _ => tokenizer.add_word(word, count).map_err(|what| format!("{what}; name the file otherwise")),
            };
            let refused = |what| Error::parameter(Field::Embeddings, format!("{}: {what}", path.display()));
            first[encoder] = Some(id.map_err(refused)?);
            rows[encoder].push(vectors);
        }
        words.push(Word { word: word.clone(), first });
    }
    for (encoder, rows) in encoders.into_iter().zip(&rows) {
        append(encoder, rows)?;
    }
    Ok(words)
}

/// Joins two files of one word, each with vectors for another encoder, as diffusers' training script writes them.
fn join(other: &mut Found<'_>, path: &Path, read: TextualInversion) -> Result<()> {
    for (place, vectors) in other.read.vectors.iter_mut().zip(read.vectors) {
        if place.is_some() && vectors.is_some() {
            let (a, b) = (other.path.display(), path.display());
            let what = format!("{a} and {b} have the same word `{}`; name one of them otherwise", other.word);
            return Err(Error::parameter(Field::Embeddings, what));
        }
        *place = place.take().or(vectors);
    }
    Ok(())
}

/// Refuses a file for Stable Diffusion 1.x, and tells of one that has vectors for one encoder alone.
fn demand_both(word: &str, path: &Path, read: &TextualInversion) -> Result<()> {
    let lacking = match &read.vectors {
        [Some(vectors), None] if !read.keyed => {
            let what = format!(
                "its vectors, {} wide, are for the first text encoder alone, as those for Stable Diffusion 1.x are; a textual \
                 inversion for SDXL is needed (clip_l and clip_g)",
                vectors.shape()[1]
            );
            return Err(Error::mismatch(path, what));
        }
        [_, None] => "second",
        [None, _] => "first",
        _ => return Ok(()),
    };
    tracing::warn!(
        "{}: there are no vectors for the {lacking} text encoder, which reads `{word}` as plain text",
        path.display()
    );
    Ok(())
}

/// Puts rows behind those of the tokenizer's vocabulary. The table stays where it is; the rows are a tensor of their own.
fn append(encoder: TextEncoder<'_>, rows: &[&Weight]) -> Result<()> {
    let TextEncoder { config, weights, tokenizer } = encoder;
    let added: usize = rows.iter().map(|rows| rows.shape()[0]).sum();
    if added == 0 {
        return Ok(());
    }
    // A table may have rows that no token has; the added ids follow the tokenizer's.
    let known = tokenizer.vocab_size() - added;
    let values: Vec<f32> = rows.iter().flat_map(|rows| rows.to_f32()).collect();
    let appended = Weight::from_f32(&values, &[added, config.hidden_size], ADDED);
    let misfit = || Error::mismatch(weights.path(), "its tokens' embeddings do not fit its tokenizer");
    let mut extended = Weights::new(weights.path());
    for (name, weight) in weights.iter() {
        let kept = if name == TABLE { weight.rows(0, known) } else { Some(weight.clone()) };
        extended.insert(name, kept.ok_or_else(misfit)?)?;
    }
    extended.insert(ADDED, appended.ok_or_else(misfit)?)?;
    (config.vocab_size, config.added_tokens) = (known, added);
    *weights = Arc::new(extended);
    Ok(())
}

/// Refuses textual inversions in a profile that does not have them.
pub(super) fn demand_profile(words: &[Word], compat: &Compat) -> Result<()> {
    if compat.textual_inversions || words.is_empty() {
        return Ok(());
    }
    let what = format!("the profile {} has no textual inversions; diffusers has them", compat.name);
    Err(Error::parameter(Field::Compat, what))
}
