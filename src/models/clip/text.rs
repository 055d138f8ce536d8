//! The CLIP text encoders, CLIP-L and OpenCLIP bigG.

use super::config::ClipTextConfig;
use super::layer::ClipLayer;
use crate::error::Result;
use crate::graph::{Builder, Graph};
use crate::weights::Scope;

/// Builds an encoder for `rows` rows of `tokens` tokens.
///
/// Inputs: `ids` `[R, T]`, and with `pooled` also `index` `[R]`, the token that is pooled.
/// Outputs: `hidden` `[R, T, C]`, the residual stream after `depth` layers without the final norm; and with `pooled`
/// `pooled` `[R, P]`: all layers, the final norm, the token at `index`, and the projection where the checkpoint has one.
///
/// # Errors
/// Where tensors are missing or do not have the configured shapes.
pub fn clip_text(
    config: &ClipTextConfig,
    scope: &Scope,
    rows: usize,
    tokens: usize,
    depth: usize,
    pooled: bool,
) -> Result<Graph> {
    let mut b = Builder::new();
    let text = scope.pp("text_model");
    let c = config.hidden_size;
    let ids = b.input("ids", &[rows, tokens]);
    let embeddings = text.pp("embeddings");
    let table = embeddings.get("token_embedding.weight", &[config.vocab_size, c]);
    let positions = embeddings.get("position_embedding.weight", &[config.max_position_embeddings, c]);
    let mut x = b.embedding(ids, table, positions);
    let layer = ClipLayer {
        heads: config.num_attention_heads,
        intermediate: config.intermediate_size,
        activation: config.activation,
        eps: config.eps,
        causal: true,
    };
    let layers = text.pp("encoder.layers");
    let end = if pooled { config.num_hidden_layers } else { depth };
    for i in 0..end {
        if i == depth {
            b.output("hidden", x);
        }
        x = layer.build(&mut b, x, &layers.pp(i));
    }
    if depth == end {
        b.output("hidden", x);
    }
    if pooled {
        let index = b.input("index", &[rows]);
        let x = b.layer_norm(x, &text.pp("final_layer_norm"), config.eps);
        let x = b.gather(x, Some(index));
        let x = match config.projection_dim {
            Some(width) => b.linear(x, &scope.pp("text_projection"), width),
            None => x,
        };
        b.output("pooled", x);
    }
    b.finish()
}
