//! Words that textual inversions add to a tokenizer.

use super::clean;
use super::clip_tokenizer::{AddedToken, Tokenizer};

impl Tokenizer {
    /// Adds a word that stands for `count` tokens with the next ids, and returns the first of them. `WORD_1` and so on are the
    /// second of them and so on, each alone, as in diffusers. Like every token that transformers adds, a word is found
    /// everywhere in the cleaned text, within other words too.
    ///
    /// # Errors
    /// Says why the word cannot be one, such as that it is a token already.
    pub fn add_word(&mut self, word: &str, count: usize) -> Result<u32, String> {
        if clean::diffusers(word).trim().is_empty() {
            return Err("a word without letters".into());
        }
        let first = self.vocab_size;
        let words = (0..count).map(|i| if i == 0 { word.to_owned() } else { format!("{word}_{i}") });
        let mut added = Vec::with_capacity(count);
        // Were `WORD_1` another's, one of the two would be found in place of the other.
        for (i, word) in words.chain([format!("{word}_1")]).enumerate() {
            let content = clean::diffusers(&word);
            if self.model.id(&word).is_some() || self.added.iter().any(|token| token.content == content) {
                return Err(format!("`{word}` is a token of the model already"));
            }
            let count = if i == 0 { count as u32 } else { 1 };
            added.push(AddedToken { content, id: (first + i) as u32, count, normalized: true });
        }
        added.truncate(count);
        self.added.append(&mut added);
        self.vocab_size += count;
        Ok(first as u32)
    }

    /// The text of a token of the vocabulary, with the mark `</w>` where it ends a word.
    pub fn token(&self, id: u32) -> Option<String> {
        self.model.token(id)
    }

    /// The number of tokens of the word that begins with this id: 1 but for words of several vectors.
    pub fn word_len(&self, id: u32) -> usize {
        let words = self.added.iter().filter(|token| token.id == id);
        words.map(|token| token.count as usize).max().unwrap_or(1)
    }
}
