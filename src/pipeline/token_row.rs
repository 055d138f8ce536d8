//! Rows of tokens as encoders take them.

use crate::inputs::tokenizer::Tokenizer;
use std::ops::Range;

/// A row of tokens as an encoder takes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TokenRow {
    pub(super) ids: Vec<u32>,
    /// The weight of each token's hidden states; empty where all are 1.
    pub(super) weights: Vec<f32>,
    /// The tokens that no token sees; mostly none.
    pub(super) masked: Range<usize>,
}

impl TokenRow {
    /// Tokens with everything around them.
    pub(super) fn of(ids: Vec<u32>) -> Self {
        Self { ids, weights: Vec::new(), masked: 0..0 }
    }

    /// A row of an empty text.
    pub(super) fn empty(tokenizer: &Tokenizer) -> Self {
        Self::of(tokenizer.padded(Vec::new()))
    }

    /// Puts begin, end and padding, all of weight 1, around tokens that fit.
    pub(super) fn new(tokenizer: &Tokenizer, tokens: impl Iterator<Item = (u32, f32)>) -> Self {
        let (ids, given): (Vec<u32>, Vec<f32>) = tokens.unzip();
        let mut row = Self::of(tokenizer.padded(ids));
        if given.iter().any(|weight| *weight != 1.0) {
            row.weights.push(1.0);
            row.weights.extend(given);
            row.weights.resize(row.ids.len(), 1.0);
        }
        row
    }
}

/// A row of hidden states: a sum of those of rows of tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MixedRow {
    /// The factors of the sum, and its rows.
    pub(super) terms: Vec<(f32, TokenRow)>,
    /// The weight of the sum's difference from the hidden states of an empty text.
    pub(super) weight: f32,
}

impl MixedRow {
    /// A row as it is.
    pub(super) fn plain(row: TokenRow) -> Self {
        Self { terms: vec![(1.0, row)], weight: 1.0 }
    }
}
