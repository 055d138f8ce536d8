//! From prompts to embeddings.

use crate::error::Result;
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::executable_cache::TextEncoderKey;
use crate::pipeline::lora::bound;
use crate::pipeline::plan::{EncodedPrompt, NegativePrompt, RequestPlan};
use crate::pipeline::prompt::TokenRow;

/// A prompt's embeddings.
#[derive(Debug, Clone)]
pub(in crate::pipeline) struct TextEmbeddings {
    /// `[T, D]`, the encoders' hidden states side by side.
    pub(in crate::pipeline) embeds: Vec<f32>,
    /// T.
    pub(in crate::pipeline) tokens: usize,
    /// `[P]`, of the second encoder.
    pub(in crate::pipeline) pooled: Vec<f32>,
}

impl TextEmbeddings {
    /// The same with zeros for values.
    fn zeros(&self) -> Self {
        let zeros = |v: &[f32]| vec![0.0; v.len()];
        Self { embeds: zeros(&self.embeds), tokens: self.tokens, pooled: zeros(&self.pooled) }
    }
}

/// Encodes the positive prompt and, with guidance, the negative one.
pub(in crate::pipeline) fn run(
    executables: &mut Executables<'_>,
    plan: &RequestPlan,
    captures: &mut Captures,
) -> Result<Vec<TextEmbeddings>> {
    let positive = encode_prompt(executables, plan, &plan.prompt)?;
    let cut = plan.prompt.prompt.truncated_tokens;
    if cut > 0 {
        tracing::warn!("the prompt is too long: its last {cut} tokens have no effect");
    }
    let mut texts = vec![positive];
    match &plan.negative_prompt {
        NegativePrompt::Absent => {}
        NegativePrompt::Zeros => texts.push(texts[0].zeros()),
        NegativePrompt::Encoded(negative) => texts.push(encode_prompt(executables, plan, negative)?),
    }
    for (text, prefix) in texts.iter().zip(["", "negative_"]) {
        let (t, width) = (text.tokens, text.embeds.len() / text.tokens);
        captures.add(&format!("{prefix}text_embeds"), &[1, t, width], || text.embeds.clone());
        captures.add(&format!("{prefix}pooled"), &[1, text.pooled.len()], || text.pooled.clone());
    }
    Ok(texts)
}

fn encode_prompt(
    executables: &mut Executables<'_>,
    plan: &RequestPlan,
    prompt: &EncodedPrompt,
) -> Result<TextEmbeddings> {
    let (rows, encoders) = (&prompt.prompt.rows, prompt.encoders);
    let (first, _) = encode_rows(executables, encoders[0], &rows[0], &plan.lora_scales.text[0])?;
    let (second, pooled) = encode_rows(executables, encoders[1], &rows[1], &plan.lora_scales.text[1])?;
    let [a, b] = &executables.compiler.models.text;
    let (wa, wb) = (a.config.hidden_size, b.config.hidden_size);
    let mut embeds = Vec::with_capacity(first.len() + second.len());
    for (a, b) in first.chunks_exact(wa).zip(second.chunks_exact(wb)) {
        embeds.extend_from_slice(a);
        embeds.extend_from_slice(b);
    }
    let tokens = embeds.len() / (wa + wb);
    Ok(TextEmbeddings { embeds, tokens, pooled })
}

/// Hidden states of all rows, and the pooled output of the first row (second encoder only).
fn encode_rows(
    executables: &mut Executables<'_>,
    key: TextEncoderKey,
    rows: &[TokenRow],
    lora_scales: &[f32],
) -> Result<(Vec<f32>, Vec<f32>)> {
    let compiler = executables.compiler;
    let config = &compiler.models.text[key.encoder].config;
    let executable = executables.text_encoder(key)?;
    let (mut hidden, mut pooled) = (Vec::new(), Vec::new());
    for TokenRow { ids: row, weights } in rows {
        // Ids beyond the vocabulary, which are no tokens, read its last row.
        let ids: Vec<i32> = row.iter().map(|id| i32::try_from(*id).unwrap_or(i32::MAX)).collect();
        let begin = hidden.len();
        hidden.resize(begin + ids.len() * config.hidden_size, 0.0);
        let hidden = &mut hidden[begin..];
        let scales = bound(executable.graph(), lora_scales);
        if key.encoder == 0 {
            let inputs: Vec<_> = std::iter::once((&ids).into()).chain(scales).collect();
            executable.run(&inputs, &mut [&mut *hidden])?;
            weigh(hidden, weights, config.hidden_size);
            continue;
        }
        let index = pooled_token(row, config.eos_token_id, compiler.compat.pools_at_greatest) as i32;
        let mut projected = vec![0.0; config.projection_dim.unwrap_or(config.hidden_size)];
        let index = [index];
        let inputs: Vec<_> = [(&ids).into(), (&index).into()].into_iter().chain(scales).collect();
        executable.run(&inputs, &mut [&mut *hidden, &mut projected])?;
        weigh(hidden, weights, config.hidden_size);
        if pooled.is_empty() {
            pooled = projected;
        }
    }
    Ok((hidden, pooled))
}

/// Multiplies each token's hidden states by its weight, then all of them so that their mean is what it was.
fn weigh(hidden: &mut [f32], weights: &[f32], width: usize) {
    if weights.is_empty() {
        return;
    }
    let sum = |hidden: &[f32]| hidden.iter().map(|v| f64::from(*v)).sum::<f64>();
    let before = sum(hidden);
    for (token, weight) in hidden.chunks_exact_mut(width).zip(weights) {
        token.iter_mut().for_each(|v| *v *= weight);
    }
    let scale = (before / sum(hidden)) as f32;
    if scale.is_finite() {
        hidden.iter_mut().for_each(|v| *v *= scale);
    }
}

/// The position of the token that is pooled: the first of the greatest ids, or, where the configuration names another end of
/// text than the historical 2, its first occurrence.
fn pooled_token(ids: &[u32], eos: u32, at_greatest: bool) -> usize {
    const LEGACY: u32 = 2;
    let sought = if at_greatest || eos == LEGACY { ids.iter().max().copied() } else { Some(eos) };
    ids.iter().position(|id| Some(*id) == sought).unwrap_or(0)
}
