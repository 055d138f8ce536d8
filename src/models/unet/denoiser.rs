//! The SDXL UNet with decoupled cross-attention.

use super::config::UnetConfig;
use crate::compat::Compat;
use crate::error::Result;
use crate::graph::Activation;
use crate::graph::{Builder, ChannelSlice, Graph, KvBranch, NodeId};
use crate::weights::Scope;
use std::collections::HashMap;

/// One cross-attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossLayer {
    /// Dotted path of its `attn2`.
    pub path: String,
    /// Its width.
    pub width: usize,
    /// Where it stands.
    pub block: BlockId,
}

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

impl UnetConfig {
    /// Every cross-attention in the order in which an adapter's file numbers them: down, up, then mid.
    pub fn cross_layers(&self) -> Vec<CrossLayer> {
        let mut layers = Vec::new();
        let mut push = |place: BlockId, level: usize| {
            let scope = match place {
                BlockId::Down { block, attention } => format!("down_blocks.{block}.attentions.{attention}"),
                BlockId::Up { block, attention } => format!("up_blocks.{block}.attentions.{attention}"),
                BlockId::Mid => "mid_block.attentions.0".into(),
            };
            for k in 0..self.transformer_layers_per_block[level] {
                let path = format!("{scope}.transformer_blocks.{k}.attn2");
                layers.push(CrossLayer { path, width: self.block_out_channels[level], block: place });
            }
        };
        let levels = self.block_out_channels.len();
        for block in 0..levels {
            (0..self.layers_per_block).for_each(|attention| push(BlockId::Down { block, attention }, block));
        }
        for block in 0..levels {
            (0..=self.layers_per_block)
                .for_each(|attention| push(BlockId::Up { block, attention }, levels - 1 - block));
        }
        if let Some(deepest) = levels.checked_sub(1) {
            push(BlockId::Mid, deepest);
        }
        layers
    }

    /// Widths of the cross-attentions in the order in which an IP-Adapter numbers them: down, up, middle.
    pub fn cross_attention_widths(&self) -> Vec<usize> {
        self.cross_layers().into_iter().map(|layer| layer.width).collect()
    }

    /// Dotted path and width of every resnet, in the order of the denoise program's inputs.
    pub fn resnets(&self) -> Vec<(String, usize)> {
        let levels = self.block_out_channels.len();
        let mut resnets = Vec::new();
        for (i, &c) in self.block_out_channels.iter().enumerate() {
            (0..self.layers_per_block).for_each(|j| resnets.push((format!("down_blocks.{i}.resnets.{j}"), c)));
        }
        let deepest = self.block_out_channels[levels - 1];
        (0..2).for_each(|j| resnets.push((format!("mid_block.resnets.{j}"), deepest)));
        for (i, &c) in self.block_out_channels.iter().rev().enumerate() {
            (0..=self.layers_per_block).for_each(|j| resnets.push((format!("up_blocks.{i}.resnets.{j}"), c)));
        }
        resnets
    }
}

/// The sizes for which a UNet's programs are built.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UnetShape {
    /// Rows: 2 with guidance (positive, negative), else 1.
    pub batch: usize,
    /// Height of the latents.
    pub height: usize,
    /// Width of the latents.
    pub width: usize,
    /// Text tokens.
    pub tokens: usize,
    /// Image tokens of each adapter.
    pub image_tokens: Vec<usize>,
}

/// Builds the denoiser: one evaluation of the UNet.
///
/// Inputs: `sample` `[B, h, w, 4]`; `tokens` `[B]`, how many text tokens count; `scales` `[L, A, B]`, the weight of adapter a
/// in cross-attention l (order of [`UnetConfig::cross_layers`]); for each adapter `[B]`, how many of its image tokens count; then what [`super::conditioning`] makes: a time embedding
/// `[B, C]` for each resnet, keys and values of the text `[B, T, 2C]` for each cross-attention, and those of each adapter
/// `[B, N, 2C]`. Output: `model_output` `[B, h, w, 4]`.
///
/// # Errors
/// Where tensors are missing or do not have the configured shapes.
pub fn unet(config: &UnetConfig, scope: &Scope, shape: &UnetShape, compat: &Compat) -> Result<Graph> {
    let mut b = Builder::new();
    let sample = b.input("sample", &[shape.batch, shape.height, shape.width, config.in_channels]);
    let tokens = b.input("tokens", &[shape.batch]);
    let layers = config.cross_layers();
    let adapters = shape.image_tokens.len();
    let scales = b.input("scales", &[layers.len(), adapters, shape.batch]);
    let counts: Vec<NodeId> = (0..adapters).map(|a| b.input(format!("image_tokens.{a}"), &[shape.batch])).collect();
    let mut time = HashMap::new();
    for (path, width) in config.resnets() {
        let input = b.input(format!("time.{path}"), &[shape.batch, width]);
        time.insert(path, input);
    }
    let mut text = HashMap::new();
    let mut index = HashMap::new();
    for (i, layer) in layers.iter().enumerate() {
        text.insert(layer.path.clone(), b.input(layer.path.clone(), &[shape.batch, shape.tokens, 2 * layer.width]));
        index.insert(layer.path.clone(), i);
    }
    let mut images: HashMap<String, Vec<NodeId>> = HashMap::new();
    for (a, &count) in shape.image_tokens.iter().enumerate() {
        for layer in &layers {
            let input = b.input(format!("{}.ip{a}", layer.path), &[shape.batch, count, 2 * layer.width]);
            images.entry(layer.path.clone()).or_default().push(input);
        }
    }
    let mut net = Net { b, config, compat, batch: shape.batch, tokens, scales, counts, time, text, index, images };
    let x = net.forward(sample, scope);
    let mut b = net.b;
    b.output("model_output", x);
    b.finish()
}

struct Net<'a> {
    b: Builder,
    config: &'a UnetConfig,
    compat: &'a Compat,
    batch: usize,
    tokens: NodeId,
    scales: NodeId,
    counts: Vec<NodeId>,
    time: HashMap<String, NodeId>,
    text: HashMap<String, NodeId>,
    index: HashMap<String, usize>,
    images: HashMap<String, Vec<NodeId>>,
}

impl Net<'_> {
    fn forward(&mut self, sample: NodeId, root: &Scope) -> NodeId {
        let config = self.config;
        let levels = config.block_out_channels.len();
        let mut x = self.b.conv2d(sample, &root.pp("conv_in"), config.block_out_channels[0], 3, 1);
        let mut skips = vec![x];
        for (i, &channels) in config.block_out_channels.iter().enumerate() {
            let block = root.pp("down_blocks").pp(i);
            for j in 0..config.layers_per_block {
                x = self.resnet(x, &block.pp("resnets").pp(j), channels);
                x = self.transformer(x, &block.pp("attentions").pp(j), i);
                skips.push(x);
            }
            if i + 1 < levels {
                x = self.b.conv2d(x, &block.pp("downsamplers.0.conv"), channels, 3, 2);
                skips.push(x);
            }
        }
        let mid = root.pp("mid_block");
        let deepest = config.block_out_channels[levels - 1];
        x = self.resnet(x, &mid.pp("resnets.0"), deepest);
        x = self.transformer(x, &mid.pp("attentions.0"), levels - 1);
        x = self.resnet(x, &mid.pp("resnets.1"), deepest);
        for (i, &channels) in config.block_out_channels.iter().rev().enumerate() {
            let block = root.pp("up_blocks").pp(i);
            for j in 0..=config.layers_per_block {
                if let Some(skip) = skips.pop() {
                    x = self.b.concat(x, skip);
                }
                x = self.resnet(x, &block.pp("resnets").pp(j), channels);
                x = self.transformer(x, &block.pp("attentions").pp(j), levels - 1 - i);
            }
            if i + 1 < levels {
                // To the size of the skip connection that comes next: twice as large, or one less where that was odd.
                let next = skips.last().map_or([0, 0], |s| [self.b.shape(*s)[1], self.b.shape(*s)[2]]);
                x = self.b.upsample(x, next[0], next[1]);
                x = self.b.conv2d(x, &block.pp("upsamplers.0.conv"), channels, 3, 1);
            }
        }
        x = self.b.group_norm(x, &root.pp("conv_norm_out"), config.norm_num_groups, config.norm_eps);
        x = self.b.activation(x, Activation::Silu);
        self.b.conv2d(x, &root.pp("conv_out"), config.out_channels, 3, 1)
    }

    fn resnet(&mut self, x: NodeId, scope: &Scope, channels: usize) -> NodeId {
        let (groups, eps) = (self.config.norm_num_groups, self.config.norm_eps);
        let b = &mut self.b;
        let h = b.group_norm(x, &scope.pp("norm1"), groups, eps);
        let h = b.activation(h, Activation::Silu);
        let h = b.conv2d(h, &scope.pp("conv1"), channels, 3, 1);
        let h = match self.time.get(scope.prefix()) {
            Some(&rows) => b.broadcast_add(h, rows),
            None => h,
        };
        let h = b.group_norm(h, &scope.pp("norm2"), groups, eps);
        let h = b.activation(h, Activation::Silu);
        let h = b.conv2d(h, &scope.pp("conv2"), channels, 3, 1);
        let straight = *b.shape(x).last().unwrap_or(&0) == channels;
        let x = if straight { x } else { b.linear(x, &scope.pp("conv_shortcut"), channels) };
        b.add(x, h)
    }

    /// The transformer of a level, none where the level has no cross-attention.
    fn transformer(&mut self, x: NodeId, scope: &Scope, level: usize) -> NodeId {
        if self.config.transformer_layers_per_block[level] == 0 {
            return x;
        }
        let width = self.config.block_out_channels[level];
        let eps = self.compat.transformer_norm_eps;
        let h = self.b.group_norm(x, &scope.pp("norm"), self.config.norm_num_groups, eps);
        let mut h = self.b.linear(h, &scope.pp("proj_in"), width);
        for k in 0..self.config.transformer_layers_per_block[level] {
            h = self.block(h, &scope.pp("transformer_blocks").pp(k), level);
        }
        let h = self.b.linear(h, &scope.pp("proj_out"), width);
        self.b.add(x, h)
    }

    fn block(&mut self, x: NodeId, scope: &Scope, level: usize) -> NodeId {
        const EPS: f32 = 1e-5;
        let (width, heads) = (self.config.block_out_channels[level], self.config.num_attention_heads[level]);
        let attn = scope.pp("attn1");
        let h = self.b.layer_norm(x, &scope.pp("norm1"), EPS);
        let q = self.b.linear(h, &attn.pp("to_q"), width);
        let k = self.b.linear(h, &attn.pp("to_k"), width);
        let v = self.b.linear(h, &attn.pp("to_v"), width);
        let h = self.b.attention(q, k, v, heads, false);
        let h = self.b.linear(h, &attn.pp("to_out.0"), width);
        let x = self.b.add(x, h);
        let attn = scope.pp("attn2");
        let h = self.b.layer_norm(x, &scope.pp("norm2"), EPS);
        let q = self.b.linear(h, &attn.pp("to_q"), width);
        let h = self.cross_attention(q, &scope.path("attn2"), heads, width);
        let h = self.b.linear(h, &attn.pp("to_out.0"), width);
        let x = self.b.add(x, h);
        let h = self.b.layer_norm(x, &scope.pp("norm3"), EPS);
        let h = self.b.linear(h, &scope.pp("ff.net.0.proj"), 8 * width);
        let h = self.b.geglu(h);
        let h = self.b.linear(h, &scope.pp("ff.net.2"), width);
        self.b.add(x, h)
    }

    /// Text and image strands of one query.
    fn cross_attention(&mut self, q: NodeId, path: &str, heads: usize, width: usize) -> NodeId {
        let Some(&text) = self.text.get(path) else { return q };
        let images = self.images.get(path).cloned().unwrap_or_default();
        let mut operands = vec![q, self.tokens, self.scales, text];
        operands.extend(&images);
        operands.extend(self.counts.iter().take(images.len()));
        let columns = |operand| (ChannelSlice { operand, start: 0 }, ChannelSlice { operand, start: width });
        let (keys, values) = columns(3);
        let mut strands = vec![KvBranch { keys, values, length: Some(1), scale: None }];
        for a in 0..images.len() {
            let (keys, values) = columns(4 + a);
            let start = (self.index[path] * images.len() + a) * self.batch;
            strands.push(KvBranch { keys, values, length: Some(4 + images.len() + a), scale: Some((2, start)) });
        }
        self.b.decoupled_attention(&operands, heads, false, strands)
    }
}
