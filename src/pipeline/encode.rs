//! Text and pictures to embeddings.

use super::Pipeline;
use super::compile;
use super::executable_cache::ExecutableCache;
use crate::error::{Error, Field, Result};
use crate::inputs::clip_image_processor;
use crate::inputs::image::Image;
use crate::inputs::tokenizer::{Tokenizer, TokenizerProfile};

/// The most rows of 77 tokens of one prompt: every row adds to the keys of all cross-attentions.
const MAX_ROWS: usize = 32;

/// A prompt's embeddings.
#[derive(Debug, Clone)]
pub(super) struct TextEmbeddings {
    /// `[T, D]`, the encoders' hidden states side by side.
    pub(super) embeds: Vec<f32>,
    /// T.
    pub(super) tokens: usize,
    /// `[P]`, of the second encoder.
    pub(super) pooled: Vec<f32>,
}

impl TextEmbeddings {
    /// The same with zeros for values.
    pub(super) fn zeros(&self) -> Self {
        let zeros = |v: &[f32]| vec![0.0; v.len()];
        Self { embeds: zeros(&self.embeds), tokens: self.tokens, pooled: zeros(&self.pooled) }
    }
}

/// Encodes the prompt of `field`; `skip` layers from the end, beyond the last one, are left out. Also returns how many tokens were cut.
pub(super) fn text(
    p: &Pipeline,
    programs: &mut ExecutableCache,
    field: Field,
    prompt: &str,
    skip: usize,
) -> Result<(TextEmbeddings, usize)> {
    let (rows, cut) = rows(p, field, prompt)?;
    let (first, _) = encode(p, programs, 0, &rows[0], skip)?;
    let (second, pooled) = encode(p, programs, 1, &rows[1], skip)?;
    let (wa, wb) = (p.models.text[0].config.hidden_size, p.models.text[1].config.hidden_size);
    let mut embeds = Vec::with_capacity(first.len() + second.len());
    for (a, b) in first.chunks_exact(wa).zip(second.chunks_exact(wb)) {
        embeds.extend_from_slice(a);
        embeds.extend_from_slice(b);
    }
    let tokens = embeds.len() / (wa + wb);
    Ok((TextEmbeddings { embeds, tokens, pooled }, cut))
}

/// Each tokenizer's rows of the prompt of `field`, and how many tokens were cut.
pub(super) fn rows(p: &Pipeline, field: Field, prompt: &str) -> Result<([Vec<Vec<u32>>; 2], usize)> {
    let [a, b] = &p.models.tokenizers;
    let (rows, cut) = match p.compat.tokenizer {
        TokenizerProfile::Diffusers => {
            let (a, b) = (a.encode_padded(prompt), b.encode_padded(prompt));
            let cut = a.truncated.max(b.truncated);
            ([vec![a.ids], vec![b.ids]], cut)
        }
        TokenizerProfile::DiffSynth => {
            let (a, b) = Tokenizer::encode_rows_of_both(a, b, prompt);
            ([a, b], 0)
        }
    };
    if rows[0].len() > MAX_ROWS {
        let what = format!("{} rows of {} tokens; {MAX_ROWS} are allowed", rows[0].len(), rows[0][0].len());
        return Err(Error::parameter(field, what));
    }
    Ok((rows, cut))
}

/// Tokens of so many rows.
pub(super) fn tokens(p: &Pipeline, rows: usize) -> Result<usize> {
    if rows > MAX_ROWS {
        return Err(Error::parameter(Field::Prompt, format!("{rows} rows of tokens; {MAX_ROWS} are allowed")));
    }
    Ok(rows * p.models.tokenizers[0].max_length())
}

/// Hidden states of all rows, and the pooled output of the first row (second encoder only).
fn encode(
    p: &Pipeline,
    programs: &mut ExecutableCache,
    encoder: usize,
    rows: &[Vec<u32>],
    skip: usize,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let program = compile::text(p, programs, encoder, skip)?;
    let config = &p.models.text[encoder].config;
    let (mut hidden, mut pooled) = (Vec::new(), Vec::new());
    for row in rows {
        let ids: Vec<f32> = row.iter().map(|id| *id as f32).collect();
        let begin = hidden.len();
        hidden.resize(begin + ids.len() * config.hidden_size, 0.0);
        let hidden = &mut hidden[begin..];
        if encoder == 0 {
            program.run(&[&ids], &mut [hidden])?;
            continue;
        }
        let index = [pooled_token(row, config.eos_token_id, p.compat.pools_at_greatest) as f32];
        let mut projected = vec![0.0; config.projection_dim.unwrap_or(config.hidden_size)];
        program.run(&[&ids, &index], &mut [hidden, &mut projected])?;
        if pooled.is_empty() {
            pooled = projected;
        }
    }
    Ok((hidden, pooled))
}

/// Which token is pooled: the first of the greatest ids, or, where the configuration names another end of text than the
/// historical 2, its first occurrence.
fn pooled_token(ids: &[u32], eos: u32, at_greatest: bool) -> usize {
    const LEGACY: u32 = 2;
    let sought = if at_greatest || eos == LEGACY { ids.iter().max().copied() } else { Some(eos) };
    ids.iter().position(|id| Some(*id) == sought).unwrap_or(0)
}

/// `image_embeds` of a picture.
pub(super) fn image(p: &Pipeline, programs: &mut ExecutableCache, picture: &Image) -> Result<Vec<f32>> {
    let program = compile::image(p, programs)?;
    let Some(config) = p.models.vision.as_ref().map(|vision| &vision.config) else { return Ok(Vec::new()) };
    let pixels = clip_image_processor::preprocess(picture, config.image_size);
    let mut embeds = vec![0.0; config.projection_dim];
    program.run(&[&pixels], &mut [&mut embeds])?;
    Ok(embeds)
}
