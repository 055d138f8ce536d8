//! The decoder of the VAE.

use super::blocks::{mid_block, resnet};
use super::config::VaeConfig;
use crate::compat::Compat;
use crate::error::Result;
use crate::graph::{Activation, Builder, Graph};
use crate::weights::{Scope, TensorTable};

/// Builds the decoder for one image.
///
/// Input: `latents` `[1, h, w, L]` as the denoise loop leaves them. Output: `image` `[1, H, W, 3]`, about -1..1.
///
/// # Errors
/// [`crate::Error::Graph`] where the sizes contradict one another; missing tensors are noted in the scope.
pub fn vae_decoder(config: &VaeConfig, scope: &Scope, height: usize, width: usize, compat: &Compat) -> Result<Graph> {
    let mut b = Builder::new();
    let l = config.latent_channels;
    let x = b.input("latents", &[1, height, width, l]);
    let x = b.scale_shift(x, 1.0 / config.scaling_factor, 0.0);
    let x = if config.post_quant_conv { b.conv2d(x, &scope.pp("post_quant_conv"), l, 1, 1) } else { x };
    let decoder = scope.pp("decoder");
    let x = b.conv2d(x, &decoder.pp("conv_in"), config.deepest_channels(), 3, 1);
    let mut x = mid_block(&mut b, x, &decoder.pp("mid_block"), config);
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

impl VaeConfig {
    /// Names and shapes of the decoder's tensors.
    pub fn decoder_tensors(&self) -> TensorTable {
        let scope = Scope::recording();
        // The graph is thrown away, so whether its sizes fit together is a question for those who run it.
        let _ = vae_decoder(self, &scope, 1, 1, &Compat::diffusers());
        scope.declared()
    }
}
