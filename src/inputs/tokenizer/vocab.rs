//! The byte-pair model: CLIP's embedded vocabulary, and the checks that any vocabulary must pass.

use super::profile::TokenizerProfile;
use std::io::{BufRead, BufReader, Read};
use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::utils::SysRegex;

/// The mark behind the last piece of a word.
pub(super) const END: &str = "</w>";
pub(super) const BOS: &str = "<|startoftext|>";
pub(super) const EOS: &str = "<|endoftext|>";

/// Merges of the published file that CLIP uses; the file holds 262,144.
const MERGES: usize = 49_152 - 256 - 2;

/// The words of clean text, in this order; anything between words is dropped.
const FIXED: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d";
const WORDS: &str = r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// U+0345 is no letter but folds to one; the case-blind pattern of transformers 4 finds it in neither class.
const WORDS_ANY_CASE: &str = r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+";

static FILE: &[u8] = include_bytes!("../../../assets/clip/bpe_simple_vocab_16e6.txt.gz");

/// Makes the table of the printable stand-in of each byte, so that the model works on text without white space or
/// control characters.
///
/// Bytes that Latin-1 shows stand for themselves; the rest take U+0100 and up in order.
pub(super) fn byte_chars() -> [char; 256] {
    let mut table = ['\0'; 256];
    let mut next = 0x100u32;
    for (byte, slot) in (0u32..).zip(table.iter_mut()) {
        let shown = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if shown { byte } else { next };
        next += u32::from(!shown);
        *slot = char::from_u32(code).unwrap_or('\0');
    }
    table
}

/// Makes CLIP's vocabulary: the bytes in the order of their stand-ins, the same with [`END`], one token for each merge,
/// and the two special tokens: 49,408 in all.
pub(super) fn clip() -> Result<(Vocab, Merges), String> {
    let mut merges = Merges::with_capacity(MERGES);
    // The limit keeps a damaged file from growing without bound.
    let text = BufReader::new(flate2::read::GzDecoder::new(FILE).take(1 << 24));
    for line in text.lines().skip(1).take(MERGES) {
        let line = line.map_err(|e| format!("cannot be unpacked: {e}"))?;
        let (a, b) = pair(&line).ok_or_else(|| format!("line `{line}` is not a merge"))?;
        merges.push((a.to_string(), b.to_string()));
    }
    if merges.len() != MERGES {
        return Err(format!("{} merges, expected {MERGES}", merges.len()));
    }
    let mut bytes = byte_chars();
    bytes.sort_unstable();
    let single = bytes.iter().map(char::to_string);
    let last = bytes.iter().map(|c| format!("{c}{END}"));
    let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let special = [BOS, EOS].map(str::to_string);
    let vocab = single.chain(last).chain(merged).chain(special).zip(0u32..).collect();
    Ok((vocab, merges))
}

/// Splits a merge written `A B`.
pub(super) fn pair(line: &str) -> Option<(&str, &str)> {
    let (a, b) = line.split_once(' ')?;
    (!a.is_empty() && !b.is_empty() && !b.contains(' ')).then_some((a, b))
}

/// A byte-pair model and the patterns that split text into its words.
pub(super) struct BpeModel {
    bpe: BPE,
    chars: [char; 256],
    words: SysRegex,
    /// The same with its fixed part blind to case: `'s` is also found with U+017F, which lower case leaves as it is.
    words_any_case: SysRegex,
}

impl BpeModel {
    /// Splits clean text into words and appends the ids of each.
    pub(super) fn words(&self, text: &str, profile: TokenizerProfile, ids: &mut Vec<u32>) {
        let pattern = match profile {
            TokenizerProfile::Diffusers => &self.words,
            TokenizerProfile::DiffSynth => &self.words_any_case,
        };
        for (start, end) in pattern.find_iter(text) {
            let word = &text[start..end];
            match (word, profile) {
                // transformers 5 splits once more, by GPT-2's pattern. Of all words that changes only these two.
                (BOS | EOS, TokenizerProfile::Diffusers) => {
                    for part in [&word[..2], &word[2..word.len() - 2], &word[word.len() - 2..]] {
                        self.word(part, ids);
                    }
                }
                // transformers 4 knows them here too, where another case hid them from the search for added tokens.
                (BOS | EOS, TokenizerProfile::DiffSynth) => match self.id(word) {
                    Some(id) => ids.push(id),
                    None => self.word(word, ids),
                },
                _ => self.word(word, ids),
            }
        }
    }

    fn word(&self, word: &str, ids: &mut Vec<u32>) {
        let word: String = word.bytes().map(|b| self.chars[b as usize]).collect();
        // It fails only where an unknown token is named but absent, which `build` rules out.
        ids.extend(self.bpe.tokenize(&word).unwrap_or_default().iter().map(|t| t.id));
    }

    /// Finds the token of an id of the vocabulary.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.bpe.id_to_token(id)
    }

    /// Finds the id of a token of the vocabulary.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.bpe.token_to_id(token)
    }
}

/// Checks that the ids are 0 to n-1, each once: the text encoder's embedding table has one row for each.
pub(super) fn check_ids(vocab: &Vocab) -> Result<(), String> {
    let n = vocab.len();
    let mut taken = vec![false; n];
    if vocab.values().all(|&id| taken.get_mut(id as usize).is_some_and(|slot| !std::mem::replace(slot, true))) {
        return Ok(());
    }
    // The first in order is named, so that a file's error is always the same.
    let mut tokens: Vec<(usize, &String)> = vocab.iter().map(|(token, &id)| (id as usize, token)).collect();
    tokens.sort_unstable();
    match tokens.iter().enumerate().find(|(place, (id, _))| place != id) {
        Some((place, (id, token))) if *id < place => {
            Err(format!("id {id} (`{token}`) is taken twice; {n} tokens need the ids 0 to n-1"))
        }
        Some((_, (id, token))) => {
            Err(format!("`{token}` has id {id}, but {n} tokens need the ids 0 to n-1 without holes"))
        }
        None => Ok(()),
    }
}

/// Builds the model; every merge must be about tokens of the vocabulary.
pub(super) fn build(vocab: Vocab, merges: Merges, unk: &str) -> Result<BpeModel, String> {
    let mut builder = BPE::builder().end_of_word_suffix(END.into()).fuse_unk(false);
    if vocab.contains_key(unk) {
        builder = builder.unk_token(unk.into());
    }
    let pattern = |text: &str| SysRegex::new(text).map_err(|e| e.to_string());
    Ok(BpeModel {
        // A merge of tokens that the vocabulary lacks is an error of the builder's, which names the token.
        bpe: builder.vocab_and_merges(vocab, merges).build().map_err(|e| format!("a merge does not fit: {e}"))?,
        chars: byte_chars(),
        words: pattern(&format!("{FIXED}|{WORDS}"))?,
        words_any_case: pattern(&format!("(?i:{FIXED})|{WORDS_ANY_CASE}"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_characters() {
        let table = byte_chars();
        assert_eq!((table[b' ' as usize], table[0], table[b'A' as usize]), ('\u{120}', '\u{100}', 'A'));
        assert_eq!((table[0xad], table[0xff]), ('\u{143}', '\u{ff}'));
    }

    #[test]
    fn embedded_vocabulary() {
        let (vocab, merges) = clip().unwrap();
        assert_eq!((vocab.len(), merges.len()), (49_408, 48_894));
        for (token, id) in [("!", 0), ("!</w>", 256), ("in", 512), (BOS, 49_406), (EOS, 49_407), ("cat</w>", 2368)] {
            assert_eq!(vocab.get(token), Some(&id), "{token}");
        }
    }
}
