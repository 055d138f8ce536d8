//! The CLIP text encoders, CLIP-L and OpenCLIP bigG.

use super::config::ClipTextConfig;
use super::layer::ClipLayer;
use crate::error::Result;
use crate::graph::{Builder, Graph};
use crate::weights::{Scope, TensorTable};

/// The sizes for which a text encoder's graph is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipTextShape {
    /// Rows of tokens.
    pub rows: usize,
    /// Tokens of a row.
    pub tokens: usize,
    /// Layers before the hidden states that are returned.
    pub depth: usize,
    /// Whether the pooled output is computed too.
    pub pooled: bool,
}

/// Builds a text encoder.
///
/// Inputs: `ids` `[R, T]`, and with `pooled` also `index` `[R]`, the token that is pooled; both integers. Outputs:
/// `hidden` `[R, T, C]`, the residual stream after `depth` layers without the final norm; and with `pooled` `pooled`
/// `[R, P]`: all layers, the final norm, the token at `index`, and the projection where the checkpoint has one.
///
/// # Errors
/// [`crate::Error::Graph`] where the sizes contradict one another; missing tensors are noted in the scope.
pub fn clip_text(config: &ClipTextConfig, scope: &Scope, shape: ClipTextShape) -> Result<Graph> {
    let ClipTextShape { rows, tokens, depth, pooled } = shape;
    let mut b = Builder::new();
    let text = scope.pp("text_model");
    let c = config.hidden_size;
    let ids = b.input_i32("ids", &[rows, tokens]);
    let embeddings = text.pp("embeddings");
    let mut table = vec![embeddings.get("token_embedding.weight", &[config.vocab_size, c])];
    if config.added_tokens > 0 {
        table.push(embeddings.get("token_embedding.added", &[config.added_tokens, c]));
    }
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
        let index = b.input_i32("index", &[rows]);
        let x = b.layer_norm(x, &text.pp("final_layer_norm"), config.eps);
        let x = b.gather(x, Some(index));
        let x = match config.projection_dim {
            Some(width) => b.linear_no_bias(x, &scope.pp("text_projection"), width),
            None => x,
        };
        b.output("pooled", x);
    }
    b.finish()
}

impl ClipTextConfig {
    /// Names and shapes of the encoder's tensors.
    pub fn tensors(&self) -> TensorTable {
        let scope = Scope::recording();
        let shape = ClipTextShape { rows: 1, tokens: 1, depth: self.num_hidden_layers, pooled: true };
        // The graph is thrown away, so whether its sizes fit together is a question for those who run it.
        let _ = clip_text(self, &scope, shape);
        scope.declared()
    }
}
