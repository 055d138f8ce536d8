//! Prompts as rows of tokens.

use super::compel;
use super::embeddings::Word;
use super::load::Models;
use super::prompt_options::{LongPrompts, PromptWeights};
use super::request::Request;
use super::token_row::{MixedRow, TokenRow};
use crate::compat::Compat;
use crate::error::{Error, Field, Result, escape};
use crate::inputs::prompt_weights::{PromptPiece, a1111};
use crate::inputs::tokenizer::{Tokenizer, TokenizerProfile};

/// The most rows of 77 tokens of one prompt: every row adds to the keys of all cross-attentions.
const MAX_ROWS: usize = 32;

/// A tokenized prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prompt {
    /// For each text encoder its rows, as many for both.
    pub(super) rows: [Vec<MixedRow>; 2],
    /// The rows that weights of compel need besides.
    pub(super) compel: Option<Box<CompelRows>>,
    /// The tokens beyond the encoder's length, which have no effect.
    pub(super) truncated_tokens: usize,
}

/// Rows that compel takes beside those of the prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CompelRows {
    /// Of an empty text, for each encoder.
    pub(super) empty: [TokenRow; 2],
    /// Of the second encoder's text as it is given, syntax included, which is pooled.
    pub(super) pooled: TokenRow,
}

impl Prompt {
    /// Tokenizes the request's prompt and, where there is guidance, its negative one.
    ///
    /// # Errors
    /// As [`Self::positive`].
    pub(super) fn both(
        models: &Models,
        compat: &Compat,
        request: &Request,
        do_cfg: bool,
    ) -> Result<(Self, Option<Self>)> {
        let mut positive = Self::positive(models, compat, request)?;
        let mut negative = if do_cfg { Some(Self::negative(models, compat, request)?) } else { None };
        if let Some(negative) = &mut negative {
            positive.even(negative);
        }
        Ok((positive, negative))
    }

    /// Tokenizes the request's prompt.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a text that is too long, and for options that contradict it or the profile.
    fn positive(models: &Models, compat: &Compat, request: &Request) -> Result<Self> {
        let second = request.prompt_2.as_deref().filter(|text| !text.is_empty()).unwrap_or(&request.prompt);
        Self::new(models, compat, request, [(Field::Prompt, &request.prompt), (Field::Prompt2, second)])
    }

    /// Tokenizes the request's negative prompt; absent is empty.
    ///
    /// # Errors
    /// As [`Self::positive`].
    fn negative(models: &Models, compat: &Compat, request: &Request) -> Result<Self> {
        let first = request.negative_prompt.as_deref().unwrap_or("");
        let second = request.negative_prompt_2.as_deref().filter(|text| !text.is_empty()).unwrap_or(first);
        Self::new(models, compat, request, [(Field::NegativePrompt, first), (Field::NegativePrompt2, second)])
    }

    /// Tokenizes a text for each encoder.
    fn new(models: &Models, compat: &Compat, request: &Request, texts: [(Field, &str); 2]) -> Result<Self> {
        let [a, b] = &models.tokenizers;
        let [(field, first), (second_field, second)] = texts;
        let (rows, truncated_tokens, longer) = match compat.tokenizer {
            TokenizerProfile::Diffusers => {
                let (mut first, cut) = rows(a, request, field, first)?;
                let (mut second, second_cut) = rows(b, request, second_field, second)?;
                let most = first.len().max(second.len());
                let longer = if first.len() < most { second_field } else { field };
                first.resize_with(most, || MixedRow::plain(TokenRow::empty(a)));
                second.resize_with(most, || MixedRow::plain(TokenRow::empty(b)));
                ([first, second], cut.max(second_cut), longer)
            }
            TokenizerProfile::DiffSynth => {
                let only = [
                    (Field::LongPrompts, request.long_prompts != LongPrompts::Truncate),
                    (Field::PromptWeights, request.prompt_weights != PromptWeights::Off),
                    (second_field, second != first),
                ];
                if let Some((field, _)) = only.into_iter().find(|(_, is_set)| *is_set) {
                    let what = "not in the DiffSynth profile, which joins rows of its own, knows no weights and has one text for both \
                                encoders; leave it out";
                    return Err(Error::parameter(field, what));
                }
                let (a, b) = Tokenizer::encode_rows_of_both(a, b, first);
                let plain = |rows: Vec<Vec<u32>>| {
                    rows.into_iter().map(|ids| MixedRow::plain(TokenRow::of(ids))).collect::<Vec<_>>()
                };
                ([plain(a), plain(b)], 0, field)
            }
        };
        if rows[0].len() > MAX_ROWS {
            let what = format!("{} rows of {} tokens; {MAX_ROWS} are allowed", rows[0].len(), a.max_length());
            return Err(Error::parameter(longer, what));
        }
        let compel = (request.prompt_weights == PromptWeights::Compel).then(|| {
            let pooled = TokenRow::of(b.encode_padded(second).ids);
            Box::new(CompelRows { empty: [TokenRow::empty(a), TokenRow::empty(b)], pooled })
        });
        Ok(Self { rows, compel, truncated_tokens })
    }

    /// Gives two of compel's prompts as many rows, as compel does; other prompts keep their own numbers.
    fn even(&mut self, other: &mut Self) {
        let most = self.num_rows().max(other.num_rows());
        for prompt in [self, other] {
            let Some(compel) = &prompt.compel else { continue };
            for (rows, empty) in prompt.rows.iter_mut().zip(&compel.empty) {
                rows.resize_with(most, || MixedRow::plain(empty.clone()));
            }
        }
    }

    /// The number of rows.
    pub(super) fn num_rows(&self) -> usize {
        self.rows[0].len()
    }
}

/// Tokenizes a text by the request's options; also returns the number of tokens that are cut off.
fn rows(tokenizer: &Tokenizer, request: &Request, field: Field, text: &str) -> Result<(Vec<MixedRow>, usize)> {
    let pieces = match request.prompt_weights {
        PromptWeights::Off if request.long_prompts == LongPrompts::Truncate => {
            let padded = tokenizer.encode_padded(text);
            return Ok((vec![MixedRow::plain(TokenRow::of(padded.ids))], padded.truncated));
        }
        PromptWeights::Off => vec![PromptPiece::Text(text.to_owned(), 1.0)],
        PromptWeights::A1111 => a1111(text).map_err(|what| Error::parameter(field, what))?,
        PromptWeights::Compel => {
            let chunks = request.long_prompts == LongPrompts::Chunks;
            return compel::rows(tokenizer, text, chunks).map_err(|what| Error::parameter(field, what));
        }
    };
    let room = tokenizer.max_length() - 2;
    let mut chunks = vec![Vec::new()];
    let mut cut = 0;
    for piece in pieces {
        let (text, weight) = match piece {
            PromptPiece::Text(text, weight) => (text, weight),
            PromptPiece::Break if request.long_prompts == LongPrompts::Chunks => {
                chunks.push(Vec::new());
                continue;
            }
            PromptPiece::Break => {
                let what = "`BREAK` begins a new row, which takes long prompts in chunks";
                return Err(Error::parameter(field, what));
            }
        };
        let mut begun = 0;
        for id in tokenizer.encode(&text, TokenizerProfile::Diffusers) {
            // The vectors of a word stay together, as in AUTOMATIC1111's interface.
            let len = if begun == 0 { tokenizer.word_len(id) } else { begun };
            begun = len - 1;
            let need = if request.long_prompts == LongPrompts::Chunks { len } else { 1 };
            if chunks.last().is_some_and(|chunk| chunk.len() + need > room) {
                if request.long_prompts == LongPrompts::Truncate {
                    cut += 1;
                    continue;
                }
                chunks.push(Vec::new());
            }
            if let Some(chunk) = chunks.last_mut() {
                chunk.push((id, weight));
            }
        }
    }
    let row = |chunk: Vec<(u32, f32)>| MixedRow::plain(TokenRow::new(tokenizer, chunk.into_iter()));
    Ok((chunks.into_iter().map(row).collect(), cut))
}

/// Tells of words of textual inversions that are in no prompt.
pub(super) fn tell_unused_words(models: &Models, prompts: &[&Prompt]) {
    for Word { word, first } in &models.words {
        let rows = |encoder: usize| prompts.iter().flat_map(move |prompt| &prompt.rows[encoder]);
        let terms = |encoder: usize| rows(encoder).flat_map(|row| &row.terms);
        let used =
            |encoder: usize| first[encoder].is_some_and(|id| terms(encoder).any(|(_, row)| row.ids.contains(&id)));
        if !used(0) && !used(1) {
            tracing::warn!("the word `{}` of a textual inversion is in no prompt", escape(word));
        }
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
