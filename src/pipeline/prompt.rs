//! Prompts as rows of tokens.

use super::load::Models;
use crate::compat::Compat;
use crate::error::{Error, Field, Result};
use crate::inputs::tokenizer::{Tokenizer, TokenizerProfile};

/// The most rows of 77 tokens of one prompt: every row adds to the keys of all cross-attentions.
const MAX_ROWS: usize = 32;

/// A tokenized prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prompt {
    /// For each text encoder the rows of ids, as many for both.
    pub(super) rows: [Vec<Vec<u32>>; 2],
    /// The tokens beyond the encoder's length, which have no effect.
    pub(super) truncated_tokens: usize,
}

impl Prompt {
    /// Tokenizes the text of the request's `field`.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a text that is too long.
    pub(super) fn new(models: &Models, compat: &Compat, field: Field, text: &str) -> Result<Self> {
        let [a, b] = &models.tokenizers;
        let (rows, truncated_tokens) = match compat.tokenizer {
            TokenizerProfile::Diffusers => {
                let (a, b) = (a.encode_padded(text), b.encode_padded(text));
                let cut = a.truncated.max(b.truncated);
                ([vec![a.ids], vec![b.ids]], cut)
            }
            TokenizerProfile::DiffSynth => {
                let (a, b) = Tokenizer::encode_rows_of_both(a, b, text);
                ([a, b], 0)
            }
        };
        if rows[0].len() > MAX_ROWS {
            let what = format!("{} rows of {} tokens; {MAX_ROWS} are allowed", rows[0].len(), rows[0][0].len());
            return Err(Error::parameter(field, what));
        }
        Ok(Self { rows, truncated_tokens })
    }

    /// The number of rows.
    pub(super) fn num_rows(&self) -> usize {
        self.rows[0].len()
    }
}

/// The number of tokens of that many rows.
///
/// # Errors
/// [`Error::Parameter`] for too many rows.
pub(super) fn tokens_of(models: &Models, rows: usize) -> Result<usize> {
    if rows > MAX_ROWS {
        return Err(Error::parameter(Field::Prompt, format!("{rows} rows of tokens; {MAX_ROWS} are allowed")));
    }
    Ok(rows * models.tokenizers[0].max_length())
}
