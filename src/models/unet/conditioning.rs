//! All that does not depend on the latents, computed once a request: the time embeddings of every step, and keys and values
//! of text and image tokens for every cross-attention.

use super::config::UnetConfig;
use super::denoiser::UnetShape;
use crate::error::Result;
use crate::graph::Activation;
use crate::graph::{Builder, Graph, LinearWeights};
use crate::models::ip_adapter::AdapterConfig;
use crate::weights::Scope;

/// Where an adapter's tensors are.
pub struct Adapter<'a> {
    /// Its sizes.
    pub config: &'a AdapterConfig,
    /// The root of its file: `image_proj`, and `ip_adapter` with the odd numbers 1, 3, 5 .. for its cross-attentions.
    pub scope: &'a Scope,
}

/// Builds the condition program for `steps` model evaluations.
///
/// Inputs: `timesteps` `[S, B]`; `pooled` `[B, P]`; `time_ids` `[B, 6]`; `text` `[B, T, D]`; and for each adapter the image
/// embeddings `[B, n, E]`. Outputs: for each adapter its image tokens `[B, n * N, D]`; then the inputs of [`super::denoiser::unet`]
/// after the token counts in their order, the time embeddings with all steps: `[S, B, C]`.
///
/// # Errors
/// Where tensors are missing or do not have the configured shapes.
pub fn condition(
    config: &UnetConfig,
    scope: &Scope,
    shape: &UnetShape,
    steps: usize,
    adapters: &[Adapter<'_>],
) -> Result<Graph> {
    let mut b = Builder::new();
    let batch = shape.batch;
    let timesteps = b.input("timesteps", &[steps, batch]);
    let pooled_width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim;
    let pooled = b.input("pooled", &[batch, pooled_width]);
    let time_ids = b.input("time_ids", &[batch, 6]);
    let text = b.input("text", &[batch, shape.tokens, config.cross_attention_dim]);

    let width = 4 * config.block_out_channels[0];
    let (flip, shift) = (config.flip_sin_to_cos, config.freq_shift);
    let two = |b: &mut Builder, x, scope: &Scope| {
        let h = b.linear(x, &scope.pp("linear_1"), width);
        let h = b.activation(h, Activation::Silu);
        b.linear(h, &scope.pp("linear_2"), width)
    };
    let t = b.timestep_embedding(timesteps, config.block_out_channels[0], flip, shift);
    let t = two(&mut b, t, &scope.pp("time_embedding"));
    let ids = b.timestep_embedding(time_ids, config.addition_time_embed_dim, flip, shift);
    let ids = b.reshape(ids, &[batch, 6 * config.addition_time_embed_dim]);
    let added = b.concat(pooled, ids);
    let added = two(&mut b, added, &scope.pp("add_embedding"));
    let t = b.add(t, added);
    let t = b.activation(t, Activation::Silu);

    let mut images = Vec::new();
    for (a, adapter) in adapters.iter().enumerate() {
        let AdapterConfig { embedding_dim: embedding, num_tokens: tokens, cross_attention_dim: context, .. } =
            *adapter.config;
        let count = shape.image_tokens[a] / tokens;
        let embeds = b.input(format!("image_embeds.{a}"), &[batch, count, embedding]);
        let projection = adapter.scope.pp("image_proj");
        let x = b.linear(embeds, &projection.pp("proj"), tokens * context);
        let x = b.reshape(x, &[batch, count * tokens, context]);
        let x = b.layer_norm(x, &projection.pp("norm"), 1e-5);
        b.output(format!("image_tokens.{a}"), x);
        images.push(x);
    }
    for (path, width) in config.resnets() {
        let x = b.linear(t, &scope.pp(&path).pp("time_emb_proj"), width);
        b.output(format!("time.{path}"), x);
    }
    let layers = config.cross_layers();
    for layer in &layers {
        let attn = scope.pp(&layer.path);
        let part = |name: &str| LinearWeights {
            weight: attn.get(name, &[layer.width, config.cross_attention_dim]),
            bias: None,
        };
        let kv = b.linear_parts(text, vec![part("to_k.weight"), part("to_v.weight")]);
        b.output(layer.path.clone(), kv);
    }
    for (a, adapter) in adapters.iter().enumerate() {
        for (i, layer) in layers.iter().enumerate() {
            let scope = adapter.scope.pp("ip_adapter").pp(2 * i + 1);
            let shape = [layer.width, adapter.config.cross_attention_dim];
            let part = |name: &str| LinearWeights { weight: scope.get(name, &shape), bias: None };
            let kv = b.linear_parts(images[a], vec![part("to_k_ip.weight"), part("to_v_ip.weight")]);
            b.output(format!("{}.ip{a}", layer.path), kv);
        }
    }
    b.finish()
}
