//! The encoder of the VAE.

use super::blocks::{mid_block, resnet};
use super::config::VaeConfig;
use crate::error::Result;
use crate::graph::{Activation, Builder, Conv2dParams, Graph, LinearWeights};
use crate::weights::{Scope, TensorTable, Weights};

/// The last group norm.
const EPS: f32 = 1e-6;

/// Builds the encoder for one image.
///
/// Input: `image` `[1, H, W, 3]`, values -1..1; the sides are multiples of [`VaeConfig::scale_factor`]. Output: `moments`
/// `[1, h, w, 2L]`: the means of the latents' distribution, then its log variances, both before the scaling factor.
///
/// # Errors
/// [`crate::Error::Graph`] where the sizes contradict one another; missing tensors are noted in the scope.
pub fn vae_encoder(config: &VaeConfig, scope: &Scope, height: usize, width: usize) -> Result<Graph> {
    let mut b = Builder::new();
    let (encoder, groups) = (scope.pp("encoder"), config.norm_num_groups);
    let first = config.block_out_channels.first().copied().unwrap_or(0);
    let image = b.input("image", &[1, height, width, config.out_channels]);
    let mut x = b.conv2d(image, &encoder.pp("conv_in"), first, 3, 1);
    for (i, &channels) in config.block_out_channels.iter().enumerate() {
        let block = encoder.pp("down_blocks").pp(i);
        for j in 0..config.layers_per_block {
            x = resnet(&mut b, x, &block.pp("resnets").pp(j), channels, groups);
        }
        if i + 1 < config.block_out_channels.len() {
            // Zeros on the right and below only, as diffusers pads its downsamplers here.
            let params = Conv2dParams { kernel: 3, stride: 2, padding: [0, 1], resize: None };
            let weights = LinearWeights::with_bias(&block.pp("downsamplers.0.conv"), &[channels, channels, 3, 3]);
            x = b.conv2d_with(x, weights, params);
        }
    }
    x = mid_block(&mut b, x, &encoder.pp("mid_block"), config);
    x = b.group_norm(x, &encoder.pp("conv_norm_out"), groups, EPS);
    x = b.activation(x, Activation::Silu);
    let moments = 2 * config.latent_channels;
    x = b.conv2d(x, &encoder.pp("conv_out"), moments, 3, 1);
    if config.quant_conv {
        x = b.conv2d(x, &scope.pp("quant_conv"), moments, 1, 1);
    }
    b.output("moments", x);
    b.finish()
}

/// The encoder's tensors of a VAE; none where it has no encoder.
///
/// # Errors
/// [`crate::Error::Malformed`] where two tensors have one name.
pub fn encoder_weights(vae: &Weights) -> Result<Weights> {
    let own = |name: &str| name.starts_with("encoder.") || name.starts_with("quant_conv.");
    let mut encoder = Weights::new(vae.path());
    for (name, weight) in vae.iter().filter(|(name, _)| own(name)) {
        encoder.insert(name, weight.clone())?;
    }
    for (name, dtype) in vae.skipped().filter(|(name, _)| own(name)) {
        encoder.skip(name, dtype)?;
    }
    Ok(encoder)
}

impl VaeConfig {
    /// Names and shapes of the encoder's tensors.
    pub fn encoder_tensors(&self) -> TensorTable {
        let scope = Scope::recording();
        // The graph is thrown away, so whether its sizes fit together is a question for those who run it.
        let _ = vae_encoder(self, &scope, self.scale_factor(), self.scale_factor());
        scope.declared()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::published;

    #[test]
    fn moments_of_an_eighth() {
        let config = published::vae();
        let graph = vae_encoder(&config, &Scope::recording(), 64, 88).unwrap();
        let (name, id) = &graph.outputs[0];
        assert_eq!((name.as_str(), graph.node(*id).shape.as_slice()), ("moments", &[1, 8, 11, 8][..]));
    }
}
