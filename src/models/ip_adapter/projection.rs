//! The graph functions of an IP-Adapter: image embeddings or hidden states to tokens, and tokens to keys and values.

use super::config::AdapterConfig;
use super::resampler::resample;
use crate::error::Result;
use crate::graph::{Builder, Graph, LinearWeights, NodeId};
use crate::weights::{Scope, TensorTable};

const EPS: f32 = 1e-5;

/// An adapter to build graphs from.
#[derive(Debug, Clone, Copy)]
pub struct Adapter<'a> {
    /// Its sizes.
    pub config: &'a AdapterConfig,
    /// The root of its file: `image_proj`, and `ip_adapter` with the odd numbers 1, 3, 5 .. for its cross-attentions.
    pub scope: &'a Scope,
    /// Hidden states of an image, where the adapter takes them: patches and the class token.
    pub positions: usize,
}

impl Adapter<'_> {
    /// Declares the input `name` for the images and adds their projection to image tokens `[B, n * N, D]`. The input is
    /// `[B, n, E]`, of embeddings, or `[B, n, T, E]`, of hidden states.
    pub fn image_tokens(&self, b: &mut Builder, name: String, [batch, count]: [usize; 2]) -> NodeId {
        let AdapterConfig { embedding_dim, num_tokens, cross_attention_dim: width, resampler, .. } = self.config;
        let projection = self.scope.pp("image_proj");
        let Some(resampler) = resampler else {
            let embeds = b.input(name, &[batch, count, *embedding_dim]);
            let x = b.linear(embeds, &projection.pp("proj"), num_tokens * width);
            let x = b.reshape(x, &[batch, count * num_tokens, *width]);
            return b.layer_norm(x, &projection.pp("norm"), EPS);
        };
        let hidden = b.input(name, &[batch, count, self.positions, *embedding_dim]);
        let hidden = b.reshape(hidden, &[batch * count, self.positions, *embedding_dim]);
        let tokens = resample(b, self.config, resampler, &projection, hidden);
        b.reshape(tokens, &[batch, count * num_tokens, *width])
    }

    /// Adds the keys, then the values, of image tokens `[B, N, D]` for the cross-attention of that number: `[B, N,
    /// 2C]`. The values are those of the second tokens, where there are.
    pub fn keys_values(
        &self,
        b: &mut Builder,
        (tokens, values): (NodeId, Option<NodeId>),
        layer: usize,
        width: usize,
    ) -> NodeId {
        let scope = self.scope.pp("ip_adapter").pp(2 * layer + 1);
        let shape = [width, self.config.cross_attention_dim];
        let part = |name: &str| LinearWeights::no_bias(&scope.pp(name), &shape);
        let (k, v) = (part("to_k_ip"), part("to_v_ip"));
        match values {
            None => b.linear_parts(tokens, vec![k, v]),
            Some(values) => {
                let [k, v] = [(tokens, k), (values, v)].map(|(x, part)| b.linear_parts(x, vec![part]));
                b.concat(k, v)
            }
        }
    }
}

impl Adapter<'_> {
    /// Builds the graph from the embedding of one image, `image_embeds` `[1, 1, E]` or `[1, 1, T, E]`, to `image_tokens` `[1, N, D]`.
    ///
    /// # Errors
    /// [`crate::Error::Graph`] where the sizes contradict one another; missing tensors are noted in the scope.
    pub fn projection(&self) -> Result<Graph> {
        let mut b = Builder::new();
        let tokens = self.image_tokens(&mut b, "image_embeds".into(), [1, 1]);
        b.output("image_tokens", tokens);
        b.finish()
    }
}

impl AdapterConfig {
    /// Names and shapes of the adapter's tensors.
    pub fn tensors(&self) -> TensorTable {
        let (mut b, scope) = (Builder::new(), Scope::recording());
        let adapter = Adapter { config: self, scope: &scope, positions: 1 };
        let tokens = adapter.image_tokens(&mut b, "image_embeds".into(), [1, 1]);
        for (layer, &width) in self.widths.iter().enumerate() {
            adapter.keys_values(&mut b, (tokens, None), layer, width);
        }
        scope.declared()
    }
}
