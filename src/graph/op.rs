//! The operations of a graph: one variant each, with its shape rule, its label and its cost.
//!
//! Operations of more than a few fields have files of their own.

use super::attention::Attention;
use super::gemm::{Activation, Conv2d, Epilogue, ImplicitGemm, Linear, LinearWeights};
use super::op_info::{Inferred, InputType, OpCost, OpLabel, OpShapes, channels, times};
use crate::weights::Weight;

/// The operation of a node.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Op {
    /// Given from outside.
    Input(InputType),
    /// The operand's bytes under another shape.
    Reshape,
    /// Rows of a table `[V, C]` picked by integer ids `[B, T]`, plus the position's row of a second table.
    Embedding {
        /// `[V, C]`, in parts `[V_i, C]` one below the other.
        table: Vec<Weight>,
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
    /// A weight `[T, C]` for each of B images: `[B, T, C]`. There is no operand.
    Repeat {
        /// `[T, C]`.
        weight: Weight,
        /// B.
        count: usize,
    },
    /// A fully connected layer.
    Linear(Linear),
    /// A convolution.
    Conv2d(Conv2d),
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
    /// `[.., C]` times a factor for each row; the factors `[n]` repeat where there are fewer.
    ScaleRows,
    /// `[.., C]` to `[.., 1]`: the Euclidean norm of each row (torch's `linalg.vector_norm`). CUDA has no kernel for it.
    VectorNorm,
    /// Joins the channels of two tensors.
    Concat,
    /// `[N, H, W, C]` to `[N, height, width, C]` by nearest neighbour.
    Upsample {
        /// Height of the result.
        height: usize,
        /// Width of the result.
        width: usize,
    },
    /// `[n]` to `[n, C]`: sines and cosines of the value at C/2 frequencies from 1 down to 1/10000.
    TimestepEmbedding {
        /// C.
        channels: usize,
        /// Cosines first.
        flip: bool,
        /// diffusers' `downscale_freq_shift`.
        shift: f32,
    },
    /// `[B, T, C]` to `[B, C]`: the row that a second operand `[B]` of integers names, or the first one where there is none.
    Gather,
    /// `x * scale + shift`, element by element.
    ScaleShift {
        /// Factor.
        scale: f32,
        /// Summand.
        shift: f32,
    },
    /// 0 in the place of what is below it, element by element.
    Relu,
    /// `bound * tanh(x / bound)`, element by element.
    SoftClamp {
        /// The bound that no result exceeds.
        bound: f32,
    },
    /// `[.., C]` times C of the elements of a second operand `[S]`, a factor for each channel.
    ScaleChannels {
        /// The element that is the first channel's.
        start: usize,
    },
}

impl Op {
    /// The operation as a multiplication of matrices, where it is one.
    pub fn implicit_gemm(&self) -> Option<ImplicitGemm<'_>> {
        match self {
            Self::Linear(linear) => Some(linear.into()),
            Self::Conv2d(conv) => Some(conv.into()),
            _ => None,
        }
    }

    /// The same fully connected layer or convolution with another epilogue; other operations as they are.
    #[must_use]
    pub(super) fn with_epilogue(mut self, new: Epilogue) -> Self {
        if let Self::Linear(Linear { epilogue, .. }) | Self::Conv2d(Conv2d { epilogue, .. }) = &mut self {
            *epilogue = new;
        }
        self
    }

    /// The weights of the operation.
    pub fn weights_mut(&mut self) -> Vec<&mut Weight> {
        match self {
            Self::Linear(linear) => linear.parts.iter_mut().flat_map(LinearWeights::tensors_mut).collect(),
            Self::Conv2d(conv) => conv.weights.tensors_mut().collect(),
            Self::GroupNorm { weight, bias, .. } | Self::LayerNorm { weight, bias, .. } => vec![weight, bias],
            Self::Embedding { table, positions } => table.iter_mut().chain([positions]).collect(),
            Self::PrependClassToken { token, positions } => vec![token, positions],
            Self::Repeat { weight, .. } => vec![weight],
            Self::Input(_) | Self::Reshape | Self::Attention(_) | Self::Activation(_) | Self::Geglu => vec![],
            Self::Add | Self::BroadcastAdd | Self::ScaleRows | Self::Concat | Self::Upsample { .. } => vec![],
            Self::TimestepEmbedding { .. } | Self::Gather | Self::VectorNorm => vec![],
            Self::ScaleShift { .. } | Self::ScaleChannels { .. } | Self::Relu | Self::SoftClamp { .. } => vec![],
        }
    }

    /// Whether the operation reads an operand, by its number, as elements of that type.
    pub fn reads(&self, operand: usize, as_type: InputType) -> bool {
        let integers = as_type == InputType::I32;
        match self {
            Self::Input(_) | Self::Reshape => false,
            Self::Attention(attention) => attention.reads(operand, as_type),
            Self::Embedding { .. } => integers,
            Self::Gather => integers == (operand == 1),
            _ => !integers,
        }
    }

    /// The shape of the result for operands of these shapes.
    ///
    /// # Panics
    /// For an input or a reshape: their shape is given with the node. Also where there are fewer operands or dimensions than
    /// the operation needs.
    pub fn infer(&self, operands: &[&[usize]]) -> Inferred {
        let first = operands.first().copied().unwrap_or(&[]);
        match self {
            Self::Input(_) | Self::Reshape => panic!("the shape of an input or a reshape is given"),
            Self::Linear(linear) => linear.infer(operands),
            Self::Conv2d(conv) => conv.infer(operands),
            Self::Attention(attention) => attention.infer(operands),
            Self::Embedding { table, positions } => {
                let parts = table.iter().all(|part| part.shape()[1..2] == positions.shape()[1..2]);
                let fits = parts && first.last().is_some_and(|&t| t <= positions.shape()[0]);
                Inferred::new([first, &positions.shape()[1..2]].concat(), fits, || {
                    format!("embed {first:?} with positions {:?}", positions.shape())
                })
            }
            Self::PrependClassToken { positions, .. } => {
                let mut shape = first.to_vec();
                shape[1] += 1;
                let fits = positions.shape() == &shape[1..];
                let problem = format!("positions {:?} for {shape:?}", positions.shape());
                Inferred::new(shape, fits, || problem)
            }
            Self::Repeat { weight, count } => [&[*count], weight.shape()].concat().into(),
            Self::GroupNorm { groups, .. } => {
                let fits = *groups > 0 && channels(first).is_multiple_of(*groups);
                Inferred::new(first.to_vec(), fits, || format!("{groups} groups over {first:?}"))
            }
            Self::Add => {
                let second = operands[1];
                Inferred::new(first.to_vec(), first.ends_with(second), || format!("add {first:?} and {second:?}"))
            }
            Self::BroadcastAdd => {
                let fits = operands[1] == [first[0], channels(first)];
                Inferred::new(first.to_vec(), fits, || format!("add {:?} to each image of {first:?}", operands[1]))
            }
            Self::ScaleRows => {
                let fits = matches!(*operands[1], [n] if n > 0 && first[..first.len() - 1].ends_with(&[n]));
                Inferred::new(first.to_vec(), fits, || format!("factors {:?} for the rows of {first:?}", operands[1]))
            }
            Self::Concat => infer_concat(first, operands[1]),
            Self::Upsample { height, width } => {
                let mut shape = first.to_vec();
                shape[1..3].copy_from_slice(&[*height, *width]);
                shape.into()
            }
            Self::TimestepEmbedding { channels, .. } => {
                let fits = channels.is_multiple_of(2);
                let problem = || format!("a timestep embedding of {channels} channels, which must be even");
                Inferred::new([first, &[*channels]].concat(), fits, problem)
            }
            Self::Geglu => {
                let mut shape = first.to_vec();
                if let Some(c) = shape.last_mut() {
                    *c /= 2;
                }
                shape.into()
            }
            Self::Gather => vec![first[0], first[2]].into(),
            Self::VectorNorm => [&first[..first.len() - 1], &[1]].concat().into(),
            Self::ScaleChannels { start } => {
                let fits = start + channels(first) <= operands[1].iter().product();
                Inferred::new(first.to_vec(), fits, || {
                    format!("factors from {start} on of {:?} for {first:?}", operands[1])
                })
            }
            Self::LayerNorm { .. } | Self::Activation(_) | Self::ScaleShift { .. } => first.to_vec().into(),
            Self::Relu | Self::SoftClamp { .. } => first.to_vec().into(),
        }
    }

    /// The name of the operation in tables and profiles; `None` where there is nothing to do.
    pub fn label(&self, shapes: &OpShapes<'_>) -> Option<OpLabel> {
        let result = || times(shapes.result);
        let mut details: Vec<String> = Vec::new();
        let (kind, shape) = match self {
            Self::Input(_) | Self::Reshape => return None,
            Self::Linear(linear) => return Some(ImplicitGemm::from(linear).label(shapes)),
            Self::Conv2d(conv) => return Some(ImplicitGemm::from(conv).label(shapes)),
            Self::Attention(attention) => return Some(attention.label(shapes)),
            Self::GroupNorm { groups, silu, .. } => {
                details.push(format!("{groups} groups"));
                if *silu {
                    details.push("silu".into());
                }
                if shapes.operands.len() > 1 {
                    details.push(shapes.sources(2));
                }
                ("group norm", result())
            }
            Self::LayerNorm { .. } => ("layer norm", result()),
            Self::Embedding { .. } => ("embedding", result()),
            Self::PrependClassToken { .. } => ("prepend class token", result()),
            Self::Repeat { .. } => ("repeat", result()),
            Self::Activation(activation) => (activation.name(), result()),
            Self::Geglu => ("geglu", result()),
            Self::Add => {
                details.push(format!("{} added", times(shapes.operands[1])));
                ("add", result())
            }
            Self::BroadcastAdd => ("broadcast add", result()),
            Self::ScaleRows => ("scale rows", result()),
            Self::Concat => {
                details.push(shapes.sources(2));
                ("concat", result())
            }
            Self::Upsample { .. } => ("upsample", shapes.arrow()),
            Self::TimestepEmbedding { .. } => ("timestep embedding", result()),
            Self::Gather => ("gather", shapes.arrow()),
            Self::VectorNorm => ("vector norm", shapes.arrow()),
            Self::ScaleShift { .. } => ("scale and shift", result()),
            Self::Relu => ("relu", result()),
            Self::SoftClamp { .. } => ("soft clamp", result()),
            Self::ScaleChannels { .. } => ("scale channels", result()),
        };
        Some(OpLabel { kind, shape, details: details.join(", ") })
    }

    /// The work of the operation, without that of moving the activations.
    pub(super) fn cost(&self, shapes: &OpShapes<'_>) -> OpCost {
        let weights = match self {
            Self::Linear(linear) => return ImplicitGemm::from(linear).cost(shapes),
            Self::Conv2d(conv) => return ImplicitGemm::from(conv).cost(shapes),
            Self::Attention(attention) => return attention.cost(shapes),
            Self::GroupNorm { weight, bias, .. } | Self::LayerNorm { weight, bias, .. } => weight.len() + bias.len(),
            // Of both tables, the rows that are picked.
            Self::Embedding { .. } => 2 * shapes.len(),
            Self::PrependClassToken { positions, .. } => positions.len(),
            Self::Repeat { weight, .. } => weight.len(),
            _ => 0,
        };
        OpCost { weights, ..OpCost::default() }
    }
}

/// Joins the channels of two shapes that are otherwise equal.
fn infer_concat(first: &[usize], second: &[usize]) -> Inferred {
    let mut shape = first.to_vec();
    let n = shape.len();
    let fits = n == second.len() && first[..n - 1] == second[..n - 1];
    shape[n - 1] += second.last().unwrap_or(&0);
    Inferred::new(shape, fits, || format!("join {first:?} and {second:?}"))
}
