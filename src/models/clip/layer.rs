//! The transformer layer of CLIP.

use crate::graph::{Activation, Builder, NodeId};
use crate::weights::Scope;

/// A pre-norm transformer layer, the same for text and images.
pub(super) struct ClipLayer {
    pub(super) heads: usize,
    pub(super) intermediate: usize,
    pub(super) activation: Activation,
    pub(super) eps: f32,
    pub(super) causal: bool,
}

impl ClipLayer {
    pub(super) fn build(&self, b: &mut Builder, x: NodeId, scope: &Scope) -> NodeId {
        let width = *b.shape(x).last().unwrap_or(&0);
        let attn = scope.pp("self_attn");
        let h = b.layer_norm(x, &scope.pp("layer_norm1"), self.eps);
        let q = b.linear(h, &attn.pp("q_proj"), width);
        let k = b.linear(h, &attn.pp("k_proj"), width);
        let v = b.linear(h, &attn.pp("v_proj"), width);
        let h = b.attention(q, k, v, self.heads, self.causal);
        let h = b.linear(h, &attn.pp("out_proj"), width);
        let x = b.add(x, h);
        let mlp = scope.pp("mlp");
        let h = b.layer_norm(x, &scope.pp("layer_norm2"), self.eps);
        let h = b.linear(h, &mlp.pp("fc1"), self.intermediate);
        let h = b.activation(h, self.activation);
        let h = b.linear(h, &mlp.pp("fc2"), width);
        b.add(x, h)
    }
}
