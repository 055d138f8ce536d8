//! From prompts to embeddings.

use super::text_rows::{Encoded, TextEncoder};
use crate::error::Result;
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::plan::{EncodedPrompt, NegativePrompt, RequestPlan};
use crate::pipeline::prompt::Prompt;

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
    let Prompt { rows, compel, .. } = &prompt.prompt;
    let [first, second] = [0, 1].map(|i| {
        let lora_scales = &plan.lora_scales.text[i];
        let empty = compel.as_ref().map(|compel| &compel.empty[i]);
        let mut encoder = TextEncoder { executables: &mut *executables, key: prompt.encoders[i], lora_scales, empty };
        let mut encoded = encoder.rows(&rows[i])?;
        if let (1, Some(compel)) = (i, compel) {
            encoded.pooled = encoder.row(&compel.pooled)?.pooled;
        }
        Ok(encoded)
    });
    let (first, Encoded { hidden: second, pooled }) = (first?.hidden, second?);
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
