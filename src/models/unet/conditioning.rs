//! The step-invariant conditioning, computed ahead of the steps: the time embeddings of every step, and keys and values of
//! text and image tokens for every cross-attention.

use super::config::UnetConfig;
use super::interface::{BranchShape, DenoiserInterface, InputRole, UnetShape, image_tokens_output};
use crate::error::Result;
use crate::graph::{Activation, Builder, Graph, LinearWeights, NodeId};
use crate::models::ip_adapter::{Adapter, layout_block};
use crate::weights::Scope;

/// Time ids of a row: original size, crop offset and target size, two each.
const TIME_IDS: usize = 6;

/// A part of the conditioning, which follows from inputs of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConditioningPart {
    /// The time embeddings of all steps, with pooled text and sizes.
    Time,
    /// Keys and values of the text.
    Text,
    /// Tokens of the image prompts, and their keys and values.
    Image,
}

impl ConditioningPart {
    /// All of them, in the order of their inputs and outputs.
    pub const ALL: &'static [Self] = &[Self::Time, Self::Text, Self::Image];
}

/// Builds the conditioning graph, or some parts of it, for `steps` model evaluations.
///
/// Inputs of the time: `timesteps` `[S, B]`, `pooled` `[B, P]`, `time_ids` `[B, 6]`; of the text: `text` `[B, T, D]`; of the images for
/// each branch the embeddings `image_embeds.{branch}` `[B, n, E]`, or hidden states `[B, n, T, E]`, those of the layout's transformer
/// `layout_embeds.{branch}` and, where they are of several images, the weights of their tokens' values
/// `image_weights.{branch}` `[n * N]`. Outputs: each branch's image tokens, `image_tokens.{branch}` `[B, n * N, D]`, then
/// [`DenoiserInterface::conditioning`] under its names; what varies by step with all steps: `[S, B, C]`.
///
/// # Errors
/// [`crate::Error::Graph`] where the sizes contradict one another; missing tensors are noted in the scopes.
pub fn conditioning(
    config: &UnetConfig,
    scope: &Scope,
    shape: &UnetShape,
    steps: usize,
    adapters: &[Adapter<'_>],
    parts: &[ConditioningPart],
) -> Result<Graph> {
    let mut b = Builder::new();
    let batch = shape.batch;
    let has = |part| parts.contains(&part);
    let time = has(ConditioningPart::Time).then(|| time_embedding(&mut b, config, scope, [steps, batch]));
    let text_shape = [batch, shape.tokens, config.cross_attention_dim];
    let text = has(ConditioningPart::Text).then(|| b.input("text", &text_shape));
    let mut image_tokens = Vec::new();
    let branches = if has(ConditioningPart::Image) { shape.branches.as_slice() } else { &[] };
    for (branch, BranchShape { adapter, tokens: len, .. }) in branches.iter().enumerate() {
        let adapter = &adapters[*adapter];
        let count = len / adapter.config.num_tokens;
        let tokens = ["image_embeds", "layout_embeds"]
            .map(|name| adapter.image_tokens(&mut b, format!("{name}.{branch}"), [batch, count]));
        b.output(image_tokens_output(branch), tokens[0]);
        // The values' matrix has no bias: weights of its operand's rows are weights of its result's.
        let weights = (count > 1).then(|| b.input(format!("image_weights.{branch}"), &[*len]));
        image_tokens.push(tokens.map(|tokens| (tokens, weights.map(|weights| b.scale_rows(tokens, weights)))));
    }
    let (resnets, layers) = (config.resnets(), config.cross_layers());
    for input in DenoiserInterface::new(config, shape).conditioning() {
        let x = match (input.role, time, text) {
            (InputRole::TimeEmbedding { resnet }, Some(time), _) => {
                let resnet = &resnets[resnet];
                b.linear(time, &scope.pp(&resnet.path).pp("time_emb_proj"), resnet.channels)
            }
            (InputRole::TextKeysValues { layer }, _, Some(text)) => {
                let attn = scope.pp(&layers[layer].path);
                let shape = [layers[layer].width, config.cross_attention_dim];
                let part = |name: &str| LinearWeights::no_bias(&attn.pp(name), &shape);
                b.linear_parts(text, vec![part("to_k"), part("to_v")])
            }
            (InputRole::ImageKeysValues { branch, layer }, ..) if branch < image_tokens.len() => {
                let adapter = &adapters[shape.branches[branch].adapter];
                let is_layout = layers[layer].block == layout_block(config);
                let tokens = image_tokens[branch][usize::from(is_layout)];
                adapter.keys_values(&mut b, tokens, layer, layers[layer].width)
            }
            _ => continue,
        };
        b.output(input.name.clone(), x);
    }
    b.finish()
}

/// The embedding of timesteps, pooled text and time ids, `[S, B, C]`, after the activation that precedes every
/// projection.
fn time_embedding(b: &mut Builder, config: &UnetConfig, scope: &Scope, [steps, batch]: [usize; 2]) -> NodeId {
    let timesteps = b.input("timesteps", &[steps, batch]);
    let time_ids_width = TIME_IDS * config.addition_time_embed_dim;
    let pooled_width = config.projection_class_embeddings_input_dim.saturating_sub(time_ids_width);
    let pooled = b.input("pooled", &[batch, pooled_width]);
    let time_ids = b.input("time_ids", &[batch, TIME_IDS]);
    let first = config.block_out_channels.first().copied().unwrap_or(0);
    let (flip, shift) = (config.flip_sin_to_cos, config.freq_shift);
    let mlp = |b: &mut Builder, x, scope: &Scope| {
        let h = b.linear(x, &scope.pp("linear_1"), 4 * first);
        let h = b.activation(h, Activation::Silu);
        b.linear(h, &scope.pp("linear_2"), 4 * first)
    };
    let t = b.timestep_embedding(timesteps, first, flip, shift);
    let t = mlp(b, t, &scope.pp("time_embedding"));
    let ids = b.timestep_embedding(time_ids, config.addition_time_embed_dim, flip, shift);
    let ids = b.reshape(ids, &[batch, time_ids_width]);
    let added = b.concat(pooled, ids);
    let added = mlp(b, added, &scope.pp("add_embedding"));
    let t = b.add(t, added);
    b.activation(t, Activation::Silu)
}
