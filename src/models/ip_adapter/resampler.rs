//! The resampler of an IP-Adapter Plus: from an encoder's hidden states to image tokens.

use super::config::{AdapterConfig, ResamplerConfig};
use crate::graph::{Activation, Builder, NodeId};
use crate::weights::Scope;

const EPS: f32 = 1e-5;

/// Adds the resampler of hidden states `[n, T, E]` to image tokens `[n, N, D]`: learned latents look in each layer at the
/// hidden states and at one another.
pub(super) fn resample(
    b: &mut Builder,
    config: &AdapterConfig,
    resampler: &ResamplerConfig,
    scope: &Scope,
    hidden: NodeId,
) -> NodeId {
    let (images, width) = (b.shape(hidden)[0], resampler.hidden_dim);
    let mut latents = b.repeat(scope.get("latents", &[config.num_tokens, width]), images);
    let x = b.linear(hidden, &scope.pp("proj_in"), width);
    for (i, &intermediate) in resampler.intermediate.iter().enumerate() {
        let layer = scope.pp("layers").pp(i);
        let attention = attend(b, resampler, &layer.pp(0), x, latents);
        latents = b.add(latents, attention);
        let feed_forward = layer.pp(1);
        let h = b.layer_norm(latents, &feed_forward.pp(0), EPS);
        let h = b.linear_no_bias(h, &feed_forward.pp(1), intermediate);
        let h = b.activation(h, Activation::Gelu);
        let h = b.linear_no_bias(h, &feed_forward.pp(3), width);
        latents = b.add(latents, h);
    }
    let tokens = b.linear(latents, &scope.pp("proj_out"), config.cross_attention_dim);
    b.layer_norm(tokens, &scope.pp("norm_out"), EPS)
}

/// Attention of the latents to the hidden states and to themselves, in one softmax.
fn attend(b: &mut Builder, resampler: &ResamplerConfig, scope: &Scope, x: NodeId, latents: NodeId) -> NodeId {
    let inner = resampler.inner_dim();
    let x = b.layer_norm(x, &scope.pp("norm1"), EPS);
    let latents = b.layer_norm(latents, &scope.pp("norm2"), EPS);
    let source = b.concat_tokens(x, latents);
    let q = b.linear_no_bias(latents, &scope.pp("to_q"), inner);
    let k = b.linear_no_bias(source, &scope.pp("to_k"), inner);
    let v = b.linear_no_bias(source, &scope.pp("to_v"), inner);
    let h = b.attention(q, k, v, resampler.heads, false);
    b.linear_no_bias(h, &scope.pp("to_out"), resampler.hidden_dim)
}
