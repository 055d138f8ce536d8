//! The models: for each a configuration and a function that builds a graph from it and a weight scope.
//!
//! Tensor names are those of diffusers' and transformers' checkpoints. A pipeline runs five kinds of program: text
//! ([`clip_text`]), image ([`clip_vision`]), condition ([`condition`]: all that does not depend on the latents), denoise
//! ([`unet`]) and decode ([`vae`]).

pub mod clip_text;
pub mod clip_vision;
pub mod compatibility;
pub mod condition;
pub mod config;
pub mod infer;
pub mod json;
pub mod tables;
pub mod unet;
pub mod vae;

use crate::graph::Activation;
use crate::graph::{Builder, NodeId};
use crate::weights::Scope;

/// One pre-norm transformer layer of CLIP, text and vision alike.
struct ClipLayer {
    heads: usize,
    intermediate: usize,
    activation: Activation,
    eps: f32,
    causal: bool,
}

impl ClipLayer {
    fn build(&self, b: &mut Builder, x: NodeId, scope: &Scope) -> NodeId {
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
