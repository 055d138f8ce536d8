//! The transformer layer of CLIP.

use crate::graph::{Activation, Builder, ChannelSlice, KvBranch, NodeId};
use crate::weights::Scope;

/// A pre-norm transformer layer, the same for text and images.
pub(super) struct ClipLayer {
    pub(super) heads: usize,
    pub(super) intermediate: usize,
    pub(super) activation: Activation,
    pub(super) eps: f32,
    pub(super) causal: bool,
}

/// The operands by which a second row's queries see the first row's first keys.
pub(super) struct KeyMask {
    /// The number of those keys, `[1]`.
    pub(super) length: NodeId,
    /// 1 for the queries of the first row, `[2 T]`.
    pub(super) own: NodeId,
    /// 1 for those of the second.
    pub(super) first: NodeId,
}

impl KeyMask {
    /// Causal attention within the first row, and of the second row's queries over the first row's first keys.
    fn attention(&self, b: &mut Builder, [q, k, v]: [NodeId; 3], heads: usize) -> NodeId {
        let shape = b.shape(q).to_vec();
        let joined = [1, 2 * shape[1], shape[2]];
        let own = b.attention(q, k, v, heads, true);
        let [own, q, k, v] = [own, q, k, v].map(|x| b.reshape(x, &joined));
        let slice = |operand| ChannelSlice { operand, start: 0 };
        let branch = KvBranch { keys: slice(1), values: slice(2), length: Some(3), scale: None, mask: None };
        let first = b.decoupled_attention(&[q, k, v, self.length], heads, false, vec![branch]);
        let (own, first) = (b.scale_rows(own, self.own), b.scale_rows(first, self.first));
        let sum = b.add(own, first);
        b.reshape(sum, &shape)
    }
}

impl ClipLayer {
    pub(super) fn build(&self, b: &mut Builder, x: NodeId, scope: &Scope) -> NodeId {
        self.build_masked(b, x, scope, None)
    }

    /// The layer with a mask of keys, where there is one.
    pub(super) fn build_masked(&self, b: &mut Builder, x: NodeId, scope: &Scope, mask: Option<&KeyMask>) -> NodeId {
        let width = *b.shape(x).last().unwrap_or(&0);
        let attn = scope.pp("self_attn");
        let h = b.layer_norm(x, &scope.pp("layer_norm1"), self.eps);
        let q = b.linear(h, &attn.pp("q_proj"), width);
        let k = b.linear(h, &attn.pp("k_proj"), width);
        let v = b.linear(h, &attn.pp("v_proj"), width);
        let h = match mask {
            Some(mask) => mask.attention(b, [q, k, v], self.heads),
            None => b.attention(q, k, v, self.heads, self.causal),
        };
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
