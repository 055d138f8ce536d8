//! The decoder of the VAE.

use super::config::VaeConfig;
use crate::compat::Compat;
use crate::error::Result;
use crate::graph::Activation;
use crate::graph::{Builder, Graph, NodeId};
use crate::weights::Scope;

/// Group and resnet norms of the VAE, in both profiles.
const EPS: f32 = 1e-6;

/// Builds the decoder for one picture.
///
/// Input: `latents` `[1, h, w, L]` as the sampler leaves them. Output: `image` `[1, H, W, 3]`, about -1..1.
///
/// # Errors
/// Where tensors are missing or do not have the configured shapes.
pub fn vae_decoder(config: &VaeConfig, scope: &Scope, height: usize, width: usize, compat: &Compat) -> Result<Graph> {
    let mut b = Builder::new();
    let l = config.latent_channels;
    let x = b.input("latents", &[1, height, width, l]);
    let x = b.scale_shift(x, 1.0 / config.scaling_factor, 0.0);
    let x = if config.post_quant_conv { b.conv2d(x, &scope.pp("post_quant_conv"), l, 1, 1) } else { x };
    let decoder = scope.pp("decoder");
    let deepest = config.block_out_channels.last().copied().unwrap_or(0);
    let mut x = b.conv2d(x, &decoder.pp("conv_in"), deepest, 3, 1);
    let mid = decoder.pp("mid_block");
    x = resnet(&mut b, x, &mid.pp("resnets.0"), deepest, config.norm_num_groups);
    if config.mid_attention {
        x = attention(&mut b, x, &mid.pp("attentions.0"), config.norm_num_groups);
    }
    x = resnet(&mut b, x, &mid.pp("resnets.1"), deepest, config.norm_num_groups);
    for (i, &channels) in config.block_out_channels.iter().rev().enumerate() {
        let block = decoder.pp("up_blocks").pp(i);
        for j in 0..=config.layers_per_block {
            x = resnet(&mut b, x, &block.pp("resnets").pp(j), channels, config.norm_num_groups);
        }
        if i + 1 < config.block_out_channels.len() {
            let (h, w) = (b.shape(x)[1] * 2, b.shape(x)[2] * 2);
            x = b.upsample(x, h, w);
            x = b.conv2d(x, &block.pp("upsamplers.0.conv"), channels, 3, 1);
        }
    }
    x = b.group_norm(x, &decoder.pp("conv_norm_out"), config.norm_num_groups, compat.vae_out_norm_eps);
    x = b.activation(x, Activation::Silu);
    x = b.conv2d(x, &decoder.pp("conv_out"), config.out_channels, 3, 1);
    b.output("image", x);
    b.finish()
}

fn resnet(b: &mut Builder, x: NodeId, scope: &Scope, channels: usize, groups: usize) -> NodeId {
    let h = b.group_norm(x, &scope.pp("norm1"), groups, EPS);
    let h = b.activation(h, Activation::Silu);
    let h = b.conv2d(h, &scope.pp("conv1"), channels, 3, 1);
    let h = b.group_norm(h, &scope.pp("norm2"), groups, EPS);
    let h = b.activation(h, Activation::Silu);
    let h = b.conv2d(h, &scope.pp("conv2"), channels, 3, 1);
    let straight = *b.shape(x).last().unwrap_or(&0) == channels;
    let x = if straight { x } else { b.linear(x, &scope.pp("conv_shortcut"), channels) };
    b.add(x, h)
}

fn attention(b: &mut Builder, x: NodeId, scope: &Scope, groups: usize) -> NodeId {
    let c = *b.shape(x).last().unwrap_or(&0);
    let h = b.group_norm(x, &scope.pp("group_norm"), groups, EPS);
    let q = b.linear(h, &scope.pp("to_q"), c);
    let k = b.linear(h, &scope.pp("to_k"), c);
    let v = b.linear(h, &scope.pp("to_v"), c);
    let h = b.attention(q, k, v, 1, false);
    let h = b.linear(h, &scope.pp("to_out.0"), c);
    b.add(x, h)
}
