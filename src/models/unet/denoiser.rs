//! The denoiser: one evaluation of the UNet.

use super::config::UnetConfig;
use super::interface::{self, BranchShape, DenoiserInterface, InputRole, UnetShape};
use super::quantization::quantizable;
use super::topology::{Resnet, Transformer, UnetLayer};
use crate::compat::Compat;
use crate::error::{Error, Result};
use crate::graph::{Activation, Builder, ChannelSlice, Graph, KvBranch, NodeId};
use crate::weights::{Scope, Weight};
use std::collections::HashMap;

/// Layer norms of the transformers.
const EPS: f32 = 1e-5;

/// Builds the denoiser.
///
/// Inputs and outputs: those of [`DenoiserInterface`], in order.
///
/// # Errors
/// [`crate::Error::Graph`] where the sizes contradict one another; missing tensors are noted in the scope.
pub fn denoiser(config: &UnetConfig, scope: &Scope, shape: &UnetShape, compat: &Compat) -> Result<Graph> {
    let mut b = Builder::new();
    let interface = DenoiserInterface::new(config, shape);
    let mut inputs = HashMap::new();
    let mut named = HashMap::new();
    for input in &interface.inputs {
        let name = input.name.clone();
        let node = if input.role.is_integer() { b.input_i32(name, &input.shape) } else { b.input(name, &input.shape) };
        inputs.insert(input.role, node);
        named.insert(input.name.clone(), node);
    }
    let layer_numbers = config.cross_layers().into_iter().enumerate().map(|(i, layer)| (layer.path, i)).collect();
    let queries = shape.cross_attention_queries(config);
    let branches = &shape.branches;
    let (references, parts) = (reference_factors(&mut b, shape)?, Vec::new());
    let mut net = Net {
        b,
        config,
        compat,
        interface: &interface,
        inputs,
        named,
        layer_numbers,
        queries,
        branches,
        references,
        parts,
    };
    let x = net.forward(&scope.clone().with_quantizable(quantizable));
    let Net { mut b, mut parts, .. } = net;
    b.output("model_output", x);
    parts.sort_by_key(|(layer, _)| *layer);
    for ((_, norms), layer) in parts.into_iter().zip(config.cross_layers()) {
        b.output(format!("attribution.{}", layer.path), norms);
    }
    b.finish()
}

/// The factors of a branch's values that leave those of one reference, `[N]`, for each reference whose part is an output; none where it
/// is the branch's only one.
fn reference_factors(b: &mut Builder, shape: &UnetShape) -> Result<Vec<Vec<Option<NodeId>>>> {
    let mut all = Vec::new();
    for (BranchShape { tokens, .. }, &count) in shape.branches.iter().zip(&shape.attribution) {
        let each = tokens / count.max(1);
        let mut factors = Vec::new();
        for reference in 0..count {
            let values: Vec<f32> = (0..*tokens).map(|t| if t / each == reference { 1.0 } else { 0.0 }).collect();
            factors.push(if count > 1 { Some(constant(b, &values)?) } else { None });
        }
        all.push(factors);
    }
    Ok(all)
}

/// A vector of these values.
fn constant(b: &mut Builder, values: &[f32]) -> Result<NodeId> {
    let weight = Weight::from_f32(values, &[values.len(), 1], "constant");
    let repeated = b.repeat(weight.ok_or_else(|| Error::Graph("a constant without memory".into()))?, 1);
    Ok(b.reshape(repeated, &[values.len()]))
}

struct Net<'a> {
    b: Builder,
    config: &'a UnetConfig,
    compat: &'a Compat,
    interface: &'a DenoiserInterface,
    inputs: HashMap<InputRole, NodeId>,
    /// The same by name.
    named: HashMap<String, NodeId>,
    /// The number of each cross-attention, by path.
    layer_numbers: HashMap<String, usize>,
    /// The queries of each.
    queries: Vec<usize>,
    branches: &'a [BranchShape],
    /// See [`reference_factors`].
    references: Vec<Vec<Option<NodeId>>>,
    /// The norms of the parts in each cross-attention, with its number.
    parts: Vec<(usize, NodeId)>,
}

impl Net<'_> {
    fn forward(&mut self, root: &Scope) -> NodeId {
        let config = self.config;
        let first = config.block_out_channels.first().copied().unwrap_or(0);
        let sample = self.inputs[&InputRole::Sample];
        let mut x = self.b.conv2d(sample, &root.pp("conv_in"), first, 3, 1);
        let mut skips = Vec::new();
        for layer in config.layers() {
            match layer {
                UnetLayer::SaveSkip => skips.push(x),
                UnetLayer::ConcatSkip => {
                    if let Some(skip) = skips.pop() {
                        x = self.b.concat(x, skip);
                    }
                }
                UnetLayer::Resnet(resnet) => x = self.resnet(x, root, &resnet),
                UnetLayer::Transformer(transformer) => x = self.transformer(x, root, &transformer),
                UnetLayer::Downsample { path, channels } => x = self.b.conv2d(x, &root.pp(path), channels, 3, 2),
                UnetLayer::Upsample { path, channels } => {
                    // Twice as large as now, or one less where that was odd.
                    let next = skips.last().map_or([0, 0], |s| [self.b.shape(*s)[1], self.b.shape(*s)[2]]);
                    x = self.b.upsample(x, next[0], next[1]);
                    x = self.b.conv2d(x, &root.pp(path), channels, 3, 1);
                }
            }
        }
        x = self.b.group_norm(x, &root.pp("conv_norm_out"), config.norm_num_groups, config.norm_eps);
        x = self.b.activation(x, Activation::Silu);
        self.b.conv2d(x, &root.pp("conv_out"), config.out_channels, 3, 1)
    }

    fn resnet(&mut self, x: NodeId, root: &Scope, resnet: &Resnet) -> NodeId {
        let (groups, eps) = (self.config.norm_num_groups, self.config.norm_eps);
        let (scope, channels) = (root.pp(&resnet.path), resnet.channels);
        let time = self.named[&interface::time_embedding(&resnet.path)];
        let b = &mut self.b;
        let h = b.group_norm(x, &scope.pp("norm1"), groups, eps);
        let h = b.activation(h, Activation::Silu);
        let h = b.conv2d(h, &scope.pp("conv1"), channels, 3, 1);
        let h = b.broadcast_add(h, time);
        let h = b.group_norm(h, &scope.pp("norm2"), groups, eps);
        let h = b.activation(h, Activation::Silu);
        let h = b.conv2d(h, &scope.pp("conv2"), channels, 3, 1);
        let straight = *b.shape(x).last().unwrap_or(&0) == channels;
        let x = if straight { x } else { b.pointwise_conv2d(x, &scope.pp("conv_shortcut"), channels) };
        b.add(x, h)
    }

    fn transformer(&mut self, x: NodeId, root: &Scope, transformer: &Transformer) -> NodeId {
        if transformer.num_layers == 0 {
            return x;
        }
        let (scope, width) = (root.pp(transformer.block.path()), transformer.width);
        let eps = self.compat.transformer_norm_eps;
        let h = self.b.group_norm(x, &scope.pp("norm"), self.config.norm_num_groups, eps);
        let mut h = self.b.linear(h, &scope.pp("proj_in"), width);
        for k in 0..transformer.num_layers {
            h = self.transformer_block(h, &scope.pp("transformer_blocks").pp(k), transformer);
        }
        let h = self.b.linear(h, &scope.pp("proj_out"), width);
        self.b.add(x, h)
    }

    fn transformer_block(&mut self, x: NodeId, scope: &Scope, transformer: &Transformer) -> NodeId {
        let (width, heads) = (transformer.width, transformer.heads);
        let attn = scope.pp("attn1");
        let h = self.b.layer_norm(x, &scope.pp("norm1"), EPS);
        let q = self.b.linear_no_bias(h, &attn.pp("to_q"), width);
        let k = self.b.linear_no_bias(h, &attn.pp("to_k"), width);
        let v = self.b.linear_no_bias(h, &attn.pp("to_v"), width);
        let h = self.b.attention(q, k, v, heads, false);
        let h = self.b.linear(h, &attn.pp("to_out.0"), width);
        let x = self.b.add(x, h);
        let attn = scope.pp("attn2");
        let h = self.b.layer_norm(x, &scope.pp("norm2"), EPS);
        let q = self.b.linear_no_bias(h, &attn.pp("to_q"), width);
        let h = self.cross_attention(q, attn.prefix(), transformer);
        let h = self.b.linear(h, &attn.pp("to_out.0"), width);
        let x = self.b.add(x, h);
        let h = self.b.layer_norm(x, &scope.pp("norm3"), EPS);
        let h = self.b.linear(h, &scope.pp("ff.net.0.proj"), 8 * width);
        let h = self.b.geglu(h);
        let h = self.b.linear(h, &scope.pp("ff.net.2"), width);
        self.b.add(x, h)
    }

    /// Attends from one query to the text branch and the image branches.
    fn cross_attention(&mut self, q: NodeId, path: &str, transformer: &Transformer) -> NodeId {
        let (width, layer) = (transformer.width, self.layer_numbers[path]);
        let mut operands = vec![q];
        let mut operand = |node: NodeId| {
            operands.push(node);
            operands.len() - 1
        };
        let slices = |operand| (ChannelSlice { operand, start: 0 }, ChannelSlice { operand, start: width });
        let (keys, values) = slices(operand(self.named[&interface::text_keys_values(path)]));
        let length = Some(operand(self.inputs[&InputRole::TextTokens]));
        let mut branches = vec![KvBranch { keys, values, length, scale: None, mask: None }];
        // An attention without image branches reads no weights: CUDA refuses an operand that varies by step and has no place in it.
        let scales = (!self.branches.is_empty()).then(|| operand(self.inputs[&InputRole::Scales]));
        for (branch, shape) in self.branches.iter().enumerate() {
            let (keys, values) = slices(operand(self.named[&interface::image_keys_values(path, branch)]));
            let length = Some(operand(self.inputs[&InputRole::ImageTokens { branch }]));
            let scale = scales.map(|scales| (scales, self.interface.scale_offset(layer, branch)));
            let mask = InputRole::Mask { branch, queries: self.queries[layer] };
            let mask = shape.masked.then(|| operand(self.inputs[&mask]));
            branches.push(KvBranch { keys, values, length, scale, mask });
        }
        if !self.references.is_empty() {
            let norms = self.norms(&operands, &branches, transformer.heads);
            self.parts.push((layer, norms));
        }
        self.b.decoupled_attention(&operands, transformer.heads, false, branches)
    }

    /// The norms of what the text and each reference add to an attention's result, `[B, T, 1 + R]`.
    fn norms(&mut self, operands: &[NodeId], branches: &[KvBranch], heads: usize) -> NodeId {
        let norm = |b: &mut Builder, operands: &[NodeId], branch: KvBranch| {
            let part = b.decoupled_attention(operands, heads, false, vec![branch]);
            b.vector_norm(part)
        };
        let mut norms = norm(&mut self.b, operands, branches[0]);
        for (branch, references) in branches[1..].iter().zip(&self.references) {
            for factors in references {
                let (mut operands, mut branch) = (operands.to_vec(), *branch);
                if let Some(factors) = factors {
                    // The other references keep their place in the softmax.
                    operands.push(self.b.scale_rows(operands[branch.values.operand], *factors));
                    branch.values.operand = operands.len() - 1;
                }
                let one = norm(&mut self.b, &operands, branch);
                norms = self.b.concat(norms, one);
            }
        }
        norms
    }
}
