//! The layers that keep their type where a UNet is quantized.

/// Layers by the end of their path: the first and the last one, which see the latents, the first downsampling convolution, the shortcuts around
/// resnets, and the last block's last convolution. They are the ones that are left out in quantized SDXL that passed MLPerf's limits of FID and
/// CLIP score; `time_embedding.linear_1`, which is another, runs once a request and is never quantized here.
const KEPT: [&str; 5] =
    ["conv_in", "conv_out", "down_blocks.0.downsamplers.0.conv", "conv_shortcut", "up_blocks.2.resnets.2.conv2"];

/// Whether the weights of the layer at `path` may be quantized.
pub(super) fn quantizable(path: &str) -> bool {
    !KEPT.iter().any(|kept| path.strip_suffix(kept).is_some_and(|before| before.is_empty() || before.ends_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::Compat;
    use crate::graph::Op;
    use crate::models::published;
    use crate::models::unet::{ConditioningPart, UnetShape, conditioning, denoiser};
    use crate::weights::Scope;

    #[test]
    fn kept_layers() {
        for path in ["conv_in", "up_blocks.1.resnets.0.conv_shortcut", "down_blocks.0.downsamplers.0.conv"] {
            assert!(!quantizable(path), "{path}");
        }
        for path in [
            "down_blocks.1.downsamplers.0.conv",
            "up_blocks.2.resnets.2.conv1",
            "xconv_in",
            "mid_block.resnets.0.conv2",
        ] {
            assert!(quantizable(path), "{path}");
        }
    }

    /// Of SDXL 15 layers keep their type: conv_in and conv_out, one downsampling convolution, eleven shortcuts, one convolution; and everything that runs
    /// once a request.
    #[test]
    fn published_layers() {
        let shape =
            UnetShape { batch: 2, height: 16, width: 16, tokens: 77, branches: Vec::new(), attribution: Vec::new() };
        let config = published::unet();
        let graph = denoiser(&config, &Scope::recording(), &shape, &Compat::diffusers()).unwrap();
        let parts = |op: &Op| op.implicit_gemm().map(|gemm| gemm.parts.to_vec()).unwrap_or_default();
        let all: Vec<_> = graph.nodes.iter().flat_map(|node| parts(&node.op)).collect();
        let kept: Vec<_> = all.iter().filter(|part| !part.quantizable).map(|part| part.weight.name()).collect();
        let shortcuts = kept.iter().filter(|name| name.contains("conv_shortcut")).count();
        assert_eq!((kept.len(), shortcuts), (15, 11), "{kept:?}");
        let graph = conditioning(&config, &Scope::recording(), &shape, 4, &[], ConditioningPart::ALL).unwrap();
        let mut parts = graph.nodes.iter().flat_map(|node| parts(&node.op)).peekable();
        assert!(parts.peek().is_some() && parts.all(|part| !part.quantizable));
    }
}
