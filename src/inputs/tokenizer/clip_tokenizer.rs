//! The tokenizer of CLIP's text encoders.

use super::clean;
use super::profile::TokenizerProfile;
use super::vocab::{self, BpeModel};
use crate::error::{Error, Result};
use std::sync::{Arc, OnceLock};

/// The ids of one text, padded and truncated to the tokenizer's full length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaddedIds {
    /// BOS, the text's tokens, EOS, padding: [`Tokenizer::max_length`] ids.
    pub ids: Vec<u32>,
    /// The number of tokens that did not fit and were truncated from the text's end.
    pub truncated: usize,
}

/// A CLIP tokenizer. Cheap to clone; a clone shares the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    pub(super) model: Arc<BpeModel>,
    pub(super) added: Vec<AddedToken>,
    pub(super) bos: u32,
    pub(super) eos: u32,
    pub(super) pad: u32,
    pub(super) unk: u32,
    pub(super) max_length: usize,
    pub(super) vocab_size: usize,
}

/// A token that is recognized as a whole before words are split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub content: String,
    pub id: u32,
    /// The number of ids from `id` on for which it stands: more than 1 for a word of several vectors.
    pub count: u32,
    /// The diffusers profile seeks it in the cleaned text, so that `<|ENDOFTEXT|>` is found too.
    pub normalized: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bos, eos, pad, max_length, vocab_size, .. } = self;
        write!(f, "Tokenizer({vocab_size} tokens, bos {bos}, eos {eos}, pad {pad}, length {max_length})")
    }
}

impl Tokenizer {
    /// Makes SDXL's first tokenizer (CLIP-L) from the embedded vocabulary: 49,408 tokens, padded with `<|endoftext|>`.
    ///
    /// # Errors
    /// Only if the embedded vocabulary were damaged.
    pub fn clip() -> Result<Self> {
        let eos = AddedToken { content: vocab::EOS.into(), id: 49_407, count: 1, normalized: false };
        Self::embedded(eos, None)
    }

    /// Makes SDXL's second tokenizer (OpenCLIP bigG): the same vocabulary, padded with `!` (id 0).
    ///
    /// As `!` is its padding token, each `!` in a text is a token of its own, id 0; [`Tokenizer::clip`] reads `!!!` as
    /// one.
    ///
    /// # Errors
    /// Only if the embedded vocabulary were damaged.
    pub fn clip_g() -> Result<Self> {
        let eos = AddedToken { content: vocab::EOS.into(), id: 49_407, count: 1, normalized: true };
        Self::embedded(eos, Some(AddedToken { content: "!".into(), id: 0, count: 1, normalized: false }))
    }

    fn embedded(eos: AddedToken, pad: Option<AddedToken>) -> Result<Self> {
        static MODEL: OnceLock<Result<Arc<BpeModel>, String>> = OnceLock::new();
        let model = MODEL
            .get_or_init(|| {
                let (vocab, merges) = vocab::clip()?;
                vocab::build(vocab, merges, vocab::EOS).map(Arc::new)
            })
            .clone()
            .map_err(|what| Error::malformed("bpe_simple_vocab_16e6.txt.gz (embedded)", what))?;
        let pad_id = pad.as_ref().map_or(eos.id, |p| p.id);
        let bos = AddedToken { content: vocab::BOS.into(), id: 49_406, count: 1, normalized: true };
        Ok(Self {
            model,
            added: [Some(bos), Some(eos), pad].into_iter().flatten().collect(),
            bos: 49_406,
            eos: 49_407,
            pad: pad_id,
            unk: 49_407,
            max_length: 77,
            vocab_size: 49_408,
        })
    }

    /// The id of `<|startoftext|>`.
    pub fn bos_token_id(&self) -> u32 {
        self.bos
    }

    /// The id of `<|endoftext|>`.
    pub fn eos_token_id(&self) -> u32 {
        self.eos
    }

    /// The id that fills a row behind EOS.
    pub fn pad_token_id(&self) -> u32 {
        self.pad
    }

    /// The id of bytes that the vocabulary lacks (never needed with a full CLIP vocabulary).
    pub fn unk_token_id(&self) -> u32 {
        self.unk
    }

    /// The number of tokens in a row, BOS and EOS included (77).
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The number of tokens, added ones included: every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Encodes a text of any length, without BOS and EOS.
    pub fn encode(&self, text: &str, profile: TokenizerProfile) -> Vec<u32> {
        let mut ids = Vec::new();
        match profile {
            TokenizerProfile::Diffusers => self.split(text, Some(false), &mut ids, |piece, ids| {
                let clean = clean::diffusers(piece);
                self.split(&clean, Some(true), ids, |piece, ids| self.model.words(piece, profile, ids));
            }),
            TokenizerProfile::DiffSynth => self.split(text, None, &mut ids, |piece, ids| {
                self.model.words(&clean::diffsynth(piece), profile, ids);
            }),
        }
        ids
    }

    /// Encodes the text encoder's input as diffusers does: BOS, tokens, EOS, padding, [`Tokenizer::max_length`] in all.
    pub fn encode_padded(&self, text: &str) -> PaddedIds {
        let mut ids = self.encode(text, TokenizerProfile::Diffusers);
        let room = self.max_length - 2;
        let truncated = ids.len().saturating_sub(room);
        ids.truncate(room);
        PaddedIds { ids: self.padded(ids), truncated }
    }

    /// Puts BOS, EOS and padding around tokens that fit: [`Tokenizer::max_length`] in all.
    pub fn padded(&self, mut ids: Vec<u32>) -> Vec<u32> {
        ids.insert(0, self.bos);
        ids.push(self.eos);
        ids.resize(self.max_length, self.pad);
        ids
    }

    /// Encodes the text encoder's input as DiffSynth does: one BOS and one EOS around the whole text, padded to a
    /// multiple of [`Tokenizer::max_length`], in rows of that length; at least one row.
    pub fn encode_rows(&self, text: &str) -> Vec<Vec<u32>> {
        let mut ids = vec![self.bos];
        ids.extend(self.encode(text, TokenizerProfile::DiffSynth));
        ids.push(self.eos);
        ids.resize(ids.len().next_multiple_of(self.max_length), self.pad);
        ids.chunks(self.max_length).map(<[u32]>::to_vec).collect()
    }

    /// Encodes with SDXL's two tokenizers by [`Tokenizer::encode_rows`], cut to the same number of rows.
    ///
    /// The numbers can differ, as `!!!` is three tokens to one of them; DiffSynth then drops the longer one's last
    /// rows.
    pub fn encode_rows_of_both(first: &Self, second: &Self, text: &str) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
        let (mut a, mut b) = (first.encode_rows(text), second.encode_rows(text));
        let rows = a.len().min(b.len());
        a.truncate(rows);
        b.truncate(rows);
        (a, b)
    }

    /// Hands the text between added tokens to `rest` and pushes the added tokens themselves, the longest at each place.
    /// `normalized` selects which added tokens are sought; `None` seeks all.
    fn split(&self, text: &str, normalized: Option<bool>, ids: &mut Vec<u32>, rest: impl Fn(&str, &mut Vec<u32>)) {
        let sought: Vec<&AddedToken> =
            self.added.iter().filter(|a| normalized.is_none_or(|n| a.normalized == n)).collect();
        let (mut start, mut at) = (0, 0);
        while let Some(c) = text[at..].chars().next() {
            let here = sought.iter().filter(|a| text[at..].starts_with(&a.content)).max_by_key(|a| a.content.len());
            if let Some(added) = here {
                if start < at {
                    rest(&text[start..at], ids);
                }
                ids.extend(added.id..added.id + added.count);
                at += added.content.len();
                start = at;
            } else {
                at += c.len_utf8();
            }
        }
        if start < text.len() {
            rest(&text[start..], ids);
        }
    }
}
