//! CLIP's tokenizer: text to token ids, as either peer does it.
//!
//! | | [`Profile::Diffusers`] | [`Profile::DiffSynth`] |
//! |---|---|---|
//! | follows | diffusers 0.42 with transformers 5 | DiffSynth 1.1.9 with transformers 4.51 and ftfy |
//! | cleaning | NFC, white space to one space, lower case character by character | ftfy's repairs, white space, trimmed, lower case of the whole text (final sigma) |
//! | special tokens in the text | after cleaning where the file marks them `normalized`, else before | before cleaning; in another case only where no punctuation stands before |
//! | long text | truncated: [`Tokenizer::ids_77`] | split into rows: [`Tokenizer::rows_of_77`] |
//!
//! Of ftfy's repairs, all are covered but mojibake (`fix_encoding`, which guesses that `Ã©` was meant as `é`).

mod clean;
mod folder;
mod vocab;

use crate::error::{Error, Result};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use vocab::Model;

/// Whose text cleaning is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// diffusers 0.42 with transformers 5.
    #[default]
    Diffusers,
    /// DiffSynth 1.1.9 with transformers 4.51 and ftfy, both of which it requires.
    DiffSynth,
}

/// Ids of one text, of the tokenizer's full length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedIds {
    /// BOS, the text's tokens, EOS, padding: [`Tokenizer::max_length`] ids.
    pub ids: Vec<u32>,
    /// How many of the text's tokens did not fit and were cut off its end.
    pub cut: usize,
}

/// A CLIP tokenizer. Cheap to clone; a clone shares the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    model: Arc<Model>,
    added: Vec<Added>,
    bos: u32,
    eos: u32,
    pad: u32,
    unk: u32,
    max_length: usize,
    vocab_size: usize,
}

/// A token that is recognised as a whole before words are split.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Added {
    content: String,
    id: u32,
    /// The diffusers profile seeks it in the cleaned text, so that `<|ENDOFTEXT|>` is found too.
    normalized: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bos, eos, pad, max_length, vocab_size, .. } = self;
        write!(f, "Tokenizer({vocab_size} tokens, bos {bos}, eos {eos}, pad {pad}, length {max_length})")
    }
}

impl Tokenizer {
    /// SDXL's first tokenizer (CLIP-L), from the embedded vocabulary: 49,408 tokens, padded with `<|endoftext|>`.
    ///
    /// # Errors
    /// Only if the embedded vocabulary were damaged.
    pub fn clip() -> Result<Self> {
        let eos = Added { content: vocab::EOS.into(), id: 49_407, normalized: false };
        Self::embedded(eos, None)
    }

    /// SDXL's second tokenizer (OpenCLIP bigG): the same vocabulary, padded with `!` (id 0).
    ///
    /// As `!` is its padding token, each `!` in a text is a token of its own, id 0; [`Tokenizer::clip`] reads `!!!` as one.
    ///
    /// # Errors
    /// Only if the embedded vocabulary were damaged.
    pub fn clip_g() -> Result<Self> {
        let eos = Added { content: vocab::EOS.into(), id: 49_407, normalized: true };
        Self::embedded(eos, Some(Added { content: "!".into(), id: 0, normalized: false }))
    }

    fn embedded(eos: Added, pad: Option<Added>) -> Result<Self> {
        static MODEL: OnceLock<Result<Arc<Model>, String>> = OnceLock::new();
        let model = MODEL
            .get_or_init(|| {
                let (vocab, merges) = vocab::clip()?;
                vocab::build(vocab, merges, vocab::EOS).map(Arc::new)
            })
            .clone()
            .map_err(|what| Error::malformed("bpe_simple_vocab_16e6.txt.gz (embedded)", what))?;
        let pad_id = pad.as_ref().map_or(eos.id, |p| p.id);
        let bos = Added { content: vocab::BOS.into(), id: 49_406, normalized: true };
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

    /// The tokenizer of a folder (`tokenizer/` or `tokenizer_2/` of a diffusers folder).
    ///
    /// Reads `tokenizer.json` or else `vocab.json` with `merges.txt`, for the vocabulary; `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json`, where present, for the special tokens and the length (77
    /// otherwise). Like transformers' `CLIPTokenizer` it takes only vocabulary, merges and added tokens from
    /// `tokenizer.json`: cleaning and splitting are always CLIP's.
    ///
    /// # Errors
    /// A missing or unreadable file; a file that is not JSON or not of the expected form; a vocabulary with holes; a merge
    /// of tokens that are not in the vocabulary; a length below 3 or above 65,536; padding or truncation on the left.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        folder::load(folder)
    }

    /// `<|startoftext|>`.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// `<|endoftext|>`.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// What fills a row behind EOS.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// What stands for bytes that the vocabulary lacks (never needed with a full CLIP vocabulary).
    pub fn unk(&self) -> u32 {
        self.unk
    }

    /// Tokens to a row, BOS and EOS included (77).
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Number of tokens, added ones included: every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The ids of a text without BOS and EOS, of any length.
    pub fn encode(&self, text: &str, profile: Profile) -> Vec<u32> {
        let mut ids = Vec::new();
        match profile {
            Profile::Diffusers => self.split(text, Some(false), &mut ids, |piece, ids| {
                let clean = clean::diffusers(piece);
                self.split(&clean, Some(true), ids, |piece, ids| self.model.words(piece, profile, ids));
            }),
            Profile::DiffSynth => self.split(text, None, &mut ids, |piece, ids| {
                self.model.words(&clean::diffsynth(piece), profile, ids);
            }),
        }
        ids
    }

    /// The diffusers profile's input of the text encoder: BOS, tokens, EOS, padding, [`Tokenizer::max_length`] in all.
    pub fn ids_77(&self, text: &str) -> FixedIds {
        let mut ids = self.encode(text, Profile::Diffusers);
        let room = self.max_length - 2;
        let cut = ids.len().saturating_sub(room);
        ids.truncate(room);
        ids.insert(0, self.bos);
        ids.push(self.eos);
        ids.resize(self.max_length, self.pad);
        FixedIds { ids, cut }
    }

    /// The DiffSynth profile's input of the text encoder: one BOS and one EOS around the whole text, padded to a multiple
    /// of [`Tokenizer::max_length`], in rows of that length; at least one row.
    pub fn rows_of_77(&self, text: &str) -> Vec<Vec<u32>> {
        let mut ids = vec![self.bos];
        ids.extend(self.encode(text, Profile::DiffSynth));
        ids.push(self.eos);
        ids.resize(ids.len().next_multiple_of(self.max_length), self.pad);
        ids.chunks(self.max_length).map(<[u32]>::to_vec).collect()
    }

    /// [`Tokenizer::rows_of_77`] of SDXL's two tokenizers, cut to the same number of rows.
    ///
    /// The numbers can differ, as `!!!` is three tokens to one of them; DiffSynth then drops the longer one's last rows.
    pub fn rows_of_both(first: &Self, second: &Self, text: &str) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
        let (mut a, mut b) = (first.rows_of_77(text), second.rows_of_77(text));
        let rows = a.len().min(b.len());
        a.truncate(rows);
        b.truncate(rows);
        (a, b)
    }

    /// Hands the text between added tokens to `rest` and pushes the added tokens themselves, the longest at each place.
    /// `normalized` selects which added tokens are sought; `None` seeks all.
    fn split(&self, text: &str, normalized: Option<bool>, ids: &mut Vec<u32>, rest: impl Fn(&str, &mut Vec<u32>)) {
        let sought: Vec<&Added> = self.added.iter().filter(|a| normalized.is_none_or(|n| a.normalized == n)).collect();
        let (mut start, mut at) = (0, 0);
        while let Some(c) = text[at..].chars().next() {
            let here = sought.iter().filter(|a| text[at..].starts_with(&a.content)).max_by_key(|a| a.content.len());
            if let Some(added) = here {
                if start < at {
                    rest(&text[start..at], ids);
                }
                ids.push(added.id);
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
