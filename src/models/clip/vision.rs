//! The CLIP image encoders, ViT-H/14 and ViT-bigG/14.

use super::config::ClipVisionConfig;
use super::layer::ClipLayer;
use crate::error::Result;
use crate::graph::{Builder, Conv2dParams, Graph};
use crate::weights::Scope;

/// Builds an encoder for `images` images.
///
/// Input: `pixels` `[I, S, S, 3]`, normalised. Output: `image_embeds` `[I, P]`: the class token after all layers,
/// `post_layernorm` and `visual_projection`.
///
/// # Errors
/// Where tensors are missing or do not have the configured shapes.
pub fn clip_vision(config: &ClipVisionConfig, scope: &Scope, images: usize) -> Result<Graph> {
    let mut b = Builder::new();
    let vision = scope.pp("vision_model");
    let c = config.hidden_size;
    let embeddings = vision.pp("embeddings");
    let pixels = b.input("pixels", &[images, config.image_size, config.image_size, 3]);
    let window = Conv2dParams { kernel: config.patch_size, stride: config.patch_size, padding: 0, resize: None };
    let x = b.conv2d_with(pixels, &embeddings.pp("patch_embedding"), c, window);
    let side = config.image_size / config.patch_size;
    let x = b.reshape(x, &[images, side * side, c]);
    let token = embeddings.get("class_embedding", &[c]);
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
    for i in 0..config.num_hidden_layers {
        x = layer.build(&mut b, x, &layers.pp(i));
    }
    let x = b.gather(x, None);
    let x = b.layer_norm(x, &vision.pp("post_layernorm"), config.eps);
    let x = b.linear(x, &scope.pp("visual_projection"), config.projection_dim);
    b.output("image_embeds", x);
    b.finish()
}
