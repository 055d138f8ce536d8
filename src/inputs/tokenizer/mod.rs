//! CLIP's tokenizer: text to token ids, as diffusers or as DiffSynth does it.
//!
//! | | [`TokenizerProfile::Diffusers`] | [`TokenizerProfile::DiffSynth`] |
//! |---|---|---|
//! | follows | diffusers 0.42 with transformers 5 | DiffSynth 1.1.9 with transformers 4.51 and ftfy |
//! | cleaning | NFC, white space to one space, lower case character by character | ftfy's repairs, white space, trimmed, lower case of the whole text (final sigma) |
//! | special tokens in the text | after cleaning where the file marks them `normalized`, else before | before cleaning; in another case only where no punctuation stands before |
//! | long text | truncated: [`Tokenizer::encode_padded`] | split into rows: [`Tokenizer::encode_rows`] |
//!
//! Of ftfy's repairs, all are covered but mojibake (`fix_encoding`, which guesses that `Ã©` was meant as `é`).

mod clean;
mod clip_tokenizer;
mod folder;
mod profile;
mod vocab;
mod words;

pub use clip_tokenizer::{PaddedIds, Tokenizer};
pub use profile::TokenizerProfile;
