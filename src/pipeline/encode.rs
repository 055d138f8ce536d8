//! Text and pictures to embeddings.

use super::Pipeline;
use super::programs::{Key, Programs};
use crate::error::{Error, Result};
use crate::inputs::clip;
use crate::inputs::picture::Picture;
use crate::inputs::tokenizer::{Profile, Tokenizer};
use crate::models::clip_text::clip_text;
use crate::models::clip_vision::clip_vision;
use crate::weights::Scope;

/// The most rows of 77 tokens of one prompt: every row adds to the keys of all cross-attentions.
const MAX_ROWS: usize = 32;

/// A prompt's embeddings.
#[derive(Debug, Clone)]
pub(super) struct Text {
    /// `[T, D]`, the encoders' hidden states side by side.
    pub(super) embeds: Vec<f32>,
    /// T.
    pub(super) tokens: usize,
    /// `[P]`, of the second encoder.
    pub(super) pooled: Vec<f32>,
}

impl Text {
    /// The same with zeros for values.
    pub(super) fn zeros(&self) -> Self {
        let zeros = |v: &[f32]| vec![0.0; v.len()];
        Self { embeds: zeros(&self.embeds), tokens: self.tokens, pooled: zeros(&self.pooled) }
    }
}

/// Encodes the prompt that `flag` gave; `skip` layers from the end, beyond the last one, are left out. Also returns how many tokens were cut.
pub(super) fn text(
    p: &Pipeline,
    programs: &mut Programs,
    flag: &str,
    prompt: &str,
    skip: usize,
) -> Result<(Text, usize)> {
    let [a, b] = &p.models.tokenizers;
    let (rows, cut) = match p.compat.text {
        Profile::Diffusers => {
            let (a, b) = (a.ids_77(prompt), b.ids_77(prompt));
            let cut = a.cut.max(b.cut);
            ([vec![a.ids], vec![b.ids]], cut)
        }
        Profile::DiffSynth => {
            let (a, b) = Tokenizer::rows_of_both(a, b, prompt);
            ([a, b], 0)
        }
    };
    if rows[0].len() > MAX_ROWS {
        let what = format!("{} rows of {} tokens; {MAX_ROWS} are allowed", rows[0].len(), rows[0][0].len());
        return Err(Error::parameter(flag, what));
    }
    let (first, _) = encode(p, programs, 0, &rows[0], skip)?;
    let (second, pooled) = encode(p, programs, 1, &rows[1], skip)?;
    let (wa, wb) = (p.models.text[0].config.hidden, p.models.text[1].config.hidden);
    let mut embeds = Vec::with_capacity(first.len() + second.len());
    for (a, b) in first.chunks_exact(wa).zip(second.chunks_exact(wb)) {
        embeds.extend_from_slice(a);
        embeds.extend_from_slice(b);
    }
    let tokens = embeds.len() / (wa + wb);
    Ok((Text { embeds, tokens, pooled }, cut))
}

/// Hidden states of all rows, and the pooled output of the first row (second encoder only).
fn encode(
    p: &Pipeline,
    programs: &mut Programs,
    encoder: usize,
    rows: &[Vec<u32>],
    skip: usize,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let model = &p.models.text[encoder];
    let config = &model.config;
    let depth = config.layers.checked_sub(skip.saturating_add(1)).filter(|d| *d > 0).ok_or_else(|| {
        let what = format!("{skip} given; the text encoder has {} layers", config.layers);
        Error::parameter("--clip-skip", what)
    })?;
    let tokens = rows[0].len();
    let pooled = encoder == 1;
    let key = Key::Text { encoder, rows: rows.len(), depth, pooled };
    let program = programs.get(key, || {
        let scope = Scope::new(model.weights.clone());
        let graph = clip_text(config, &scope, rows.len(), tokens, depth, pooled)?;
        scope.finish("text encoder")?;
        p.device.load(graph)
    })?;
    let ids: Vec<f32> = rows.iter().flatten().map(|id| *id as f32).collect();
    let mut hidden = vec![0.0; ids.len() * config.hidden];
    if !pooled {
        program.run(&[&ids], &mut [&mut hidden])?;
        return Ok((hidden, Vec::new()));
    }
    let index: Vec<f32> = rows.iter().map(|r| pooled_token(r, config.eos, p.compat.pools_at_greatest) as f32).collect();
    let width = config.projection.unwrap_or(config.hidden);
    let mut pooled = vec![0.0; rows.len() * width];
    program.run(&[&ids, &index], &mut [&mut hidden, &mut pooled])?;
    pooled.truncate(width);
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
pub(super) fn image(p: &Pipeline, programs: &mut Programs, picture: &Picture) -> Result<Vec<f32>> {
    let vision = p.models.vision.as_ref().ok_or_else(|| {
        Error::parameter("--clip-vision", "an image encoder is needed for pictures; give its file or folder")
    })?;
    let config = &vision.config;
    let program = programs.get(Key::Image, || {
        let scope = Scope::new(vision.weights.clone());
        let graph = clip_vision(config, &scope, 1)?;
        scope.finish("image encoder")?;
        p.device.load(graph)
    })?;
    let pixels = clip::preprocess(picture, config.image);
    let mut embeds = vec![0.0; config.projection];
    program.run(&[&pixels], &mut [&mut embeds])?;
    Ok(embeds)
}
