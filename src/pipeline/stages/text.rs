//! From prompts to embeddings.

use super::text_rows::{Encoded, TextEncoder};
use crate::error::Result;
use crate::names::counted;
use crate::pipeline::captures::Captures;
use crate::pipeline::compile::Executables;
use crate::pipeline::content_cache::Held;
use crate::pipeline::executable_cache::TextEncoderKey;
use crate::pipeline::plan::{EncodedPrompt, NegativePrompt, RequestPlan};
use crate::pipeline::prompt::Prompt;
use crate::pipeline::request::Request;
use crate::pipeline::token_row::TokenRow;
use std::collections::HashMap;

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

/// The embeddings of texts in the space of image embeddings, by text.
pub(in crate::pipeline) type TextConcepts = HashMap<String, Vec<f32>>;

/// Encodes the texts that are added to references, by the second encoder without LoRAs.
pub(in crate::pipeline) fn concepts(
    executables: &mut Executables<'_>,
    request: &Request,
    plan: &RequestPlan,
) -> Result<TextConcepts> {
    let tokenizer = &executables.compiler.models.tokenizers[1];
    let lora_scales = vec![0.0; plan.lora_scales.text[1].len()];
    let references = plan.denoise.adapters.iter().flat_map(|&a| &request.image_prompts[a].references);
    let mut concepts = TextConcepts::new();
    for (text, _) in references.flat_map(|reference| &reference.texts) {
        let (key, row) = (plan.prompt.encoders[1], TokenRow::of(tokenizer.encode_padded(text).ids));
        let mut encoder = TextEncoder { executables: &mut *executables, key, lora_scales: &lora_scales, empty: None };
        concepts.insert(text.clone(), encoder.row(&row)?.pooled);
    }
    Ok(concepts)
}

/// Encodes the rows of all prompts of a request, as many at once as the device takes where that is more than one, and those of requests
/// that come after it where they leave room; the stages find them for as long as anyone has what is given.
pub(in crate::pipeline) fn ahead<'p>(
    executables: &mut Executables<'_>,
    plan: &'p RequestPlan,
    next: impl Iterator<Item = &'p RequestPlan>,
) -> Result<Held> {
    /// The request's own rows, and the others.
    type Rows<'r> = [Vec<&'r TokenRow>; 2];
    let mut all: Vec<(TextEncoderKey, &[f32], Rows<'_>)> = Vec::new();
    for (plan, of) in std::iter::once((plan, 0)).chain(next.map(|plan| (plan, 1))) {
        for (key, mut rows) in plan.token_rows() {
            let lora_scales = plan.lora_scales.text[key.encoder].as_slice();
            let known = all.iter().position(|(known, scales, _)| (*known, *scales) == (key, lora_scales));
            let at = known.unwrap_or(all.len());
            if known.is_none() {
                all.push((key, lora_scales, Rows::default()));
            }
            all[at].2[of].append(&mut rows);
        }
    }
    let mut held = Held::new();
    for (key, lora_scales, [own, others]) in all {
        let mut encoder = TextEncoder { executables: &mut *executables, key, lora_scales, empty: None };
        held.append(&mut encoder.ahead(&own, &others)?);
    }
    Ok(held)
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
        tracing::warn!("the prompt is too long: its end, {}, has no effect", counted(cut, "token"));
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
