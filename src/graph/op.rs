//! The operations of a graph.

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

/// A matrix (`[N, K]`, as PyTorch stores `Linear`) or a convolution's kernel (`[O, I, kh, kw]`), with its bias `[N]`.
#[derive(Debug, Clone)]
pub struct LinearWeights {
    /// The matrix or kernel.
    pub weight: Weight,
    /// The bias, where there is one.
    pub bias: Option<Weight>,
}

/// A fully connected layer over the last dimension. Operands and result: see [`ImplicitGemm`].
#[derive(Debug, Clone)]
pub struct Linear {
    /// One for each group of output channels, joined in order.
    pub parts: Vec<LinearWeights>,
    /// Sources of `x`: 1 or 2.
    pub sources: usize,
    /// What is done to the sums before they are stored.
    pub epilogue: Epilogue,
}

/// A convolution over height and width. Operands and result: see [`ImplicitGemm`].
#[derive(Debug, Clone)]
pub struct Conv2d {
    /// The kernel and its bias.
    pub weights: LinearWeights,
    /// The geometry.
    pub params: Conv2dParams,
    /// Sources of `x`: 1 or 2.
    pub sources: usize,
    /// What is done to the sums before they are stored.
    pub epilogue: Epilogue,
}

/// What follows the sums of a [`Linear`] or [`Conv2d`]: `activation(sums + bias + per_image_bias) + residual`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Epilogue {
    /// Whether an operand `[B, C]` is added to every row of image b.
    pub per_image_bias: bool,
    /// What happens before the residual is added.
    pub activation: EpilogueActivation,
    /// Whether an operand of the result's shape is added last.
    pub residual: bool,
}

/// The activation in an [`Epilogue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EpilogueActivation {
    /// The identity.
    #[default]
    None,
    /// One value at a time.
    Pointwise(Activation),
    /// The first half of the channels times GELU of the second half; of a [`Linear`] of one part alone.
    Geglu,
}

/// A view of a [`Linear`] or a [`Conv2d`] as the multiplication of matrices that both are: a convolution's rows are the
/// pixels under its kernel, gathered on the way. `x` may come from two sources whose channels are joined.
///
/// Operands: the sources, then the per-image bias, then the residual, each where there is one.
#[derive(Debug, Clone, Copy)]
pub struct ImplicitGemm<'a> {
    /// One for each group of output channels, joined in order.
    pub parts: &'a [LinearWeights],
    /// How pixels are gathered; `None` for a fully connected layer.
    pub conv: Option<Conv2dParams>,
    /// Sources of `x`: 1 or 2.
    pub sources: usize,
    /// What is done to the sums before they are stored.
    pub epilogue: Epilogue,
}

impl ImplicitGemm<'_> {
    /// The number of the operand that is the per-image bias.
    pub fn per_image_bias(&self) -> Option<usize> {
        self.epilogue.per_image_bias.then_some(self.sources)
    }

    /// The number of the operand that is the residual.
    pub fn residual(&self) -> Option<usize> {
        self.epilogue.residual.then_some(self.sources + usize::from(self.epilogue.per_image_bias))
    }
}

/// The geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dParams {
    /// Side of the kernel.
    pub kernel: usize,
    /// Step.
    pub stride: usize,
    /// Zeros around the image.
    pub padding: usize,
    /// The image is first enlarged to this height and width by nearest neighbour.
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
    /// An operand `[.., B]` and the place in it where the weights of this branch begin: what the result of image b is
    /// multiplied by. A weight of 0 skips the branch.
    pub scale: Option<(usize, usize)>,
}

/// Attention of one query over branches that each have a softmax of their own: `sum_i scale_i softmax(q k_i^T / sqrt d) v_i`.
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
    /// Text first, then an image branch for each adapter.
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

impl Op {
    /// The operation as a multiplication of matrices, where it is one.
    pub fn implicit_gemm(&self) -> Option<ImplicitGemm<'_>> {
        match self {
            Self::Linear(Linear { parts, sources, epilogue }) => {
                Some(ImplicitGemm { parts, conv: None, sources: *sources, epilogue: *epilogue })
            }
            Self::Conv2d(Conv2d { weights, params, sources, epilogue }) => Some(ImplicitGemm {
                parts: std::slice::from_ref(weights),
                conv: Some(*params),
                sources: *sources,
                epilogue: *epilogue,
            }),
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
}
