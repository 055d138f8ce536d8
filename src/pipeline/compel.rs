//! From compel's syntax to rows of tokens and the sums of hidden states that it means.

use super::token_row::{MixedRow, TokenRow};
use crate::inputs::prompt_weights::{Fragment, compel};
use crate::inputs::tokenizer::{Tokenizer, TokenizerProfile};
use std::ops::Range;

/// A token, the fragment that it is of, and its weight.
#[derive(Clone, Copy)]
struct Token {
    id: u32,
    fragment: usize,
    weight: f64,
}

/// Reads a prompt as compel does; also returns the number of tokens that are cut off where rows are not to be joined.
///
/// # Errors
/// As [`compel`].
pub(super) fn rows(tokenizer: &Tokenizer, text: &str, chunks: bool) -> Result<(Vec<MixedRow>, usize), String> {
    let (mut all, mut cut) = (Vec::new(), 0);
    for prompt in compel(text)? {
        let mut blended: Vec<Vec<(f64, TokenRow)>> = Vec::new();
        let mut texts = Vec::new();
        for (factor, fragments) in &prompt.blend {
            let (rows, more) = weighted(tokenizer, fragments, chunks);
            cut = more.max(cut);
            texts.push((*factor, rows));
        }
        let most = texts.iter().map(|(_, rows)| rows.len()).max().unwrap_or(1);
        blended.resize_with(most, Vec::new);
        for (factor, mut rows) in texts {
            rows.resize_with(most, || vec![(1.0, TokenRow::empty(tokenizer))]);
            for (row, terms) in blended.iter_mut().zip(rows) {
                row.extend(terms.into_iter().map(|(own, tokens)| (factor * own, tokens)));
            }
        }
        all.extend(blended.into_iter().map(|terms| MixedRow {
            terms: terms.into_iter().map(|(factor, row)| (factor as f32, row)).collect(),
            weight: prompt.weight as f32,
        }));
    }
    Ok((all, cut))
}

/// The rows of a text in fragments, each as terms of a sum, and the number of tokens that are cut off. A fragment of a weight below
/// 1 gives a term of its own, in which no token sees it.
fn weighted(tokenizer: &Tokenizer, fragments: &[Fragment], chunks: bool) -> (Vec<Vec<(f64, TokenRow)>>, usize) {
    let room = tokenizer.max_length() - 2;
    let mut tokens = Vec::new();
    for (fragment, Fragment { text, weight }) in fragments.iter().enumerate() {
        let ids = tokenizer.encode(text, TokenizerProfile::Diffusers);
        tokens.extend(ids.into_iter().map(|id| Token { id, fragment, weight: *weight }));
    }
    let mut rest = tokens.as_slice();
    let mut parts = Vec::new();
    loop {
        let split = if chunks { split_point(tokenizer, rest, room) } else { room };
        let (part, behind) = rest.split_at(split.min(rest.len()));
        parts.push(part);
        rest = behind;
        if rest.is_empty() || !chunks {
            break;
        }
    }
    let low: Vec<(usize, f64)> = (0..fragments.len())
        .filter(|fragment| parts.iter().any(|part| part.iter().any(|token| token.fragment == *fragment)))
        .map(|fragment| (fragment, fragments[fragment].weight))
        .filter(|(_, weight)| *weight < 1.0)
        .map(|(fragment, weight)| (fragment, ((1.0 - weight.max(1e-5)) * std::f64::consts::FRAC_PI_2).tan()))
        .collect();
    let sum = 1.0 + low.iter().map(|(_, factor)| factor).sum::<f64>();
    let row = |at: usize| {
        let plain = TokenRow::new(tokenizer, parts[at].iter().map(|token| (token.id, token.weight as f32)));
        let mut terms = vec![(1.0 / sum, plain.clone())];
        for (fragment, factor) in &low {
            let continued = if chunks {
                parts.get(at + 1).and_then(|next| next.first()).is_some_and(|token| token.fragment == *fragment)
            } else {
                rest.first().is_some_and(|token| token.fragment == *fragment)
            };
            match masked(parts[at], *fragment, continued.then_some(if chunks { room + 1 } else { room + 2 })) {
                Some(masked) => terms.push((factor / sum, TokenRow { masked, ..plain.clone() })),
                None => terms[0].0 += factor / sum,
            }
        }
        terms
    };
    ((0..parts.len()).map(row).collect(), rest.len())
}

/// The places of a fragment in its row, behind the begin of text. One that goes on in the next row reaches to `end`, over end of
/// text and padding.
fn masked(part: &[Token], fragment: usize, end: Option<usize>) -> Option<Range<usize>> {
    let first = part.iter().position(|token| token.fragment == fragment)?;
    let last = part.iter().rposition(|token| token.fragment == fragment)?;
    Some(first + 1..end.unwrap_or(last + 2))
}

/// The number of tokens of the next row: up to the last end of a sentence, else of a phrase, else of a word.
fn split_point(tokenizer: &Tokenizer, tokens: &[Token], room: usize) -> usize {
    if tokens.len() <= room {
        return room;
    }
    let last = |test: &dyn Fn(&str) -> bool| {
        tokens[..room].iter().rposition(|token| tokenizer.token(token.id).is_some_and(|text| test(&text)))
    };
    let phrases = [".</w>", ",</w>", ";</w>", ":</w>"];
    let found = last(&|text| text == phrases[0])
        .or_else(|| last(&|text| phrases.contains(&text)))
        .or_else(|| last(&|text| text.ends_with("</w>")));
    found.map_or(room, |at| at + 1)
}
