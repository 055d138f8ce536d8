//! Builds a graph node by node, with shape inference.

use super::attention::{Attention, ChannelSlice, KvBranch};
use super::gemm::{Activation, Conv2d, Conv2dParams, Epilogue, Linear, LinearWeights};
use super::nodes::{Graph, Node, NodeId};
use super::op::Op;
use super::op_info::InputType;
use crate::error::{Error, Result};
use crate::weights::lora::LowRank;
use crate::weights::{Scope, Weight};

/// The name of the input with the scales of low-rank updates, [`crate::weights::lora::LoraSet::scales`]: the last one of a graph
/// whose weights have any.
pub const LORA_SCALES: &str = "lora_scales";

/// Collects nodes. The shape of a result follows from its operation, see [`Op::infer`]; operands that do not fit are noted
/// and reported by [`Builder::finish`], so that the code of a model reads as the model.
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    problem: Option<String>,
    /// The input of [`LORA_SCALES`].
    lora_scales: Option<NodeId>,
}

impl Builder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// The finished graph.
    ///
    /// # Errors
    /// [`Error::Graph`] with the first operation whose operands did not fit, or that reads integers as floats or floats as
    /// integers.
    pub fn finish(mut self) -> Result<Graph> {
        if let Some(problem) = self.problem {
            return Err(Error::Graph(problem));
        }
        // Last, so that a model's own inputs have their places whether there are low-rank updates or not.
        self.graph.inputs.sort_by_key(|(_, id)| Some(*id) == self.lora_scales);
        self.graph.check_types()?;
        Ok(self.graph)
    }

    /// The shape of a node.
    pub fn shape(&self, id: NodeId) -> &[usize] {
        &self.graph.node(id).shape
    }

    fn push(&mut self, op: Op, inputs: &[NodeId], shape: Vec<usize>, name: impl Into<String>) -> NodeId {
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), shape, name: name.into() });
        NodeId(self.graph.nodes.len() - 1)
    }

    /// Any operation but an input or a reshape; `name` is the layer's in errors and profiles.
    ///
    /// # Panics
    /// As [`Op::infer`].
    pub fn node(&mut self, op: Op, operands: &[NodeId], name: impl Into<String>) -> NodeId {
        let shapes: Vec<&[usize]> = operands.iter().map(|id| self.shape(*id)).collect();
        let inferred = op.infer(&shapes);
        self.problem = self.problem.take().or(inferred.problem);
        self.push(op, operands, inferred.shape, name)
    }

    /// A tensor of f32 given at each run.
    pub fn input(&mut self, name: impl Into<String>, shape: &[usize]) -> NodeId {
        self.declare(name.into(), shape, InputType::F32)
    }

    /// A tensor of integers given at each run: token ids, indices, lengths.
    pub fn input_i32(&mut self, name: impl Into<String>, shape: &[usize]) -> NodeId {
        self.declare(name.into(), shape, InputType::I32)
    }

    fn declare(&mut self, name: String, shape: &[usize], element_type: InputType) -> NodeId {
        let id = self.push(Op::Input(element_type), &[], shape.to_vec(), name.clone());
        self.graph.inputs.push((name, id));
        id
    }

    /// Keeps a node as a result of each run.
    pub fn output(&mut self, name: impl Into<String>, id: NodeId) {
        self.graph.outputs.push((name.into(), id));
    }

    /// The same bytes under another shape.
    pub fn reshape(&mut self, x: NodeId, shape: &[usize]) -> NodeId {
        if self.graph.node(x).len() != shape.iter().product::<usize>() && self.problem.is_none() {
            self.problem = Some(format!("reshape {:?} to {shape:?}", self.shape(x)));
        }
        self.push(Op::Reshape, &[x], shape.to_vec(), "reshape")
    }

    /// See [`Op::Embedding`]: integer ids `[B, T]` to `[B, T, C]`.
    pub fn embedding(&mut self, ids: NodeId, table: Vec<Weight>, positions: Weight) -> NodeId {
        let name = table.first().map_or_else(String::new, |part| part.name().to_owned());
        self.node(Op::Embedding { table, positions }, &[ids], name)
    }

    /// See [`Op::PrependClassToken`].
    pub fn prepend_class_token(&mut self, x: NodeId, token: Weight, positions: Weight) -> NodeId {
        let name = token.name().to_owned();
        self.node(Op::PrependClassToken { token, positions }, &[x], name)
    }

    /// See [`Op::Repeat`].
    pub fn repeat(&mut self, weight: Weight, count: usize) -> NodeId {
        let name = weight.name().to_owned();
        self.node(Op::Repeat { weight, count }, &[], name)
    }

    /// A fully connected layer; the outputs of several matrices are joined.
    pub fn linear_parts(&mut self, x: NodeId, parts: Vec<LinearWeights>) -> NodeId {
        let name = parts.first().map(|p| p.weight.name().to_owned()).unwrap_or_default();
        let updates: Vec<LowRank> = parts.iter().filter_map(|part| part.low_rank.clone()).collect();
        if !updates.is_empty() && (updates.len() < parts.len() || !LowRank::adjacent(&updates)) {
            let each = parts.into_iter().map(|part| self.linear_parts(x, vec![part])).collect();
            return self.concat_all(x, each);
        }
        let mut operands = vec![x];
        if let Some(start) = updates.first().map(|update| (update.start, update.of)) {
            let downs = updates.into_iter().flat_map(|update| update.down).map(LinearWeights::from).collect();
            let down = self.linear_parts(x, downs);
            operands.push(self.lora_scaled(down, start));
        }
        self.node(Op::Linear(Linear { parts, sources: 1, epilogue: Epilogue::default() }), &operands, name)
    }

    /// All of `parts` joined along the channels; `x` where there is none.
    fn concat_all(&mut self, x: NodeId, parts: Vec<NodeId>) -> NodeId {
        let mut parts = parts.into_iter();
        let first = parts.next().unwrap_or(x);
        parts.fold(first, |joined, next| self.concat(joined, next))
    }

    /// The results of right factors times their scales, of which `start` is the first one of `of`.
    fn lora_scaled(&mut self, x: NodeId, (start, of): (usize, usize)) -> NodeId {
        let scales = match self.lora_scales {
            Some(scales) => scales,
            None => self.input(LORA_SCALES, &[of]),
        };
        self.lora_scales = Some(scales);
        self.scale_channels(x, scales, start)
    }

    /// A fully connected layer `[outputs, C]` whose tensors are `weight` and `bias` of `scope`.
    pub fn linear(&mut self, x: NodeId, scope: &Scope, outputs: usize) -> NodeId {
        let inputs = self.last(x);
        self.linear_parts(x, vec![LinearWeights::with_bias(scope, &[outputs, inputs])])
    }

    /// A fully connected layer `[outputs, C]` whose one tensor is `weight` of `scope`.
    pub fn linear_no_bias(&mut self, x: NodeId, scope: &Scope, outputs: usize) -> NodeId {
        let inputs = self.last(x);
        self.linear_parts(x, vec![LinearWeights::no_bias(scope, &[outputs, inputs])])
    }

    /// A 1x1 convolution, which is a fully connected layer of each pixel; its tensors are `weight` and `bias` of `scope`.
    pub fn pointwise_conv2d(&mut self, x: NodeId, scope: &Scope, outputs: usize) -> NodeId {
        let inputs = self.last(x);
        let weight = scope.get_as("weight", &[outputs, inputs, 1, 1], &[outputs, inputs]);
        let bias = Some(scope.get("bias", &[outputs]));
        self.linear_parts(
            x,
            vec![LinearWeights { weight, bias, low_rank: scope.low_rank(), quantizable: scope.is_quantizable() }],
        )
    }

    /// A convolution `[N, H, W, C]` to `[N, H', W', outputs]` whose tensors are `weight` and `bias` of `scope`.
    pub fn conv2d(&mut self, x: NodeId, scope: &Scope, outputs: usize, kernel: usize, stride: usize) -> NodeId {
        let weights = LinearWeights::with_bias(scope, &[outputs, self.last(x), kernel, kernel]);
        self.conv2d_with(x, weights, Conv2dParams { kernel, stride, padding: [kernel / 2; 2], resize: None })
    }

    /// As [`Builder::conv2d`], with `weight` alone.
    pub fn conv2d_no_bias(&mut self, x: NodeId, scope: &Scope, outputs: usize, kernel: usize, stride: usize) -> NodeId {
        let weights = LinearWeights::no_bias(scope, &[outputs, self.last(x), kernel, kernel]);
        self.conv2d_with(x, weights, Conv2dParams { kernel, stride, padding: [kernel / 2; 2], resize: None })
    }

    /// A convolution of any geometry.
    pub fn conv2d_with(&mut self, x: NodeId, weights: LinearWeights, params: Conv2dParams) -> NodeId {
        let name = weights.weight.name().to_owned();
        let mut operands = vec![x];
        if let Some(LowRank { down, start, of, .. }) = weights.low_rank.clone() {
            let each = down.into_iter().map(|down| self.conv2d_with(x, down.into(), params)).collect();
            let down = self.concat_all(x, each);
            operands.push(self.lora_scaled(down, (start, of)));
        }
        self.node(Op::Conv2d(Conv2d { weights, params, sources: 1, epilogue: Epilogue::default() }), &operands, name)
    }

    /// Group normalisation with `weight` and `bias` of `scope`.
    pub fn group_norm(&mut self, x: NodeId, scope: &Scope, groups: usize, eps: f32) -> NodeId {
        let c = self.last(x);
        let (weight, bias) = (scope.get("weight", &[c]), scope.get("bias", &[c]));
        self.node(Op::GroupNorm { groups, eps, weight, bias, silu: false }, &[x], scope.path("weight"))
    }

    /// Layer normalisation with `weight` and `bias` of `scope`.
    pub fn layer_norm(&mut self, x: NodeId, scope: &Scope, eps: f32) -> NodeId {
        let c = self.last(x);
        let (weight, bias) = (scope.get("weight", &[c]), scope.get("bias", &[c]));
        self.node(Op::LayerNorm { eps, weight, bias }, &[x], scope.path("weight"))
    }

    /// Attention of `q` `[B, T, heads * dim]` over `k` and `v`, one branch.
    pub fn attention(&mut self, q: NodeId, k: NodeId, v: NodeId, heads: usize, causal: bool) -> NodeId {
        let branch = KvBranch {
            keys: ChannelSlice { operand: 1, start: 0 },
            values: ChannelSlice { operand: 2, start: 0 },
            length: None,
            scale: None,
            mask: None,
        };
        self.decoupled_attention(&[q, k, v], heads, causal, vec![branch])
    }

    /// Attention over several branches; operand 0 holds the queries, the branches name the others.
    pub fn decoupled_attention(
        &mut self,
        operands: &[NodeId],
        heads: usize,
        causal: bool,
        branches: Vec<KvBranch>,
    ) -> NodeId {
        let dim = self.last(operands[0]) / heads.max(1);
        let query = ChannelSlice { operand: 0, start: 0 };
        self.node(Op::Attention(Attention { heads, dim, causal, query, branches }), operands, "attention")
    }

    /// An activation.
    pub fn activation(&mut self, x: NodeId, activation: Activation) -> NodeId {
        self.node(Op::Activation(activation), &[x], "activation")
    }

    /// `[.., 2C]` to `[.., C]`, see [`Op::Geglu`].
    pub fn geglu(&mut self, x: NodeId) -> NodeId {
        self.node(Op::Geglu, &[x], "geglu")
    }

    /// The sum of two tensors; the second repeats where it has fewer leading dimensions.
    pub fn add(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.node(Op::Add, &[a, b], "add")
    }

    /// `[B, .., C]` plus `[B, C]`.
    pub fn broadcast_add(&mut self, x: NodeId, per_image: NodeId) -> NodeId {
        self.node(Op::BroadcastAdd, &[x, per_image], "broadcast add")
    }

    /// `[.., C]` times a factor for each row, see [`Op::ScaleRows`].
    pub fn scale_rows(&mut self, x: NodeId, factors: NodeId) -> NodeId {
        self.node(Op::ScaleRows, &[x, factors], "scale rows")
    }

    /// The Euclidean norm of each row, `[.., C]` to `[.., 1]`.
    pub fn vector_norm(&mut self, x: NodeId) -> NodeId {
        self.node(Op::VectorNorm, &[x], "vector norm")
    }

    /// Joins channels.
    pub fn concat(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.node(Op::Concat, &[a, b], "concat")
    }

    /// Joins tokens: `[B, S, C]` and `[B, T, C]` to `[B, S + T, C]`. Those of an image lie in one piece, so that they are joined as
    /// channels are.
    pub fn concat_tokens(&mut self, a: NodeId, b: NodeId) -> NodeId {
        let (shape, c) = (self.shape(a).to_vec(), self.last(a));
        let [images, first] = [shape[0], shape[1]];
        let second = self.shape(b)[1];
        let [a, b] = [a, b].map(|x| {
            let each = self.graph.node(x).len() / images.max(1);
            self.reshape(x, &[images, each])
        });
        let x = self.concat(a, b);
        self.reshape(x, &[images, first + second, c])
    }

    /// Nearest neighbour to another height and width.
    pub fn upsample(&mut self, x: NodeId, height: usize, width: usize) -> NodeId {
        self.node(Op::Upsample { height, width }, &[x], "upsample")
    }

    /// See [`Op::TimestepEmbedding`].
    pub fn timestep_embedding(&mut self, x: NodeId, channels: usize, flip: bool, shift: f32) -> NodeId {
        self.node(Op::TimestepEmbedding { channels, flip, shift }, &[x], "timestep embedding")
    }

    /// One row of each image: the one that the integers `index` `[B]` name, or the first.
    pub fn gather(&mut self, x: NodeId, index: Option<NodeId>) -> NodeId {
        let operands: Vec<NodeId> = std::iter::once(x).chain(index).collect();
        self.node(Op::Gather, &operands, "gather")
    }

    /// See [`Op::ScaleChannels`].
    pub fn scale_channels(&mut self, x: NodeId, factors: NodeId, start: usize) -> NodeId {
        self.node(Op::ScaleChannels { start }, &[x, factors], "scale channels")
    }

    /// `x * scale + shift`.
    pub fn scale_shift(&mut self, x: NodeId, scale: f32, shift: f32) -> NodeId {
        self.node(Op::ScaleShift { scale, shift }, &[x], "scale and shift")
    }

    /// See [`Op::Relu`].
    pub fn relu(&mut self, x: NodeId) -> NodeId {
        self.node(Op::Relu, &[x], "relu")
    }

    /// See [`Op::SoftClamp`].
    pub fn soft_clamp(&mut self, x: NodeId, bound: f32) -> NodeId {
        self.node(Op::SoftClamp { bound }, &[x], "soft clamp")
    }

    /// The channels of a node, 0 of one without dimensions.
    fn last(&self, x: NodeId) -> usize {
        self.shape(x).last().copied().unwrap_or(0)
    }
}

impl LinearWeights {
    /// Takes `weight`, of `shape`, and `bias` of a scope.
    pub fn with_bias(scope: &Scope, shape: &[usize]) -> Self {
        let weight = Self::no_bias(scope, shape);
        Self { bias: Some(scope.get("bias", &shape[..1])), ..weight }
    }

    /// Takes `weight`, of `shape`, of a scope.
    pub fn no_bias(scope: &Scope, shape: &[usize]) -> Self {
        let (weight, low_rank) = (scope.get("weight", shape), scope.low_rank());
        Self { weight, bias: None, low_rank, quantizable: scope.is_quantizable() }
    }

    pub(super) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Weight> {
        let ups = self.low_rank.iter_mut().flat_map(|low_rank| &mut low_rank.up);
        [&mut self.weight].into_iter().chain(&mut self.bias).chain(ups)
    }
}
