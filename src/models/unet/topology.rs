//! The UNet's layers in the order of evaluation: the one walk that the denoiser, its inputs, the conditioning and the
//! numbering of an adapter's matrices follow.

use super::config::UnetConfig;

/// A transformer of the UNet: the unit for which an adapter's scale can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockId {
    /// `down_blocks.{block}.attentions.{attention}`.
    Down {
        /// The block.
        block: usize,
        /// The transformer within it.
        attention: usize,
    },
    /// `mid_block.attentions.0`.
    Mid,
    /// `up_blocks.{block}.attentions.{attention}`.
    Up {
        /// The block.
        block: usize,
        /// The transformer within it.
        attention: usize,
    },
}

impl BlockId {
    /// The transformer's dotted path.
    pub fn path(self) -> String {
        match self {
            Self::Down { block, attention } => format!("down_blocks.{block}.attentions.{attention}"),
            Self::Mid => "mid_block.attentions.0".to_owned(),
            Self::Up { block, attention } => format!("up_blocks.{block}.attentions.{attention}"),
        }
    }
}

/// A resnet that adds the time embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resnet {
    /// Its dotted path.
    pub path: String,
    /// Channels of its result.
    pub channels: usize,
}

/// A transformer over the pixels of a feature map (diffusers' `Transformer2DModel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transformer {
    /// Its position in the UNet.
    pub block: BlockId,
    /// Its channels.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Its `transformer_blocks`; 0 where the level has no cross-attention and so no transformer.
    pub num_layers: usize,
}

/// One cross-attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossLayer {
    /// Dotted path of its `attn2`.
    pub path: String,
    /// Its channels.
    pub width: usize,
    /// The transformer that it belongs to.
    pub block: BlockId,
}

/// A step of the walk from the result of `conv_in` to the operand of `conv_norm_out`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnetLayer {
    /// Keeps the feature map for a skip connection.
    SaveSkip,
    /// Joins the channels of the skip connection that was kept last.
    ConcatSkip,
    /// A resnet.
    Resnet(Resnet),
    /// A transformer.
    Transformer(Transformer),
    /// A convolution of stride 2.
    Downsample {
        /// Its dotted path.
        path: String,
        /// Its channels.
        channels: usize,
    },
    /// Nearest neighbour to the size of the skip connection that comes next, then a convolution.
    Upsample {
        /// The convolution's dotted path.
        path: String,
        /// Its channels.
        channels: usize,
    },
}

impl UnetConfig {
    /// Every layer between `conv_in` and `conv_norm_out`, in the order of evaluation.
    pub fn layers(&self) -> Vec<UnetLayer> {
        let resnet = |path: String, channels: usize| UnetLayer::Resnet(Resnet { path, channels });
        let levels = self.block_out_channels.len();
        let mut layers = vec![UnetLayer::SaveSkip];
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            for i in 0..self.layers_per_block {
                layers.push(resnet(format!("down_blocks.{level}.resnets.{i}"), channels));
                layers.push(self.transformer(BlockId::Down { block: level, attention: i }, level));
                layers.push(UnetLayer::SaveSkip);
            }
            if level + 1 < levels {
                layers
                    .push(UnetLayer::Downsample { path: format!("down_blocks.{level}.downsamplers.0.conv"), channels });
                layers.push(UnetLayer::SaveSkip);
            }
        }
        if let Some(&channels) = self.block_out_channels.last() {
            for i in 0..self.pruned.as_ref().map_or(2, |pruned| pruned.mid_resnets) {
                if i == 1 {
                    layers.push(self.transformer(BlockId::Mid, levels - 1));
                }
                layers.push(resnet(format!("mid_block.resnets.{i}"), channels));
            }
        }
        for (block, (level, &channels)) in self.block_out_channels.iter().enumerate().rev().enumerate() {
            for i in 0..=self.layers_per_block {
                layers.push(UnetLayer::ConcatSkip);
                layers.push(resnet(format!("up_blocks.{block}.resnets.{i}"), channels));
                layers.push(self.transformer(BlockId::Up { block, attention: i }, level));
            }
            if level > 0 {
                layers.push(UnetLayer::Upsample { path: format!("up_blocks.{block}.upsamplers.0.conv"), channels });
            }
        }
        layers
    }

    fn transformer(&self, block: BlockId, level: usize) -> UnetLayer {
        UnetLayer::Transformer(Transformer {
            block,
            width: self.block_out_channels[level],
            heads: self.num_attention_heads[level],
            num_layers: match &self.pruned {
                Some(pruned) => match block {
                    BlockId::Down { block, attention } => pruned.down[block][attention],
                    BlockId::Up { block, attention } => pruned.up[block][attention],
                    BlockId::Mid => pruned.mid_layers,
                },
                None => self.transformer_layers_per_block[level],
            },
        })
    }

    /// Every transformer, in the order of evaluation; those without layers too.
    pub fn transformers(&self) -> Vec<Transformer> {
        let transformer = |layer| if let UnetLayer::Transformer(t) = layer { Some(t) } else { None };
        self.layers().into_iter().filter_map(transformer).collect()
    }

    /// Every resnet, in the order of evaluation.
    pub fn resnets(&self) -> Vec<Resnet> {
        let resnet = |layer| if let UnetLayer::Resnet(resnet) = layer { Some(resnet) } else { None };
        self.layers().into_iter().filter_map(resnet).collect()
    }

    /// Every cross-attention in the order in which an IP-Adapter's file numbers them: down, up, then mid.
    pub fn cross_layers(&self) -> Vec<CrossLayer> {
        let mut transformers = self.transformers();
        transformers.sort_by_key(|t| t.block == BlockId::Mid);
        let cross_layers = |t: Transformer| {
            (0..t.num_layers).map(move |k| CrossLayer {
                path: format!("{}.transformer_blocks.{k}.attn2", t.block.path()),
                width: t.width,
                block: t.block,
            })
        };
        transformers.into_iter().flat_map(cross_layers).collect()
    }

    /// Widths of the cross-attentions in the order of [`Self::cross_layers`].
    pub fn cross_attention_widths(&self) -> Vec<usize> {
        self.cross_layers().into_iter().map(|layer| layer.width).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::published;

    #[test]
    fn balanced_skips_and_adapter_order() {
        let config = published::unet();
        let layers = config.layers();
        let count = |kind: &UnetLayer| layers.iter().filter(|l| *l == kind).count();
        assert_eq!((count(&UnetLayer::SaveSkip), count(&UnetLayer::ConcatSkip)), (9, 9));
        assert_eq!((config.resnets().len(), config.cross_layers().len()), (17, 70));
        let last = &config.cross_layers()[60..];
        assert!(last.iter().all(|layer| layer.block == BlockId::Mid && layer.width == 1280));
        assert_eq!(last[9].path, "mid_block.attentions.0.transformer_blocks.9.attn2");
    }
}
