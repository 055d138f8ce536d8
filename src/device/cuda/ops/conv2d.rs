//! The choice between the ways to compute a convolution.

use super::gemm::channels;
use super::lowering::Lowering;
use super::pointwise::upsample;
use crate::error::Result;
use crate::graph::{Conv2dParams, Graph, ImplicitGemm, Node};

/// Inputs times taps that the kernel for few input channels takes at most.
pub(super) const FEW_IN: usize = 144;
/// Output channels that the kernel for few of them takes at most.
const FEW_OUT: usize = 8;

/// All that the choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Conv2dDesc {
    /// The geometry.
    pub params: Conv2dParams,
    /// Sources whose channels are joined: 1 or 2.
    pub sources: usize,
    /// Input channels of all sources.
    pub channels: usize,
    /// Output channels.
    pub n: usize,
    /// Whether the epilogue is the bias alone.
    pub bare: bool,
}

/// A way to compute a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conv2dConfig {
    /// As a product of matrices, which a kernel of one pixel is.
    Gemm,
    /// Images cut into patches, then a product of matrices.
    Patches,
    /// `convolution`.
    Implicit,
    /// `convolution_few_in`, followed by the rest of the epilogue.
    FewIn,
    /// `convolution_few_out`.
    FewOut,
}

/// Chooses how a convolution is computed; `None` where no kernel takes it.
pub fn choose(desc: &Conv2dDesc) -> Option<Conv2dConfig> {
    let Conv2dDesc { params: p, sources, channels, n, bare } = *desc;
    let whole_units = channels.is_multiple_of(8);
    if p.kernel == 1 && p.stride == 1 && p.padding == [0; 2] && p.resize.is_none() && whole_units {
        return Some(Conv2dConfig::Gemm);
    }
    // Each tap meets each pixel at most once, and the rows of a patch's matrix would not be whole units.
    let apart = p.kernel == p.stride && p.kernel > 1 && p.padding == [0; 2] && p.resize.is_none();
    if apart && sources == 1 && !whole_units {
        return Some(Conv2dConfig::Patches);
    }
    if whole_units {
        let few = n <= FEW_OUT && bare && sources == 1;
        return Some(if few { Conv2dConfig::FewOut } else { Conv2dConfig::Implicit });
    }
    (p.kernel * p.kernel * channels <= FEW_IN).then_some(Conv2dConfig::FewIn)
}

/// The choice for a node; `None` where no kernel takes it, or where it is no convolution.
pub(super) fn config_of(graph: &Graph, node: &Node) -> Option<Conv2dConfig> {
    let gemm = node.op.implicit_gemm()?;
    choose(&Conv2dDesc {
        params: gemm.conv?,
        sources: gemm.sources,
        channels: channels(graph, node, gemm),
        n: node.channels(),
        bare: gemm.is_bare(),
    })
}

/// The sources of a convolution and their height and width; enlarged first where the kernel cannot do that itself.
pub(super) fn images(
    l: &mut Lowering<'_>,
    node: &Node,
    gemm: ImplicitGemm<'_>,
    conv: &Conv2dParams,
) -> Result<([u64; 2], [usize; 2])> {
    let shape = &l.graph.node(node.inputs[0]).shape;
    let (images, height, width) = (shape[0], shape[1], shape[2]);
    let mut x = [0; 2];
    for (s, place) in x.iter_mut().enumerate().take(gemm.sources) {
        *place = l.place(node.inputs[s]);
        if let Some((to_height, to_width)) = conv.resize {
            let c = l.width(node.inputs[s]);
            let to = l.scratch(images * to_height * to_width * c * l.size());
            upsample(l, *place, [images, height, width, c], [to_height, to_width], to)?;
            *place = to;
        }
    }
    let (height, width) = conv.resize.unwrap_or((height, width));
    Ok((x, [height, width]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolutions_of_sdxl() {
        let conv = |kernel, stride, padding| Conv2dParams { kernel, stride, padding: [padding; 2], resize: None };
        let chosen = |params, sources, channels, n, bare| choose(&Conv2dDesc { params, sources, channels, n, bare });
        // The UNet's: first, of a block, of a shortcut, last; CLIP's patches; the VAE's last.
        assert_eq!(chosen(conv(3, 1, 1), 1, 4, 320, true), Some(Conv2dConfig::FewIn));
        assert_eq!(chosen(conv(3, 1, 1), 2, 960, 320, false), Some(Conv2dConfig::Implicit));
        assert_eq!(chosen(conv(1, 1, 0), 2, 960, 320, true), Some(Conv2dConfig::Gemm));
        assert_eq!(chosen(conv(3, 1, 1), 1, 320, 4, true), Some(Conv2dConfig::FewOut));
        assert_eq!(chosen(conv(3, 1, 1), 1, 320, 4, false), Some(Conv2dConfig::Implicit));
        assert_eq!(chosen(conv(14, 14, 0), 1, 3, 1280, true), Some(Conv2dConfig::Patches));
        assert_eq!(chosen(conv(3, 1, 1), 1, 128, 3, true), Some(Conv2dConfig::FewOut));
        // Too many taps of uneven channels.
        assert_eq!(chosen(conv(3, 1, 1), 1, 20, 320, true), None);
    }
}
