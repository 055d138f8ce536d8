//! Blocks that the VAE's encoder and decoder share.

use super::config::VaeConfig;
use crate::graph::{Activation, Builder, NodeId};
use crate::weights::Scope;

/// Group norms within the blocks, in both profiles.
const EPS: f32 = 1e-6;

/// Adds a resnet without a time embedding.
pub(super) fn resnet(b: &mut Builder, x: NodeId, scope: &Scope, channels: usize, groups: usize) -> NodeId {
    let h = b.group_norm(x, &scope.pp("norm1"), groups, EPS);
    let h = b.activation(h, Activation::Silu);
    let h = b.conv2d(h, &scope.pp("conv1"), channels, 3, 1);
    let h = b.group_norm(h, &scope.pp("norm2"), groups, EPS);
    let h = b.activation(h, Activation::Silu);
    let h = b.conv2d(h, &scope.pp("conv2"), channels, 3, 1);
    let straight = *b.shape(x).last().unwrap_or(&0) == channels;
    let x = if straight { x } else { b.pointwise_conv2d(x, &scope.pp("conv_shortcut"), channels) };
    b.add(x, h)
}

/// Adds the middle block, at the width of the deepest level.
pub(super) fn mid_block(b: &mut Builder, x: NodeId, scope: &Scope, config: &VaeConfig) -> NodeId {
    let (channels, groups) = (config.deepest_channels(), config.norm_num_groups);
    let mut x = resnet(b, x, &scope.pp("resnets.0"), channels, groups);
    if config.mid_attention {
        x = attention(b, x, &scope.pp("attentions.0"), groups);
    }
    resnet(b, x, &scope.pp("resnets.1"), channels, groups)
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
