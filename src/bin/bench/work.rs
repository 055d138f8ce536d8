//! The operations of SDXL, without its weights: each distinct one with its count and its cost.

use braid::cli::failure::Failure;
use braid::cli::value::Value;
use braid::device::cuda::ENCODER_ROWS;
use braid::device::cuda::ops::moments;
use braid::device::{LoopSpec, PixelRounding, Role};
use braid::graph::{Graph, Node, OpCost, OpLabel, fuse};
use braid::models::clip::{ClipTextShape, VisionOutputs, clip_text, clip_vision};
use braid::models::ip_adapter::Adapter;
use braid::models::published;
use braid::models::taesd::{TaesdConfig, TaesdSide, taesd};
use braid::models::unet::{BranchShape, ConditioningPart, DenoiserInterface, UnetShape, conditioning, denoiser};
use braid::models::vae::vae_decoder;
use braid::synthetic::Sizes;
use braid::tensor::DType;
use braid::weights::{MappedBytes, Scope, TensorTable, Weight, Weights};
use braid::{Compat, Error};
use serde::Serialize;
use std::collections::HashMap;
use std::mem::discriminant;
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
    /// The step-invariant conditioning.
    Condition,
    /// One evaluation of the UNet.
    Unet,
    /// The VAE's decoder, for one image.
    Vae,
    /// The conditioning that a new reference changes: its tokens, keys and values.
    Reference,
    /// TAESD's encoder, for one image.
    TaesdEncoder,
    /// TAESD's decoder, for one image.
    TaesdDecoder,
}

impl Part {
    /// Those of a request with the VAE, in their order.
    pub const REQUEST: [Self; 5] = [Self::Text, Self::Image, Self::Condition, Self::Unet, Self::Vae];
    /// All.
    pub const ALL: [Self; 8] = [
        Self::Text,
        Self::Image,
        Self::Condition,
        Self::Reference,
        Self::TaesdEncoder,
        Self::Unet,
        Self::TaesdDecoder,
        Self::Vae,
    ];

    /// As `--parts` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Condition => "condition",
            Self::Unet => "unet",
            Self::Vae => "vae",
            Self::Reference => "reference",
            Self::TaesdEncoder => "taesd-encoder",
            Self::TaesdDecoder => "taesd-decoder",
        }
    }

    /// The value of `--parts`.
    pub fn read(value: &mut Value<'_>) -> Result<Vec<Self>, Failure> {
        let names = Self::ALL.map(Self::name).join(", ");
        let wrong =
            |name: &str| Failure::usage(format!("--parts: unknown value `{name}` (expected a list of {names})"));
        value.list(|name| Self::ALL.into_iter().find(|part| part.name() == name).ok_or_else(|| wrong(name)))
    }
}

/// The widths of the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelSize {
    /// The published ones.
    Sdxl,
    /// The same make, small enough for a test.
    Small,
}

impl ModelSize {
    /// The value of `--model`.
    pub fn read(value: &mut Value<'_>) -> Result<Self, Failure> {
        value.choice(&[("sdxl", Self::Sdxl), ("small", Self::Small)])
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

    fn taesd(self, side: TaesdSide) -> TaesdConfig {
        let config = published::taesd(side);
        if self == Self::Small { TaesdConfig { channels: 16, ..config } } else { config }
    }
}

/// The settings that determine the shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The widths.
    pub model: ModelSize,
    /// Side of the latents.
    pub side: usize,
    /// Rows of the UNet.
    pub batch: usize,
    /// Evaluations of the UNet in a request.
    pub steps: usize,
    /// Whether there is an IP-Adapter with one image.
    pub adapter: bool,
    /// Whether layers that may be quantized multiply e4m3.
    pub fp8: bool,
}

/// Tensors of a table, all of them views of one storage from its start, or all of them one element of it that repeats.
fn scope(table: TensorTable, storage: &Arc<MappedBytes>) -> Result<Scope, Error> {
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
        let branches = if self.adapter { BranchShape::of_adapters(&[tokens]) } else { Vec::new() };
        UnetShape {
            batch: self.batch,
            height: self.side,
            width: self.side,
            tokens: TOKENS,
            branches,
            attribution: Vec::new(),
        }
    }

    /// The images that share evaluations: of one row alone, one.
    pub fn images(&self) -> usize {
        (self.batch / 2).max(1)
    }

    /// The number of times that a part runs for all images before or after their steps.
    pub fn runs(&self, part: Part) -> usize {
        match part {
            Part::Text => self.batch.div_ceil(ENCODER_ROWS),
            Part::Image => self.images().div_ceil(ENCODER_ROWS),
            Part::Vae => self.images(),
            _ => 1,
        }
    }

    /// Elements of the largest tensor of those parts.
    pub fn largest(&self, parts: &[Part]) -> usize {
        let sizes = self.model.sizes();
        let tables = parts.iter().flat_map(|part| self.tables(&sizes, *part));
        tables.flatten().map(|(_, shape)| shape.iter().product()).max().unwrap_or(0)
    }

    fn tables(&self, sizes: &Sizes, part: Part) -> Vec<TensorTable> {
        match part {
            Part::Text => vec![sizes.text.tensors(), sizes.text_2.tensors()],
            Part::Image => vec![sizes.vision.tensors()],
            Part::Condition => vec![sizes.unet.tensors(), sizes.adapter.tensors()],
            Part::Unet => vec![sizes.unet.tensors()],
            Part::Vae => vec![sizes.vae.decoder_tensors()],
            Part::Reference => vec![sizes.unet.tensors(), sizes.adapter.tensors()],
            Part::TaesdEncoder => vec![self.model.taesd(TaesdSide::Encoder).tensors()],
            Part::TaesdDecoder => vec![self.model.taesd(TaesdSide::Decoder).tensors()],
        }
    }

    /// The fused graphs of a part over weights in `storage`; none of what reads a reference where there is no adapter.
    ///
    /// # Errors
    /// If a size does not fit the models.
    pub fn graphs(&self, part: Part, storage: &Arc<MappedBytes>) -> Result<Vec<Graph>, Error> {
        Ok(self.models(part, storage)?.into_iter().map(fuse).collect())
    }

    /// The role for which a part's graphs are compiled.
    pub fn role(&self, part: Part) -> Role {
        match part {
            Part::Text | Part::Image => Role::Plain,
            Part::Condition | Part::Reference => Role::Condition,
            Part::TaesdEncoder => Role::Encode,
            Part::TaesdDecoder | Part::Vae => Role::Decode(PixelRounding::Nearest),
            Part::Unet => {
                let sizes = self.model.sizes();
                let varying = DenoiserInterface::new(&sizes.unet, &self.shape(sizes.adapter.num_tokens)).varying();
                Role::Denoise(LoopSpec {
                    max_steps: self.steps,
                    varying,
                    noise: true,
                    row_axes: Vec::new(),
                    image_rows: 2,
                })
            }
        }
    }

    /// The graphs of a part as [`Setting::graphs`] has them, before fusion.
    ///
    /// # Errors
    /// As [`Setting::graphs`].
    pub fn models(&self, part: Part, storage: &Arc<MappedBytes>) -> Result<Vec<Graph>, Error> {
        let sizes = self.model.sizes();
        let tables = self.tables(&sizes, part);
        let scopes = tables.into_iter().map(|t| scope(t, storage)).collect::<Result<Vec<_>, _>>()?;
        let shape = self.shape(sizes.adapter.num_tokens);
        Ok(match (part, scopes.as_slice()) {
            (Part::Text, [one, two]) => {
                let (text, text_2) = (&sizes.text, &sizes.text_2);
                let shape = |layers: usize, pooled| ClipTextShape {
                    rows: self.batch.min(ENCODER_ROWS),
                    tokens: TOKENS,
                    depth: layers - 1,
                    pooled,
                    masked: false,
                };
                vec![
                    clip_text(text, one, shape(text.num_hidden_layers, false))?,
                    clip_text(text_2, two, shape(text_2.num_hidden_layers, true))?,
                ]
            }
            (Part::Image, [scope]) if self.adapter => {
                let images = self.images().min(ENCODER_ROWS);
                vec![clip_vision(&sizes.vision, scope, images, VisionOutputs::EMBEDS)?]
            }
            (Part::Condition, [scope, adapter]) => {
                let adapter = Adapter { config: &sizes.adapter, scope: adapter, positions: 0 };
                let adapters = if self.adapter { vec![adapter] } else { Vec::new() };
                vec![conditioning(&sizes.unet, scope, &shape, self.steps, &adapters, ConditioningPart::ALL)?]
            }
            (Part::Reference, [scope, adapter]) if self.adapter => {
                let adapter = Adapter { config: &sizes.adapter, scope: adapter, positions: 0 };
                vec![conditioning(&sizes.unet, scope, &shape, self.steps, &[adapter], &[ConditioningPart::Image])?]
            }
            (Part::TaesdEncoder, [scope]) => {
                vec![taesd(&self.model.taesd(TaesdSide::Encoder), scope, self.side, self.side)?]
            }
            (Part::TaesdDecoder, [scope]) => {
                vec![taesd(&self.model.taesd(TaesdSide::Decoder), scope, self.side, self.side)?]
            }
            (Part::Unet, [scope]) => vec![denoiser(&sizes.unet, scope, &shape, &Compat::diffusers())?],
            (Part::Vae, [scope]) => vec![vae_decoder(&sizes.vae, scope, self.side, self.side, &Compat::diffusers())?],
            _ => Vec::new(),
        })
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
                let Some(label) = graph.label(node) else { continue };
                let parts = node.op.implicit_gemm().map(|gemm| gemm.parts);
                let fp8 = self.fp8 && parts.is_some_and(|parts| parts.iter().all(|part| part.quantizable));
                let around = moments::excerpt(&graph, id);
                let kinds: Vec<_> = around.nodes.iter().map(|node| discriminant(&node.op)).collect();
                let place = *places.entry((label.clone(), fp8, kinds)).or_insert(distinct.len());
                match distinct.get_mut(place) {
                    Some(known) => known.label.count += 1,
                    None => distinct.push(Operation {
                        label: Label::new(part, label, node),
                        cost: graph.cost(node),
                        graph: graph.single(id),
                        around,
                        fp8: fp8 || self.fp8 && parts.is_none(),
                    }),
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

/// The names of an operation in every table. Operations that differ in layer and count alone are one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Label {
    /// The part of the request.
    pub part: &'static str,
    /// See [`OpLabel::kind`].
    pub kind: &'static str,
    /// See [`OpLabel::shape`].
    pub shape: String,
    /// See [`OpLabel::details`].
    pub with: String,
    /// The first layer of this kind and shape.
    pub layer: String,
    /// The number of times it occurs.
    pub count: usize,
}

impl Label {
    fn new(part: Part, OpLabel { kind, shape, details }: OpLabel, node: &Node) -> Self {
        let layer = node.name.strip_suffix(".weight").unwrap_or(&node.name).to_owned();
        Self { part: part.name(), kind, shape, with: details, layer, count: 1 }
    }
}

/// A distinct operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its names and how often it occurs.
    pub label: Label,
    /// The work of one of them.
    pub cost: OpCost,
    /// It alone, as a graph.
    pub graph: Graph,
    /// It with those on which its kernels depend.
    pub around: Graph,
    /// Whether it, or what is around it, may multiply e4m3.
    pub fp8: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(side: usize) -> Setting {
        Setting { model: ModelSize::Sdxl, side, batch: 2, steps: 1, adapter: false, fp8: false }
    }

    #[test]
    fn sdxl_operations_at_1024() {
        let flops = setting(128).pass_flops().unwrap();
        assert!((flops / 6.76e12 - 1.0).abs() < 0.01, "{flops}");
    }

    /// Every node is counted once, and there are as many distinct ones at every size.
    #[test]
    fn distinct_operations() {
        for (part, count) in [(Part::Unet, 73), (Part::Vae, 37)] {
            let operations = setting(128).operations(part, &hollow()).unwrap();
            let graph = setting(128).graphs(part, &hollow()).unwrap().remove(0);
            let nodes = graph.nodes.iter().filter(|n| graph.label(n).is_some()).count();
            assert_eq!(operations.iter().map(|o| o.label.count).sum::<usize>(), nodes);
            let flops: f64 = operations.iter().map(|o| o.label.count as f64 * o.cost.flops()).sum();
            assert!((flops / (2.0 * graph.macs() as f64) - 1.0).abs() < 1e-9);
            assert_eq!(operations.len(), count, "{part:?}");
            assert_eq!(setting(96).operations(part, &hollow()).unwrap().len(), count, "{part:?}");
        }
    }

    /// Layers that keep their type are apart from those like them: one of the convolutions of 320 channels with a residual.
    #[test]
    fn quantized_operations() {
        let operations = |fp8| Setting { fp8, ..setting(128) }.operations(Part::Unet, &hollow()).unwrap();
        let counts = |list: &[Operation], fp8| {
            let like = |o: &&Operation| o.label.shape == "2x128x128x320 > 2x128x128x320" && o.fp8 == fp8;
            list.iter().filter(like).map(|o| o.label.count).sum::<usize>()
        };
        let (plain, quantized) = (operations(false), operations(true));
        assert_eq!((plain.len() + 1, counts(&plain, true)), (quantized.len(), 0));
        assert_eq!((counts(&quantized, true), counts(&quantized, false)), (counts(&plain, false) - 1, 1));
    }

    /// One of each: the self-attention of the middle of SDXL and the first convolution.
    #[test]
    fn labels() {
        let operations = setting(128).operations(Part::Unet, &hollow()).unwrap();
        let find = |kind: &str, shape: &str| operations.iter().find(|o| o.label.kind == kind && o.label.shape == shape);
        let attention = find("attention", "2x1024x1280 over 1024").unwrap();
        assert_eq!((attention.label.with.as_str(), attention.label.count), ("20 heads of 64, one source", 60));
        assert_eq!(attention.cost.flops(), 4.0 * 2.0 * 1024.0 * 1024.0 * 1280.0);
        let first = find("convolution", "2x128x128x4 > 2x128x128x320").unwrap();
        assert_eq!((first.label.with.as_str(), first.label.layer.as_str()), ("3x3/1, bias", "conv_in"));
        assert_eq!(first.cost.flops(), 2.0 * f64::from(2 * 128 * 128 * 320 * 36));
        assert_eq!(first.cost.weights, 320 * 36 + 320);
    }

    #[test]
    fn every_model_part() {
        for model in [ModelSize::Sdxl, ModelSize::Small] {
            for part in Part::ALL {
                let setting = Setting { model, side: 16, batch: 2, steps: 3, adapter: true, fp8: false };
                let operations = setting.operations(part, &hollow()).unwrap();
                assert!(!operations.is_empty(), "{model:?} {part:?}");
                assert!(setting.largest(&[part]) > 0);
            }
        }
    }
}
