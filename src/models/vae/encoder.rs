//! The encoder of the VAE: its tensors.
//!
//! Every published file has an encoder, and no pipeline here runs one yet. A graph of it needs an operation that is
//! missing: its downsamplers pad with zeros on the right and below only, by (0, 1, 0, 1), and
//! [`crate::graph::Conv2dParams`] pads all sides alike. With that operation [`declare_tensors`] becomes the graph
//! function; until then it must not be run.

use super::blocks::{mid_block, resnet};
use super::config::VaeConfig;
use crate::graph::{Activation, Builder, NodeId};
use crate::weights::{Scope, TensorTable};

/// The last group norm.
const EPS: f32 = 1e-6;

/// Walks through the encoder's layers, which takes every tensor. The downsamplers have the padding of the module's
/// remark.
fn declare_tensors(b: &mut Builder, image: NodeId, scope: &Scope, config: &VaeConfig) {
    let (encoder, groups) = (scope.pp("encoder"), config.norm_num_groups);
    let first = config.block_out_channels.first().copied().unwrap_or(0);
    let mut x = b.conv2d(image, &encoder.pp("conv_in"), first, 3, 1);
    for (i, &channels) in config.block_out_channels.iter().enumerate() {
        let block = encoder.pp("down_blocks").pp(i);
        for j in 0..config.layers_per_block {
            x = resnet(b, x, &block.pp("resnets").pp(j), channels, groups);
        }
        if i + 1 < config.block_out_channels.len() {
            x = b.conv2d(x, &block.pp("downsamplers.0.conv"), channels, 3, 2);
        }
    }
    let x = mid_block(b, x, &encoder.pp("mid_block"), config);
    let x = b.group_norm(x, &encoder.pp("conv_norm_out"), groups, EPS);
    let x = b.activation(x, Activation::Silu);
    // Means and log variances.
    let moments = 2 * config.latent_channels;
    let x = b.conv2d(x, &encoder.pp("conv_out"), moments, 3, 1);
    b.conv2d(x, &scope.pp("quant_conv"), moments, 1, 1);
}

impl VaeConfig {
    /// Names and shapes of the encoder's tensors.
    pub fn encoder_tensors(&self) -> TensorTable {
        let (mut b, scope) = (Builder::new(), Scope::recording());
        let image = b.input("image", &[1, self.scale_factor(), self.scale_factor(), self.out_channels]);
        declare_tensors(&mut b, image, &scope, self);
        scope.declared()
    }
}
