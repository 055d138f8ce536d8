//! A model as data: nodes in topological order, static shapes, channels-last.
//!
//! A tensor is `[N, H, W, C]` or `[N, T, C]`: the same bytes, so [`Op::Reshape`] costs nothing. A node knows its operation,
//! its operands and its shape; weights are views into mapped files. What a device does with it is the device's affair.
//! Values are f32 on the CPU; indices (token ids, lengths) travel as f32 too and are exact up to 2^24.

mod builder;
mod fuse;
mod memory_plan;
#[cfg(test)]
mod tests;

pub use builder::Builder;
pub use fuse::fuse;
pub use memory_plan::{Location, MemoryPlan};

use crate::error::{Error, Result};
use crate::weights::Weight;

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// The exact GELU, x * Phi(x), by erf.
    Gelu,
    /// x * sigmoid(1.702 x).
    QuickGelu,
}

/// A node of a [`Graph`], by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) usize);

/// A matrix (`[N, K]`, as PyTorch stores `Linear`) or a convolution's kernel (`[O, I, kh, kw]`), with its bias `[N]`.
#[derive(Debug, Clone)]
pub struct LinearWeights {
    /// The matrix or kernel.
    pub weight: Weight,
    /// The bias, where there is one.
    pub bias: Option<Weight>,
}

/// A product with weights and what is done to its result before it is stored. A fully connected layer is the case of one
/// tap; `x` may come from two sources whose channels are joined.
///
/// Operands: the sources, then the per-image rows, then the residual.
/// Result: `activation(x W^T + bias + rows) + residual`.
#[derive(Debug, Clone)]
pub struct Product {
    /// One for each group of output channels, joined in order.
    pub parts: Vec<LinearWeights>,
    /// How pixels are gathered; `None` for a fully connected layer.
    pub window: Option<Conv2dParams>,
    /// Sources of `x`: 1 or 2.
    pub sources: usize,
    /// Whether an operand `[B, C]` is added to every row of image b.
    pub per_image_bias: bool,
    /// Whether an operand of the result's shape is added last.
    pub residual: bool,
    /// What happens before the residual is added.
    pub epilogue: Epilogue,
}

/// The nonlinear end of a [`Product`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// An activation.
    Activation(Activation),
    /// The first half of the channels times GELU of the second half.
    Geglu,
}

/// The geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dParams {
    /// Side of the kernel.
    pub kernel: usize,
    /// Step.
    pub stride: usize,
    /// Zeros around the picture.
    pub padding: usize,
    /// The picture is first enlarged to this height and width by nearest neighbour.
    pub resize: Option<(usize, usize)>,
}

/// A block of columns in an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelSlice {
    /// Which operand.
    pub operand: usize,
    /// The first column.
    pub start: usize,
}

/// Keys and values over which one softmax goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvBranch {
    /// The keys.
    pub keys: ChannelSlice,
    /// The values.
    pub values: ChannelSlice,
    /// An operand `[B]`: how many of the tokens count for image b; all of them where it is absent.
    pub length: Option<usize>,
    /// An operand `[.., B]` and the place in it where the weights of this strand begin: what the result of image b is
    /// multiplied by. A weight of 0 skips the strand.
    pub scale: Option<(usize, usize)>,
}

/// Attention of one query over strands that each have a softmax of their own: `sum_i scale_i softmax(q k_i^T / sqrt d) v_i`.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub dim: usize,
    /// Whether token t sees only tokens up to t.
    pub causal: bool,
    /// The queries.
    pub query: ChannelSlice,
    /// Text first, then an image strand for each adapter.
    pub branches: Vec<KvBranch>,
}

/// What a node does.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Op {
    /// Given from outside.
    Input,
    /// The operand's bytes under another shape.
    Reshape,
    /// Rows of a table `[V, C]` picked by ids `[B, T]`, plus the position's row of a second table.
    Embedding {
        /// `[V, C]`.
        table: Weight,
        /// `[P, C]`, P >= T.
        positions: Weight,
    },
    /// `[B, P, C]` to `[B, P + 1, C]`: a learned token first, then positions added to all.
    PrependClassToken {
        /// `[C]`.
        token: Weight,
        /// `[P + 1, C]`.
        positions: Weight,
    },
    /// A fully connected layer or a convolution.
    Product(Product),
    /// Normalisation over groups of channels of one image; with two operands over their joined channels.
    GroupNorm {
        /// Number of groups.
        groups: usize,
        /// Added to the variance.
        eps: f32,
        /// Scale, `[C]`.
        weight: Weight,
        /// Shift, `[C]`.
        bias: Weight,
        /// Whether SiLU follows.
        silu: bool,
    },
    /// Normalisation of each row.
    LayerNorm {
        /// Added to the variance.
        eps: f32,
        /// Scale, `[C]`.
        weight: Weight,
        /// Shift, `[C]`.
        bias: Weight,
    },
    /// See [`Attention`].
    Attention(Attention),
    /// An activation, element by element.
    Activation(Activation),
    /// The first half of the channels times GELU of the second half.
    Geglu,
    /// The sum of two tensors; the second repeats where it has fewer leading dimensions.
    Add,
    /// `[B, .., C]` plus `[B, C]` in every row of image b.
    BroadcastAdd,
    /// Joins the channels of two tensors.
    Concat,
    /// Nearest neighbour to the node's height and width.
    Upsample,
    /// `[n]` to `[n, C]`: sines and cosines of the value at C/2 frequencies from 1 down to 1/10000.
    TimestepEmbedding {
        /// Cosines first.
        flip: bool,
        /// diffusers' `downscale_freq_shift`.
        shift: f32,
    },
    /// `[B, T, C]` to `[B, C]`: the row that a second operand `[B]` names, or the first one where there is none.
    Gather,
    /// `x * scale + shift`, element by element.
    ScaleShift {
        /// Factor.
        scale: f32,
        /// Summand.
        shift: f32,
    },
}

/// One operation with its operands and the shape of its result.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// Its operands, all earlier nodes.
    pub inputs: Vec<NodeId>,
    /// The shape of the result, channels last.
    pub shape: Vec<usize>,
    /// The weight path of the layer, for errors and profiles.
    pub name: String,
}

impl Node {
    /// Elements of the result.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the result is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of one image: pixels or tokens.
    pub fn tokens(&self) -> usize {
        self.shape[1..self.shape.len() - 1].iter().product()
    }

    /// The last dimension.
    pub fn channels(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// A program for a device: see the module.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// In topological order.
    pub nodes: Vec<Node>,
    /// What is given at each run, in the order of the bindings.
    pub inputs: Vec<(String, NodeId)>,
    /// What is kept of each run, in the order of the bindings.
    pub outputs: Vec<(String, NodeId)>,
}

impl Graph {
    /// The node of that id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// A node alone as a graph: each operand becomes an input, once where it is read twice, the result the one output. For
    /// measurements and for finding out what one operation does.
    ///
    /// # Panics
    /// Where there is no such node.
    pub fn single(&self, id: NodeId) -> Self {
        let mut alone = Self::default();
        let mut node = self.node(id).clone();
        let mut places: Vec<(NodeId, NodeId)> = Vec::new();
        for operand in &mut node.inputs {
            let known = places.iter().find(|(from, _)| from == operand).map(|(_, to)| *to);
            let to = known.unwrap_or_else(|| {
                let to = NodeId(alone.nodes.len());
                let Node { shape, name, .. } = self.node(*operand).clone();
                alone.nodes.push(Node { op: Op::Input, inputs: Vec::new(), shape, name: name.clone() });
                alone.inputs.push((name, to));
                places.push((*operand, to));
                to
            });
            *operand = to;
        }
        alone.outputs.push((node.name.clone(), NodeId(alone.nodes.len())));
        alone.nodes.push(node);
        alone
    }

    /// Every node with its id, in order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId(i), node))
    }

    /// How often each node is read, outputs included.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.nodes.len()];
        for id in self.nodes.iter().flat_map(|n| &n.inputs).chain(self.outputs.iter().map(|(_, id)| id)) {
            uses[id.0] += 1;
        }
        uses
    }

    /// The node that owns each node's bytes: itself, or, as a reshape shares its operand's bytes, what that reads.
    pub fn owners(&self) -> Vec<usize> {
        let mut owners: Vec<usize> = (0..self.nodes.len()).collect();
        for (i, node) in self.nodes.iter().enumerate() {
            if matches!(node.op, Op::Reshape) {
                owners[i] = owners[node.inputs[0].0];
            }
        }
        owners
    }

    /// Refuses bindings of other numbers or lengths than were declared; for the devices.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub(crate) fn check_bindings(&self, inputs: &[&[f32]], outputs: &[&mut [f32]]) -> Result<()> {
        self.check("input", &self.inputs, inputs.iter().map(|b| b.len()))?;
        self.check("output", &self.outputs, outputs.iter().map(|b| b.len()))
    }

    pub(crate) fn check_inputs(&self, lens: impl ExactSizeIterator<Item = usize>) -> Result<()> {
        self.check("input", &self.inputs, lens)
    }

    fn check(
        &self,
        kind: &str,
        declared: &[(String, NodeId)],
        bound: impl ExactSizeIterator<Item = usize>,
    ) -> Result<()> {
        if declared.len() != bound.len() {
            return Err(Error::Graph(format!("{} {kind}s declared, {} bound", declared.len(), bound.len())));
        }
        for ((name, id), len) in declared.iter().zip(bound) {
            if self.node(*id).len() != len {
                let shape = &self.node(*id).shape;
                return Err(Error::Graph(format!("{kind} `{name}` is {shape:?}, bound to {len} values")));
            }
        }
        Ok(())
    }

    /// Multiplications with additions that a run takes, in products and attention.
    pub fn macs(&self) -> u64 {
        let macs = |node: &Node| -> u64 {
            let rows = (node.len() / node.channels().max(1)) as u64;
            match &node.op {
                Op::Product(p) => p.parts.iter().map(|a| rows * a.weight.len() as u64).sum(),
                Op::Attention(a) => {
                    let keys = |s: &KvBranch| self.node(node.inputs[s.keys.operand]).tokens() as u64;
                    a.branches.iter().map(|s| 2 * rows * keys(s) * (a.heads * a.dim) as u64).sum()
                }
                _ => 0,
            }
        };
        self.nodes.iter().map(macs).sum()
    }
}
