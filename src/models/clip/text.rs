//! The CLIP text encoders, CLIP-L and OpenCLIP bigG.

use super::config::ClipTextConfig;
use super::layer::{ClipLayer, KeyMask};
use crate::error::{Error, Result};
use crate::graph::{Builder, Graph, NodeId};
use crate::weights::{Scope, TensorTable, Weight};

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
    /// Whether some tokens of the one row can be hidden from all.
    pub masked: bool,
}

/// Builds a text encoder.
///
/// Inputs: `ids` `[R, T]`, and with `pooled` also `index` `[R]`, the token that is pooled; both integers. Outputs:
/// `hidden` `[R, T, C]`, the residual stream after `depth` layers without the final norm; and with `pooled` `pooled`
/// `[R, P]`: all layers, the final norm, the token at `index`, and the projection where the checkpoint has one.
///
/// With `masked` there is one row, and a second takes the tokens that no token sees. The first has the others, each at its own place
/// in the text by `places` `[2, T]`, and is causal; the second's tokens see the first `length` `[1]` of them. `own` and `first` `[2 T]`
/// are 1 where the one holds and 0 where the other does. The inputs are `ids`, `places`, `length`, `own`, `first`; R is 2.
///
/// # Errors
/// [`crate::Error::Graph`] where the sizes contradict one another; missing tensors are noted in the scope.
pub fn clip_text(config: &ClipTextConfig, scope: &Scope, shape: ClipTextShape) -> Result<Graph> {
    let ClipTextShape { tokens, depth, pooled, masked, .. } = shape;
    let rows = if masked { 2 } else { shape.rows };
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
    let mut x = match masked {
        true => at_places(&mut b, ids, table, positions)?,
        false => b.embedding(ids, table, positions),
    };
    let mask = masked.then(|| KeyMask {
        length: b.input_i32("length", &[1]),
        own: b.input("own", &[2 * tokens]),
        first: b.input("first", &[2 * tokens]),
    });
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
        x = layer.build_masked(&mut b, x, &layers.pp(i), mask.as_ref());
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

/// The sum of the tokens' rows and those of the positions at the places that an input gives.
fn at_places(b: &mut Builder, ids: NodeId, table: Vec<Weight>, positions: Weight) -> Result<NodeId> {
    let shape = [b.shape(ids).last().copied().unwrap_or(0), positions.shape()[1]];
    let zeros = Weight::from_f32(&vec![0.0; shape[0] * shape[1]], &shape, "zeros");
    let zeros = zeros.ok_or_else(|| Error::Graph("a table of zeros".into()))?;
    let ids_shape = b.shape(ids).to_vec();
    let places = b.input_i32("places", &ids_shape);
    let tokens = b.embedding(ids, table, zeros.clone());
    let positions = b.embedding(places, vec![positions], zeros);
    Ok(b.add(tokens, positions))
}

impl ClipTextConfig {
    /// Names and shapes of the encoder's tensors.
    pub fn tensors(&self) -> TensorTable {
        let scope = Scope::recording();
        let shape = ClipTextShape { rows: 1, tokens: 1, depth: self.num_hidden_layers, pooled: true, masked: false };
        // The graph is thrown away, so whether its sizes fit together is a question for those who run it.
        let _ = clip_text(self, &scope, shape);
        scope.declared()
    }
}
