//! The CLIP image encoders, ViT-H/14 and ViT-bigG/14.

use super::config::ClipVisionConfig;
use super::layer::ClipLayer;
use crate::error::Result;
use crate::graph::{Builder, Conv2dParams, Graph, LinearWeights};
use crate::weights::{Scope, TensorTable};

/// The results of an image encoder; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisionOutputs {
    /// `image_embeds` `[I, P]`: the class token after all layers, `post_layernorm` and `visual_projection`.
    pub embeds: bool,
    /// `image_hidden` `[I, T, C]`: transformers' `hidden_states[-2]`, the last layer's input, without a norm.
    pub hidden: bool,
}

impl VisionOutputs {
    /// `image_embeds` alone.
    pub const EMBEDS: Self = Self { embeds: true, hidden: false };
}

/// Builds an encoder for `images` images.
///
/// Input: `pixels` `[I, S, S, 3]`, normalised. Outputs: those of `outputs`, in its order.
///
/// # Errors
/// [`crate::Error::Graph`] where the sizes contradict one another; missing tensors are noted in the scope.
pub fn clip_vision(config: &ClipVisionConfig, scope: &Scope, images: usize, outputs: VisionOutputs) -> Result<Graph> {
    let mut b = Builder::new();
    let vision = scope.pp("vision_model");
    let c = config.hidden_size;
    let embeddings = vision.pp("embeddings");
    let pixels = b.input("pixels", &[images, config.image_size, config.image_size, 3]);
    let patch = config.patch_size;
    let token = embeddings.get("class_embedding", &[c]);
    let weights = LinearWeights::no_bias(&embeddings.pp("patch_embedding"), &[c, 3, patch, patch]);
    let x =
        b.conv2d_with(pixels, weights, Conv2dParams { kernel: patch, stride: patch, padding: [0; 2], resize: None });
    let side = config.image_size / patch;
    let x = b.reshape(x, &[images, side * side, c]);
    let positions = embeddings.get("position_embedding.weight", &[side * side + 1, c]);
    let x = b.prepend_class_token(x, token, positions);
    // The published checkpoints really spell it so.
    let mut x = b.layer_norm(x, &vision.pp("pre_layrnorm"), config.eps);
    let layer = ClipLayer {
        heads: config.num_attention_heads,
        intermediate: config.intermediate_size,
        activation: config.activation,
        eps: config.eps,
        causal: false,
    };
    let layers = vision.pp("encoder.layers");
    // What no output needs is not run.
    let mut hidden = x;
    for i in 0..config.num_hidden_layers {
        hidden = x;
        x = layer.build(&mut b, x, &layers.pp(i));
    }
    if outputs.embeds {
        let x = b.gather(x, None);
        let x = b.layer_norm(x, &vision.pp("post_layernorm"), config.eps);
        let x = b.linear_no_bias(x, &scope.pp("visual_projection"), config.projection_dim);
        b.output("image_embeds", x);
    }
    if outputs.hidden {
        b.output("image_hidden", hidden);
    }
    b.finish()
}

impl ClipVisionConfig {
    /// Hidden states of an image: one of the class token, one of each patch.
    pub fn positions(&self) -> usize {
        (self.image_size / self.patch_size.max(1)).pow(2) + 1
    }

    /// Names and shapes of the encoder's tensors.
    pub fn tensors(&self) -> TensorTable {
        let scope = Scope::recording();
        // The graph is thrown away, so whether its sizes fit together is a question for those who run it.
        let _ = clip_vision(self, &scope, 1, VisionOutputs::EMBEDS);
        scope.declared()
    }
}
