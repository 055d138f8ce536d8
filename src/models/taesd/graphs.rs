//! Both halves of TAESD as graphs.

use super::config::{TaesdConfig, TaesdSide};
use crate::error::Result;
use crate::graph::{Builder, Graph, NodeId};
use crate::weights::{Scope, TensorTable};

/// The bound of the latents that the decoder sees.
const LATENT_BOUND: f32 = 3.0;

/// The layers of a half, numbered as diffusers' `Sequential` has them.
struct Layers<'a> {
    b: &'a mut Builder,
    scope: Scope,
    next: usize,
}

impl Layers<'_> {
    fn scope(&mut self) -> Scope {
        self.next += 1;
        self.scope.pp(self.next - 1)
    }

    fn convolution(&mut self, x: NodeId, outputs: usize) -> NodeId {
        let scope = self.scope();
        self.b.conv2d(x, &scope, outputs, 3, 1)
    }

    /// Three convolutions beside the input.
    fn block(&mut self, x: NodeId, channels: usize) -> NodeId {
        let scope = self.scope().pp("conv");
        let mut h = x;
        for i in [0, 2, 4] {
            if i > 0 {
                h = self.b.relu(h);
            }
            h = self.b.conv2d(h, &scope.pp(i), channels, 3, 1);
        }
        let sum = self.b.add(x, h);
        self.b.relu(sum)
    }
}

/// Builds a half for one image of `height` by `width` latents.
///
/// The decoder takes `latents` `[1, h, w, L]` as the denoise loop leaves them and gives `image` `[1, H, W, 3]`, about -1..1; the encoder takes
/// `image`, values -1..1, and gives `latents`, before the scaling factor.
///
/// # Errors
/// [`crate::Error::Graph`] where the sizes contradict one another; missing tensors are noted in the scope.
pub fn taesd(config: &TaesdConfig, scope: &Scope, height: usize, width: usize) -> Result<Graph> {
    let factor = config.scale_factor();
    match config.side {
        TaesdSide::Encoder => encoder(config, scope, height * factor, width * factor),
        TaesdSide::Decoder => decoder(config, scope, height, width),
    }
}

fn decoder(config: &TaesdConfig, scope: &Scope, height: usize, width: usize) -> Result<Graph> {
    let mut b = Builder::new();
    let channels = config.channels;
    let latents = b.input("latents", &[1, height, width, config.latent_channels]);
    let x = match config.scaling_factor {
        1.0 => latents,
        factor => b.scale_shift(latents, 1.0 / factor, 0.0),
    };
    let x = b.soft_clamp(x, LATENT_BOUND);
    let mut layers = Layers { b: &mut b, scope: scope.pp("decoder.layers"), next: 0 };
    let x = layers.convolution(x, channels);
    let mut x = layers.b.relu(x);
    layers.next += 1;
    for (level, &blocks) in config.num_blocks.iter().enumerate() {
        if level > 0 {
            let (h, w) = (layers.b.shape(x)[1] * 2, layers.b.shape(x)[2] * 2);
            layers.next += 1;
            x = layers.b.upsample(x, h, w);
            let scope = layers.scope();
            x = layers.b.conv2d_no_bias(x, &scope, channels, 3, 1);
        }
        for _ in 0..blocks {
            x = layers.block(x, channels);
        }
    }
    let x = layers.convolution(x, 3);
    let x = b.scale_shift(x, 2.0, -1.0);
    b.output("image", x);
    b.finish()
}

/// The sides are the image's.
fn encoder(config: &TaesdConfig, scope: &Scope, height: usize, width: usize) -> Result<Graph> {
    let mut b = Builder::new();
    let channels = config.channels;
    let image = b.input("image", &[1, height, width, 3]);
    let x = b.scale_shift(image, 0.5, 0.5);
    let mut layers = Layers { b: &mut b, scope: scope.pp("encoder.layers"), next: 0 };
    let mut x = layers.convolution(x, channels);
    for (level, &blocks) in config.num_blocks.iter().enumerate() {
        if level > 0 {
            let scope = layers.scope();
            x = layers.b.conv2d_no_bias(x, &scope, channels, 3, 2);
        }
        for _ in 0..blocks {
            x = layers.block(x, channels);
        }
    }
    let x = layers.convolution(x, config.latent_channels);
    b.output("latents", x);
    b.finish()
}

impl TaesdConfig {
    /// Names and shapes of the tensors.
    pub fn tensors(&self) -> TensorTable {
        let scope = Scope::recording();
        // The graph is thrown away, so whether its sizes fit together is a question for those who run it.
        let _ = taesd(self, &scope, 1, 1);
        scope.declared()
    }
}
