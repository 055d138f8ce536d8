//! The graph functions of a base IP-Adapter: image embeddings to tokens, and tokens to keys and values.

use super::config::AdapterConfig;
use crate::graph::{Builder, LinearWeights, NodeId};
use crate::weights::{Scope, TensorTable};

const EPS: f32 = 1e-5;

/// An adapter to build graphs from.
#[derive(Debug, Clone, Copy)]
pub struct Adapter<'a> {
    /// Its sizes.
    pub config: &'a AdapterConfig,
    /// The root of its file: `image_proj`, and `ip_adapter` with the odd numbers 1, 3, 5 .. for its cross-attentions.
    pub scope: &'a Scope,
}

impl Adapter<'_> {
    /// Adds the projection of image embeddings `[B, n, E]` to image tokens `[B, n * N, D]`.
    pub fn image_tokens(&self, b: &mut Builder, embeds: NodeId) -> NodeId {
        let AdapterConfig { num_tokens: tokens, cross_attention_dim: width, .. } = *self.config;
        let (batch, count) = (b.shape(embeds)[0], b.shape(embeds)[1]);
        let projection = self.scope.pp("image_proj");
        let x = b.linear(embeds, &projection.pp("proj"), tokens * width);
        let x = b.reshape(x, &[batch, count * tokens, width]);
        b.layer_norm(x, &projection.pp("norm"), EPS)
    }

    /// Adds the keys, then the values, of image tokens `[B, N, D]` for the cross-attention of that number: `[B, N,
    /// 2C]`.
    pub fn keys_values(&self, b: &mut Builder, tokens: NodeId, layer: usize, width: usize) -> NodeId {
        let scope = self.scope.pp("ip_adapter").pp(2 * layer + 1);
        let shape = [width, self.config.cross_attention_dim];
        let part = |name: &str| LinearWeights::no_bias(&scope.pp(name), &shape);
        b.linear_parts(tokens, vec![part("to_k_ip"), part("to_v_ip")])
    }
}

impl AdapterConfig {
    /// Names and shapes of the adapter's tensors.
    pub fn tensors(&self) -> TensorTable {
        let (mut b, scope) = (Builder::new(), Scope::recording());
        let adapter = Adapter { config: self, scope: &scope };
        let embeds = b.input("image_embeds", &[1, 1, self.embedding_dim]);
        let tokens = adapter.image_tokens(&mut b, embeds);
        for (layer, &width) in self.widths.iter().enumerate() {
            adapter.keys_values(&mut b, tokens, layer, width);
        }
        scope.declared()
    }
}
