//! The operations of SDXL, without its weights: each distinct one, how often it occurs and what it has to do.

use crate::args::{self, Failure};
use braid::graph::{Activation, EpilogueActivation, Graph, ImplicitGemm, KvBranch, Node, Op, fuse};
use braid::models::clip::text::clip_text;
use braid::models::clip::vision::clip_vision;
use braid::models::tables::{self, Table};
use braid::models::unet::conditioning::{Adapter, condition};
use braid::models::unet::denoiser::{UnetShape, unet};
use braid::models::vae::decoder::vae_decoder;
use braid::synthetic::Sizes;
use braid::tensor::DType;
use braid::weights::{MappedBytes, Scope, Weight, Weights};
use braid::{Compat, Error};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Tokens of a prompt.
const TOKENS: usize = 77;

/// A part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Both text encoders.
    Text,
    /// The image encoder.
    Image,
    /// What does not depend on the latents.
    Condition,
    /// One evaluation of the UNet.
    Unet,
    /// The VAE's decoder, for one picture.
    Vae,
}

impl Part {
    /// All, in the order of a request.
    pub const ALL: [Self; 5] = [Self::Text, Self::Image, Self::Condition, Self::Unet, Self::Vae];

    /// As `--parts` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Condition => "condition",
            Self::Unet => "unet",
            Self::Vae => "vae",
        }
    }

    /// The value of `--parts`.
    pub fn read(p: &mut lexopt::Parser) -> Result<Vec<Self>, Failure> {
        let text = args::text(p, "--parts")?;
        let names = Self::ALL.map(Self::name).join(", ");
        let one = |name: &str| {
            Self::ALL.into_iter().find(|part| part.name() == name.trim()).ok_or_else(|| {
                Failure::usage(format!("--parts: `{}` is not known; a list of {names} is needed", name.trim()))
            })
        };
        text.split(',').map(one).collect()
    }
}

/// Which widths the models have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// The published ones.
    Sdxl,
    /// The same make, small enough for a test.
    Small,
}

impl Model {
    /// The value of `--model`.
    pub fn read(p: &mut lexopt::Parser) -> Result<Self, Failure> {
        match args::text(p, "--model")?.as_str() {
            "sdxl" => Ok(Self::Sdxl),
            "small" => Ok(Self::Small),
            other => Err(Failure::usage(format!("--model: `{other}` is not known; sdxl and small are"))),
        }
    }

    /// As `--model` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sdxl => "sdxl",
            Self::Small => "small",
        }
    }

    fn sizes(self) -> Sizes {
        let mut sizes = Sizes::published();
        if self == Self::Small {
            let unet = &mut sizes.unet;
            (unet.block_out_channels, unet.num_attention_heads, unet.transformer_layers_per_block) =
                (vec![32, 64], vec![1, 2], vec![0, 1]);
            (unet.cross_attention_dim, unet.addition_time_embed_dim, unet.projection_class_embeddings_input_dim) =
                (64, 8, 32 + 6 * 8);
            sizes.vae.block_out_channels = vec![32, 32, 32, 64];
            for text in [&mut sizes.text, &mut sizes.text_2] {
                (
                    text.hidden_size,
                    text.num_hidden_layers,
                    text.num_attention_heads,
                    text.intermediate_size,
                    text.vocab_size,
                ) = (32, 2, 2, 64, 100);
            }
            sizes.text_2.projection_dim = Some(32);
            let vision = &mut sizes.vision;
            (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size) =
                (32, 2, 2, 64);
            (vision.image_size, vision.projection_dim) = (56, 32);
            let layers = sizes.unet.cross_layers();
            sizes.adapter.widths = layers.iter().map(|layer| layer.width).collect();
            (sizes.adapter.embedding_dim, sizes.adapter.cross_attention_dim) = (32, 64);
        }
        sizes
    }
}

/// What fixes the shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The widths.
    pub model: Model,
    /// Side of the latents.
    pub side: usize,
    /// Rows of the UNet.
    pub batch: usize,
    /// Evaluations of the UNet in a request.
    pub steps: usize,
    /// Whether there is an IP-Adapter with one picture.
    pub adapter: bool,
}

/// Tensors of a table, all of them views of one storage from its start, or all of them one element of it that repeats.
fn scope(table: Table, storage: &Arc<MappedBytes>) -> Result<Scope, Error> {
    let mut weights = Weights::new("published sizes");
    for (name, shape) in table {
        let hollow = || {
            let strides = vec![0; shape.len()];
            Weight::strided(storage.clone(), 0, DType::F16, shape.clone(), strides, name.as_str())
        };
        let weight = Weight::new(storage.clone(), 0, DType::F16, shape.clone(), name.as_str()).or_else(hollow);
        weights.insert(name, weight.ok_or_else(|| Error::Graph("a table's shape overflows".into()))?)?;
    }
    Ok(Scope::new(weights))
}

/// A storage of one element: for graphs that are looked at and never run.
pub fn hollow() -> Arc<MappedBytes> {
    Arc::new(MappedBytes::owned(vec![0; 2]))
}

impl Setting {
    fn shape(&self, tokens: usize) -> UnetShape {
        let image_tokens = if self.adapter { vec![tokens] } else { Vec::new() };
        UnetShape { batch: self.batch, height: self.side, width: self.side, tokens: TOKENS, image_tokens }
    }

    /// Elements of the largest tensor of those parts.
    pub fn largest(&self, parts: &[Part]) -> usize {
        let sizes = self.model.sizes();
        let tables = parts.iter().flat_map(|part| self.tables(&sizes, *part));
        tables.flatten().map(|(_, shape)| shape.iter().product()).max().unwrap_or(0)
    }

    fn tables(&self, sizes: &Sizes, part: Part) -> Vec<Table> {
        match part {
            Part::Text => vec![tables::clip_text(&sizes.text), tables::clip_text(&sizes.text_2)],
            Part::Image => vec![tables::clip_vision(&sizes.vision)],
            Part::Condition => vec![tables::unet(&sizes.unet), tables::adapter(&sizes.adapter)],
            Part::Unet => vec![tables::unet(&sizes.unet)],
            Part::Vae => vec![tables::vae_decoder(&sizes.vae)],
        }
    }

    /// The fused graphs of a part over weights in `storage`; none of the image encoder where there is no adapter.
    ///
    /// # Errors
    /// Where a size does not fit the models.
    pub fn graphs(&self, part: Part, storage: &Arc<MappedBytes>) -> Result<Vec<Graph>, Error> {
        let sizes = self.model.sizes();
        let tables = self.tables(&sizes, part);
        let scopes = tables.into_iter().map(|t| scope(t, storage)).collect::<Result<Vec<_>, _>>()?;
        let shape = self.shape(sizes.adapter.num_tokens);
        let graphs = match (part, scopes.as_slice()) {
            (Part::Text, [one, two]) => {
                let (text, text_2) = (&sizes.text, &sizes.text_2);
                vec![
                    clip_text(text, one, self.batch, TOKENS, text.num_hidden_layers - 1, false)?,
                    clip_text(text_2, two, self.batch, TOKENS, text_2.num_hidden_layers - 1, true)?,
                ]
            }
            (Part::Image, [scope]) if self.adapter => vec![clip_vision(&sizes.vision, scope, 1)?],
            (Part::Condition, [scope, adapter]) => {
                let adapter = Adapter { config: &sizes.adapter, scope: adapter };
                let adapters = if self.adapter { vec![adapter] } else { Vec::new() };
                vec![condition(&sizes.unet, scope, &shape, self.steps, &adapters)?]
            }
            (Part::Unet, [scope]) => vec![unet(&sizes.unet, scope, &shape, &Compat::diffusers())?],
            (Part::Vae, [scope]) => vec![vae_decoder(&sizes.vae, scope, self.side, self.side, &Compat::diffusers())?],
            _ => Vec::new(),
        };
        Ok(graphs.into_iter().map(fuse).collect())
    }

    /// The distinct operations of a part, in the order in which they first occur.
    ///
    /// # Errors
    /// As [`Setting::graphs`].
    pub fn operations(&self, part: Part, storage: &Arc<MappedBytes>) -> Result<Vec<Operation>, Error> {
        let mut distinct: Vec<Operation> = Vec::new();
        let mut places = HashMap::new();
        for graph in self.graphs(part, storage)? {
            for (id, node) in graph.iter() {
                let Some(label) = Label::of(part, &graph, node) else { continue };
                let place = *places.entry(label.key()).or_insert(distinct.len());
                match distinct.get_mut(place) {
                    Some(known) => known.label.count += 1,
                    None => distinct.push(Operation::new(label, &graph, node, graph.single(id))),
                }
            }
        }
        Ok(distinct)
    }

    /// FLOPs of the UNet for one row, what is computed once a request (time embeddings, the text's keys and values) included:
    /// what is published as the model's work.
    ///
    /// # Errors
    /// As [`Setting::graphs`].
    pub fn pass_flops(&self) -> Result<f64, Error> {
        let one = Self { batch: 1, steps: 1, adapter: false, ..*self };
        let mut flops = 0.0;
        for part in [Part::Unet, Part::Condition] {
            flops += one.graphs(part, &hollow())?.iter().map(|g| 2.0 * g.macs() as f64).sum::<f64>();
        }
        Ok(flops)
    }
}

/// What an operation is called in every table; all of it but layer and count is what makes it a distinct one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Label {
    /// The part of the request.
    pub part: &'static str,
    /// What it does.
    pub kind: &'static str,
    /// `rows x columns x sum` of a fully connected layer, `operand > result` of a convolution, else the result's shape.
    pub shape: String,
    /// What else there is to say.
    pub with: String,
    /// The first layer of this kind and shape.
    pub layer: String,
    /// How often it occurs.
    pub count: usize,
}

fn times(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

fn activation(kind: Activation) -> &'static str {
    match kind {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::QuickGelu => "quick gelu",
        _ => "activation",
    }
}

/// Columns of a product's weights.
fn columns(p: ImplicitGemm<'_>) -> usize {
    p.parts.iter().map(|a| a.weight.shape().first().copied().unwrap_or(1)).sum()
}

impl Label {
    /// That of a node; `None` where there is nothing to do.
    fn of(part: Part, graph: &Graph, node: &Node) -> Option<Self> {
        let operand = |k: usize| node.inputs.get(k).map_or(&[][..], |id| graph.node(*id).shape.as_slice());
        let result = times(&node.shape);
        let mut with: Vec<String> = Vec::new();
        let sources = |count: usize| {
            let widths: Vec<_> = (0..count).map(|k| operand(k).last().copied().unwrap_or(1)).collect();
            widths.iter().map(usize::to_string).collect::<Vec<_>>().join("+") + " in"
        };
        let (kind, shape) = match &node.op {
            Op::Input | Op::Reshape => return None,
            op @ (Op::Linear(_) | Op::Conv2d(_)) => {
                let p = op.implicit_gemm()?;
                let rows = node.len() / node.channels().max(1);
                let sum = p.parts.first().map_or(0, |a| a.weight.len() / a.weight.shape()[0].max(1));
                if p.sources > 1 {
                    with.push(sources(p.sources));
                }
                if p.parts.iter().any(|a| a.bias.is_some()) {
                    with.push("bias".into());
                }
                if p.parts.len() > 1 {
                    with.push(format!("{} parts", p.parts.len()));
                }
                if p.epilogue.per_image_bias {
                    with.push(format!("rows of {}", node.shape[0]));
                }
                if let EpilogueActivation::Pointwise(kind) = p.epilogue.activation {
                    with.push(activation(kind).into());
                }
                if p.epilogue.residual {
                    with.push("residual".into());
                }
                match p.conv {
                    None if p.epilogue.activation == EpilogueActivation::Geglu => {
                        ("product with GEGLU", format!("{rows}x{}x{sum}", columns(p)))
                    }
                    None => ("product", format!("{rows}x{}x{sum}", columns(p))),
                    Some(w) => {
                        let resized = if w.resize.is_some() { ", enlarged" } else { "" };
                        with.insert(0, format!("{0}x{0}/{1}{resized}", w.kernel, w.stride));
                        ("convolution", format!("{} > {result}", times(operand(0))))
                    }
                }
            }
            Op::Attention(a) => {
                let tokens = |s: &KvBranch| graph.node(node.inputs[s.keys.operand]).tokens().to_string();
                let keys: Vec<_> = a.branches.iter().map(tokens).collect();
                let result = times(&[node.shape[0], node.tokens(), node.channels()]);
                with.push(format!("{} heads of {}", a.heads, a.dim));
                let distinct: BTreeSet<_> = node.inputs.iter().collect();
                if distinct.len() == 1 {
                    with.push("one source".into());
                }
                if a.causal {
                    with.push("causal".into());
                }
                let kind = if a.branches.len() > 1 { "decoupled attention" } else { "attention" };
                (kind, format!("{result} over {}", keys.join("+")))
            }
            Op::GroupNorm { groups, silu, .. } => {
                with.push(format!("{groups} groups"));
                if *silu {
                    with.push("silu".into());
                }
                if node.inputs.len() > 1 {
                    with.push(sources(2));
                }
                ("group norm", result)
            }
            Op::LayerNorm { .. } => ("layer norm", result),
            Op::Embedding { .. } => ("embed", result),
            Op::PrependClassToken { .. } => ("class token", result),
            Op::Activation(kind) => (activation(*kind), result),
            Op::Geglu => ("geglu", result),
            Op::Add => {
                with.push(format!("{} added", times(operand(1))));
                ("add", result)
            }
            Op::BroadcastAdd => ("add rows", result),
            Op::Concat => {
                with.push(sources(2));
                ("concat", result)
            }
            Op::Upsample => ("upsample", format!("{} > {result}", times(operand(0)))),
            Op::TimestepEmbedding { .. } => ("sinusoid", result),
            Op::Gather => ("take row", format!("{} > {result}", times(operand(0)))),
            Op::ScaleShift { .. } => ("scale", result),
            _ => ("other", result),
        };
        let layer = node.name.strip_suffix(".weight").unwrap_or(&node.name).to_owned();
        Some(Self { part: part.name(), kind, shape, with: with.join(", "), layer, count: 1 })
    }

    fn key(&self) -> (&'static str, String, String) {
        (self.kind, self.shape.clone(), self.with.clone())
    }
}

/// A distinct operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its names and how often it occurs.
    pub label: Label,
    /// FLOPs of one of them, two for a multiplication with its addition; those of products and attention count.
    pub flops: f64,
    /// Elements of operands and result, each distinct one once.
    pub activations: usize,
    /// Elements of weights.
    pub weights: usize,
    /// Of a product, the elements of the result before GEGLU; of attention, its queries times its heads.
    pub results: usize,
    /// It alone, as a graph.
    pub graph: Graph,
}

impl Operation {
    fn new(label: Label, graph: &Graph, node: &Node, single: Graph) -> Self {
        let inputs: BTreeSet<_> = node.inputs.iter().collect();
        let operands: usize = inputs.into_iter().map(|id| graph.node(*id).len()).sum();
        let rows = node.len() / node.channels().max(1);
        let (weights, results) = match &node.op {
            op @ (Op::Linear(_) | Op::Conv2d(_)) => {
                let affine = |a: &braid::graph::LinearWeights| a.weight.len() + a.bias.as_ref().map_or(0, Weight::len);
                op.implicit_gemm().map_or((0, 0), |p| (p.parts.iter().map(affine).sum(), rows * columns(p)))
            }
            Op::Attention(a) => (0, rows * a.heads),
            Op::GroupNorm { weight, bias, .. } | Op::LayerNorm { weight, bias, .. } => (weight.len() + bias.len(), 0),
            // Of a table, the rows that are picked.
            Op::Embedding { .. } => (2 * node.len(), 0),
            Op::PrependClassToken { positions, .. } => (positions.len(), 0),
            _ => (0, 0),
        };
        let flops = 2.0 * single.macs() as f64;
        Self { label, flops, activations: operands + node.len(), weights, results, graph: single }
    }

    /// Bytes that must move if nothing is read twice.
    pub fn bytes(&self, activation: usize, weight: usize) -> f64 {
        (self.activations * activation + self.weights * weight) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(side: usize) -> Setting {
        Setting { model: Model::Sdxl, side, batch: 2, steps: 1, adapter: false }
    }

    #[test]
    fn the_work_of_sdxl_at_1024() {
        let flops = setting(128).pass_flops().unwrap();
        assert!((flops / 6.76e12 - 1.0).abs() < 0.01, "{flops}");
    }

    /// Every node is counted once, and there are as many distinct ones at every size.
    #[test]
    fn distinct_operations() {
        for (part, count) in [(Part::Unet, 62), (Part::Vae, 29)] {
            let operations = setting(128).operations(part, &hollow()).unwrap();
            let graph = setting(128).graphs(part, &hollow()).unwrap().remove(0);
            let nodes = graph.nodes.iter().filter(|n| !matches!(n.op, Op::Input | Op::Reshape)).count();
            assert_eq!(operations.iter().map(|o| o.label.count).sum::<usize>(), nodes);
            let flops: f64 = operations.iter().map(|o| o.label.count as f64 * o.flops).sum();
            assert!((flops / (2.0 * graph.macs() as f64) - 1.0).abs() < 1e-9);
            assert_eq!(operations.len(), count, "{part:?}");
            assert_eq!(setting(96).operations(part, &hollow()).unwrap().len(), count, "{part:?}");
        }
    }

    /// One of each: the self-attention of the middle of SDXL and the first convolution.
    #[test]
    fn labels() {
        let operations = setting(128).operations(Part::Unet, &hollow()).unwrap();
        let find = |kind: &str, shape: &str| operations.iter().find(|o| o.label.kind == kind && o.label.shape == shape);
        let attention = find("attention", "2x1024x1280 over 1024").unwrap();
        assert_eq!((attention.label.with.as_str(), attention.label.count), ("20 heads of 64, one source", 60));
        assert_eq!(attention.flops, 4.0 * 2.0 * 1024.0 * 1024.0 * 1280.0);
        let first = find("convolution", "2x128x128x4 > 2x128x128x320").unwrap();
        assert_eq!((first.label.with.as_str(), first.label.layer.as_str()), ("3x3/1, bias", "conv_in"));
        assert_eq!(first.flops, 2.0 * f64::from(2 * 128 * 128 * 320 * 36));
        assert_eq!(first.weights, 320 * 36 + 320);
    }

    #[test]
    fn every_part_of_every_model() {
        for model in [Model::Sdxl, Model::Small] {
            for part in Part::ALL {
                let setting = Setting { model, side: 16, batch: 2, steps: 3, adapter: true };
                let operations = setting.operations(part, &hollow()).unwrap();
                assert!(!operations.is_empty(), "{model:?} {part:?}");
                assert!(setting.largest(&[part]) > 0);
            }
        }
    }
}
