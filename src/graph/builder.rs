//! Builds a graph node by node, with shape inference.

use super::nodes::{Graph, Node, NodeId};
use super::op::{
    Activation, Attention, ChannelSlice, Conv2d, Conv2dParams, Epilogue, KvBranch, Linear, LinearWeights, Op,
};
use crate::error::{Error, Result};
use crate::weights::{Scope, Weight};

/// Collects nodes. Methods infer the shape of the result; operands that do not fit are noted and reported by
/// [`Builder::finish`], so that the code of a model reads as the model.
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    problem: Option<String>,
}

impl Builder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// The finished graph.
    ///
    /// # Errors
    /// [`Error::Graph`] with the first operation whose operands did not fit.
    pub fn finish(self) -> Result<Graph> {
        self.problem.map_or(Ok(self.graph), |p| Err(Error::Graph(p)))
    }

    /// The shape of a node.
    pub fn shape(&self, id: NodeId) -> &[usize] {
        &self.graph.node(id).shape
    }

    fn push(&mut self, op: Op, inputs: &[NodeId], shape: Vec<usize>, name: impl Into<String>) -> NodeId {
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), shape, name: name.into() });
        NodeId(self.graph.nodes.len() - 1)
    }

    fn check(&mut self, fits: bool, what: impl FnOnce(&Self) -> String) {
        if !fits && self.problem.is_none() {
            self.problem = Some(what(self));
        }
    }

    /// A tensor given at each run.
    pub fn input(&mut self, name: impl Into<String>, shape: &[usize]) -> NodeId {
        let name = name.into();
        let id = self.push(Op::Input, &[], shape.to_vec(), name.clone());
        self.graph.inputs.push((name, id));
        id
    }

    /// Keeps a node as a result of each run.
    pub fn output(&mut self, name: impl Into<String>, id: NodeId) {
        self.graph.outputs.push((name.into(), id));
    }

    /// The same bytes under another shape.
    pub fn reshape(&mut self, x: NodeId, shape: &[usize]) -> NodeId {
        let count = self.graph.node(x).len();
        self.check(shape.iter().product::<usize>() == count, |b| format!("reshape {:?} to {shape:?}", b.shape(x)));
        self.push(Op::Reshape, &[x], shape.to_vec(), "reshape")
    }

    /// See [`Op::Embedding`]: ids `[B, T]` to `[B, T, C]`.
    pub fn embedding(&mut self, ids: NodeId, table: Weight, positions: Weight) -> NodeId {
        let mut shape = self.shape(ids).to_vec();
        self.check(shape.last().is_some_and(|&t| t <= positions.shape()[0]), |_| {
            format!("embed {shape:?} with positions {:?}", positions.shape())
        });
        shape.push(table.shape()[1]);
        let name = table.name().to_owned();
        self.push(Op::Embedding { table, positions }, &[ids], shape, name)
    }

    /// See [`Op::PrependClassToken`].
    pub fn prepend_class_token(&mut self, x: NodeId, token: Weight, positions: Weight) -> NodeId {
        let mut shape = self.shape(x).to_vec();
        shape[1] += 1;
        self.check(positions.shape() == &shape[1..], |_| format!("positions {:?} for {shape:?}", positions.shape()));
        let name = token.name().to_owned();
        self.push(Op::PrependClassToken { token, positions }, &[x], shape, name)
    }

    /// A fully connected layer; the outputs of several matrices are joined.
    pub fn linear_parts(&mut self, x: NodeId, parts: Vec<LinearWeights>) -> NodeId {
        let mut shape = self.shape(x).to_vec();
        let k = shape.pop().unwrap_or(0);
        self.check(parts.iter().all(|p| p.weight.shape().get(1) == Some(&k)), |b| {
            format!(
                "linear {:?} on {:?}",
                parts.iter().map(|p| p.weight.shape().to_vec()).collect::<Vec<_>>(),
                b.shape(x)
            )
        });
        shape.push(parts.iter().map(|p| p.weight.shape()[0]).sum());
        let name = parts.first().map(|p| p.weight.name().to_owned()).unwrap_or_default();
        let op = Linear { parts, sources: 1, epilogue: Epilogue::default() };
        self.push(Op::Linear(op), &[x], shape, name)
    }

    /// A fully connected layer `[outputs, C]` whose tensors are `weight` and, where present, `bias` of `scope`.
    pub fn linear(&mut self, x: NodeId, scope: &Scope, outputs: usize) -> NodeId {
        let inputs = *self.shape(x).last().unwrap_or(&0);
        let part = linear_weights(scope, &[outputs, inputs]);
        self.linear_parts(x, vec![part])
    }

    /// A convolution `[N, H, W, C]` to `[N, H', W', outputs]` whose tensors are in `scope`.
    pub fn conv2d(&mut self, x: NodeId, scope: &Scope, outputs: usize, kernel: usize, stride: usize) -> NodeId {
        self.conv2d_with(x, scope, outputs, Conv2dParams { kernel, stride, padding: kernel / 2, resize: None })
    }

    /// A convolution of any geometry.
    pub fn conv2d_with(&mut self, x: NodeId, scope: &Scope, outputs: usize, params: Conv2dParams) -> NodeId {
        let shape = self.shape(x).to_vec();
        let Conv2dParams { kernel, stride, padding, .. } = params;
        let fits = shape.len() == 4 && shape[1] + 2 * padding >= kernel && shape[2] + 2 * padding >= kernel;
        self.check(fits, |_| format!("convolution {} on {shape:?}", scope.path("weight")));
        if !fits {
            return x;
        }
        let side = |d: usize| (d + 2 * padding - kernel) / stride + 1;
        let weights = linear_weights(scope, &[outputs, shape[3], kernel, kernel]);
        let name = weights.weight.name().to_owned();
        let shape = vec![shape[0], side(shape[1]), side(shape[2]), outputs];
        let op = Conv2d { weights, params, sources: 1, epilogue: Epilogue::default() };
        self.push(Op::Conv2d(op), &[x], shape, name)
    }

    /// Group normalisation with `weight` and `bias` of `scope`.
    pub fn group_norm(&mut self, x: NodeId, scope: &Scope, groups: usize, eps: f32) -> NodeId {
        let shape = self.shape(x).to_vec();
        let c = *shape.last().unwrap_or(&0);
        self.check(groups > 0 && c.is_multiple_of(groups), |_| format!("{groups} groups over {shape:?}"));
        let (weight, bias) = (scope.get("weight", &[c]), scope.get("bias", &[c]));
        self.push(Op::GroupNorm { groups, eps, weight, bias, silu: false }, &[x], shape, scope.path("weight"))
    }

    /// Layer normalisation with `weight` and `bias` of `scope`.
    pub fn layer_norm(&mut self, x: NodeId, scope: &Scope, eps: f32) -> NodeId {
        let shape = self.shape(x).to_vec();
        let c = *shape.last().unwrap_or(&0);
        let (weight, bias) = (scope.get("weight", &[c]), scope.get("bias", &[c]));
        self.push(Op::LayerNorm { eps, weight, bias }, &[x], shape, scope.path("weight"))
    }

    /// Attention of `q` `[B, T, heads * dim]` over `k` and `v`, one branch.
    pub fn attention(&mut self, q: NodeId, k: NodeId, v: NodeId, heads: usize, causal: bool) -> NodeId {
        let branch = KvBranch {
            keys: ChannelSlice { operand: 1, start: 0 },
            values: ChannelSlice { operand: 2, start: 0 },
            length: None,
            scale: None,
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
        let shape = self.shape(operands[0]).to_vec();
        let c = *shape.last().unwrap_or(&0);
        self.check(heads > 0 && c.is_multiple_of(heads), |_| format!("{heads} heads over {shape:?}"));
        let op =
            Attention { heads, dim: c / heads.max(1), causal, query: ChannelSlice { operand: 0, start: 0 }, branches };
        self.push(Op::Attention(op), operands, shape, "attention")
    }

    /// An activation.
    pub fn activation(&mut self, x: NodeId, kind: Activation) -> NodeId {
        let shape = self.shape(x).to_vec();
        self.push(Op::Activation(kind), &[x], shape, "activation")
    }

    /// `[.., 2C]` to `[.., C]`, see [`Op::Geglu`].
    pub fn geglu(&mut self, x: NodeId) -> NodeId {
        let mut shape = self.shape(x).to_vec();
        if let Some(c) = shape.last_mut() {
            *c /= 2;
        }
        self.push(Op::Geglu, &[x], shape, "geglu")
    }

    /// The sum of two tensors; the second repeats where it has fewer leading dimensions.
    pub fn add(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.check(self.shape(a).ends_with(self.shape(b)), |g| format!("add {:?} and {:?}", g.shape(a), g.shape(b)));
        let shape = self.shape(a).to_vec();
        self.push(Op::Add, &[a, b], shape, "add")
    }

    /// `[B, .., C]` plus `[B, C]`.
    pub fn broadcast_add(&mut self, x: NodeId, rows: NodeId) -> NodeId {
        let shape = self.shape(x).to_vec();
        let fits = *self.shape(rows) == [shape[0], *shape.last().unwrap_or(&0)];
        self.check(fits, |b| format!("add rows {:?} to {shape:?}", b.shape(rows)));
        self.push(Op::BroadcastAdd, &[x, rows], shape, "add rows")
    }

    /// Joins channels.
    pub fn concat(&mut self, a: NodeId, b: NodeId) -> NodeId {
        let mut shape = self.shape(a).to_vec();
        let other = self.shape(b).to_vec();
        let n = shape.len();
        self.check(n == other.len() && shape[..n - 1] == other[..n - 1], |_| format!("join {shape:?} and {other:?}"));
        shape[n - 1] += other.last().unwrap_or(&0);
        self.push(Op::Concat, &[a, b], shape, "concat")
    }

    /// Nearest neighbour to another height and width.
    pub fn upsample(&mut self, x: NodeId, height: usize, width: usize) -> NodeId {
        let mut shape = self.shape(x).to_vec();
        shape[1..3].copy_from_slice(&[height, width]);
        self.push(Op::Upsample, &[x], shape, "upsample")
    }

    /// See [`Op::TimestepEmbedding`].
    pub fn timestep_embedding(&mut self, x: NodeId, channels: usize, flip: bool, shift: f32) -> NodeId {
        let mut shape = self.shape(x).to_vec();
        shape.push(channels);
        self.check(channels.is_multiple_of(2), |_| format!("a sinusoid of {channels} channels"));
        self.push(Op::TimestepEmbedding { flip, shift }, &[x], shape, "sinusoid")
    }

    /// One row of each image: the one that `index` `[B]` names, or the first.
    pub fn gather(&mut self, x: NodeId, index: Option<NodeId>) -> NodeId {
        let shape = self.shape(x);
        let shape = vec![shape[0], shape[2]];
        let operands: Vec<NodeId> = std::iter::once(x).chain(index).collect();
        self.push(Op::Gather, &operands, shape, "take row")
    }

    /// `x * scale + shift`.
    pub fn scale_shift(&mut self, x: NodeId, scale: f32, shift: f32) -> NodeId {
        let shape = self.shape(x).to_vec();
        self.push(Op::ScaleShift { scale, shift }, &[x], shape, "scale")
    }
}

/// `weight` and, where the checkpoint has one, `bias` of a scope.
pub(crate) fn linear_weights(scope: &Scope, shape: &[usize]) -> LinearWeights {
    let bias = scope.has("bias").then(|| scope.get("bias", &shape[..1]));
    LinearWeights { weight: scope.get("weight", shape), bias }
}
