//! The denoiser's inputs, declared once by name: what the denoiser reads, the conditioning makes and a request binds.

use super::config::UnetConfig;
use super::topology::BlockId;
use std::collections::BTreeSet;
use std::ops::Range;

/// Image tokens that share a softmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BranchShape {
    /// The adapter, among those in use.
    pub adapter: usize,
    /// Tokens.
    pub tokens: usize,
    /// Whether there is a mask.
    pub masked: bool,
}

impl BranchShape {
    /// A branch without a mask for each adapter, of that many tokens.
    pub fn of_adapters(tokens: &[usize]) -> Vec<Self> {
        let branch = |(adapter, &tokens)| Self { adapter, tokens, masked: false };
        tokens.iter().enumerate().map(branch).collect()
    }
}

/// The sizes for which a UNet's graphs are built.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UnetShape {
    /// Rows: for each image 2 with guidance (positive, negative), else 1.
    pub batch: usize,
    /// Height of the latents.
    pub height: usize,
    /// Width of the latents.
    pub width: usize,
    /// Text tokens.
    pub tokens: usize,
    /// The image branches of each cross-attention, adapter by adapter.
    pub branches: Vec<BranchShape>,
    /// For each branch the number of its references, where their parts in each cross-attention are outputs, too; else nothing.
    pub attribution: Vec<usize>,
}

impl UnetShape {
    /// Height and width of a transformer's feature map, whose pixels are its queries.
    pub fn feature_map(&self, config: &UnetConfig, block: BlockId) -> [usize; 2] {
        let last = config.block_out_channels.len().saturating_sub(1);
        let level = match block {
            BlockId::Down { block, .. } => block,
            BlockId::Mid => last,
            BlockId::Up { block, .. } => last.saturating_sub(block),
        };
        [self.height, self.width].map(|side| (0..level).fold(side, |side, _| side.div_ceil(2)))
    }

    /// The numbers of queries for which a masked branch has a mask, ascending.
    pub fn mask_resolutions(&self, config: &UnetConfig) -> BTreeSet<usize> {
        BTreeSet::from_iter(self.cross_attention_queries(config))
    }

    /// The queries of each cross-attention, in the order of [`UnetConfig::cross_layers`].
    pub fn cross_attention_queries(&self, config: &UnetConfig) -> Vec<usize> {
        let queries = |[height, width]: [usize; 2]| height * width;
        config.cross_layers().iter().map(|layer| queries(self.feature_map(config, layer.block))).collect()
    }
}

/// The meaning of one input of the denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InputRole {
    /// The scaled latents, `[B, h, w, C]`: others for every evaluation.
    Sample,
    /// The number of text tokens of each row that count, `[B]`; integers.
    TextTokens,
    /// The number of a branch's image tokens that count, `[B]`; integers.
    ImageTokens {
        /// The branch.
        branch: usize,
    },
    /// The mask of a branch in the cross-attentions of that many queries, `[queries]`.
    Mask {
        /// The branch.
        branch: usize,
        /// The queries.
        queries: usize,
    },
    /// The weight of branch a in cross-attention l, `[L, A, B]`: one for each step.
    Scales,
    /// The projected time embedding of a resnet, `[B, C]`: one for each step.
    TimeEmbedding {
        /// The resnet, in the order of [`UnetConfig::resnets`].
        resnet: usize,
    },
    /// Keys, then values, of the text in a cross-attention, `[B, T, 2C]`.
    TextKeysValues {
        /// The cross-attention, in the order of [`UnetConfig::cross_layers`].
        layer: usize,
    },
    /// Keys, then values, of a branch's image tokens in a cross-attention, `[B, N, 2C]`.
    ImageKeysValues {
        /// The branch.
        branch: usize,
        /// The cross-attention, in the order of [`UnetConfig::cross_layers`].
        layer: usize,
    },
}

impl InputRole {
    /// Whether the values are integers, an input of i32.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::TextTokens | Self::ImageTokens { .. })
    }

    /// Whether the conditioning graph makes the values, under the same name.
    pub fn is_conditioning(self) -> bool {
        matches!(self, Self::TimeEmbedding { .. } | Self::TextKeysValues { .. } | Self::ImageKeysValues { .. })
    }

    /// Whether all rows share the values.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::Mask { .. })
    }

    /// Whether there is a value for each step.
    pub fn varies_by_step(self) -> bool {
        matches!(self, Self::Scales | Self::TimeEmbedding { .. })
    }
}

/// One input of the denoiser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenoiserInput {
    /// Its name in the graph.
    pub name: String,
    /// Its shape, for one evaluation.
    pub shape: Vec<usize>,
    /// Its meaning.
    pub role: InputRole,
}

/// Name of the time embedding's input for the resnet at `path`.
pub(super) fn time_embedding(path: &str) -> String {
    format!("time.{path}")
}

/// Name of the input with keys and values of the text for the cross-attention at `path`.
pub(super) fn text_keys_values(path: &str) -> String {
    path.to_owned()
}

/// Name of the input with keys and values of a branch's image tokens for the cross-attention at `path`.
pub(super) fn image_keys_values(path: &str, branch: usize) -> String {
    format!("{path}.ip{branch}")
}

/// Name of the conditioning graph's output with a branch's image tokens, `[B, N, D]`.
pub fn image_tokens_output(branch: usize) -> String {
    format!("image_tokens.{branch}")
}

/// The denoiser's inputs in the order in which its graph declares them.
///
/// Outputs: `model_output` `[B, h, w, C]`; with [`UnetShape::attribution`] for each cross-attention, in the order of
/// [`UnetConfig::cross_layers`], `attribution.{path}` `[B, T, 1 + R]`: for each query the Euclidean norm of the text branch's result, then
/// of each reference's part in the results of the image branches, scales and masks included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenoiserInterface {
    /// The inputs.
    pub inputs: Vec<DenoiserInput>,
    batch: usize,
    branches: usize,
}

impl DenoiserInterface {
    /// Declares the inputs of a UNet for some sizes.
    pub fn new(config: &UnetConfig, shape: &UnetShape) -> Self {
        let (batch, branches) = (shape.batch, shape.branches.len());
        let layers = config.cross_layers();
        let mut inputs = Vec::new();
        let mut declare = |role, name: String, shape: &[usize]| {
            inputs.push(DenoiserInput { name, shape: shape.to_vec(), role });
        };
        declare(InputRole::Sample, "sample".into(), &[batch, shape.height, shape.width, config.in_channels]);
        declare(InputRole::TextTokens, "tokens".into(), &[batch]);
        for branch in 0..branches {
            declare(InputRole::ImageTokens { branch }, format!("image_tokens.{branch}"), &[batch]);
        }
        let resolutions = shape.mask_resolutions(config);
        for branch in (0..branches).filter(|&branch| shape.branches[branch].masked) {
            for &queries in &resolutions {
                declare(InputRole::Mask { branch, queries }, format!("mask.{branch}.{queries}"), &[queries]);
            }
        }
        // From here to the last time embedding every step has values of its own.
        declare(InputRole::Scales, "scales".into(), &[layers.len(), branches, batch]);
        for (i, resnet) in config.resnets().iter().enumerate() {
            let role = InputRole::TimeEmbedding { resnet: i };
            declare(role, time_embedding(&resnet.path), &[batch, resnet.channels]);
        }
        for (i, layer) in layers.iter().enumerate() {
            let role = InputRole::TextKeysValues { layer: i };
            declare(role, text_keys_values(&layer.path), &[batch, shape.tokens, 2 * layer.width]);
        }
        for (branch, &BranchShape { tokens, .. }) in shape.branches.iter().enumerate() {
            for (i, layer) in layers.iter().enumerate() {
                let role = InputRole::ImageKeysValues { branch, layer: i };
                declare(role, image_keys_values(&layer.path, branch), &[batch, tokens, 2 * layer.width]);
            }
        }
        Self { inputs, batch, branches }
    }

    /// The inputs that the conditioning graph makes, in its order.
    pub fn conditioning(&self) -> impl Iterator<Item = &DenoiserInput> {
        self.inputs.iter().filter(|input| input.role.is_conditioning())
    }

    /// The positions of the inputs that have a value for each step.
    pub fn varying(&self) -> Range<usize> {
        let varies = |input: &DenoiserInput| input.role.varies_by_step();
        let start = self.inputs.iter().position(varies).unwrap_or(self.inputs.len());
        start..start + self.inputs[start..].iter().take_while(|input| varies(input)).count()
    }

    /// The position in a step's `scales` of the first row's weight of a branch in a cross-attention.
    pub fn scale_offset(&self, layer: usize, branch: usize) -> usize {
        (layer * self.branches + branch) * self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::published;

    #[test]
    fn inputs_of_sdxl_with_two_adapters() {
        let shape = UnetShape {
            batch: 2,
            height: 8,
            width: 16,
            tokens: 77,
            branches: BranchShape::of_adapters(&[4, 8]),
            attribution: Vec::new(),
        };
        let interface = DenoiserInterface::new(&published::unet(), &shape);
        let names: Vec<&str> = interface.inputs.iter().map(|input| input.name.as_str()).collect();
        assert_eq!(names[..5], ["sample", "tokens", "image_tokens.0", "image_tokens.1", "scales"]);
        assert_eq!(interface.varying(), 4..22);
        assert_eq!((names[5], names[21]), ("time.down_blocks.0.resnets.0", "time.up_blocks.2.resnets.2"));
        assert_eq!(names[22], "down_blocks.1.attentions.0.transformer_blocks.0.attn2");
        let last = interface.inputs.last().unwrap();
        assert_eq!(last.name, "mid_block.attentions.0.transformer_blocks.9.attn2.ip1");
        assert_eq!((&last.shape[..], interface.inputs.len()), (&[2, 8, 2560][..], 22 + 3 * 70));
        assert_eq!(interface.conditioning().next().map(|input| input.name.as_str()), Some(names[5]));
        let integers = interface.inputs.iter().filter(|input| input.role.is_integer());
        assert_eq!(integers.map(|input| input.name.as_str()).collect::<Vec<_>>(), names[1..4]);
        assert_eq!((interface.conditioning().count(), interface.scale_offset(3, 1)), (17 + 3 * 70, 14));
    }

    /// Two masks of odd sizes: one input for each number of queries, 8 x 5 above and 4 x 3 below.
    #[test]
    fn inputs_of_masks() {
        let branch = |masked| BranchShape { adapter: 0, tokens: 4, masked };
        let branches = vec![branch(true), branch(false), branch(true)];
        let shape = UnetShape { batch: 1, height: 15, width: 9, tokens: 77, branches, attribution: Vec::new() };
        let interface = DenoiserInterface::new(&published::unet(), &shape);
        let masks = interface.inputs.iter().filter(|input| matches!(input.role, InputRole::Mask { .. }));
        let masks: Vec<_> = masks.map(|input| (input.name.as_str(), input.shape[0])).collect();
        assert_eq!(masks, [("mask.0.12", 12), ("mask.0.40", 40), ("mask.2.12", 12), ("mask.2.40", 40)]);
    }
}
