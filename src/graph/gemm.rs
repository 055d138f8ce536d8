//! Fully connected layers and convolutions: multiplications of matrices with one epilogue.

use super::op_info::{Inferred, OpCost, OpLabel, OpShapes, channels, times};
use crate::weights::Weight;
use crate::weights::lora::LowRank;

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

impl Activation {
    /// Its name in labels.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::QuickGelu => "quick gelu",
        }
    }
}

/// A matrix (`[N, K]`, as PyTorch stores `Linear`) or a convolution's kernel (`[O, I, kh, kw]`), with its bias `[N]`.
#[derive(Debug, Clone)]
pub struct LinearWeights {
    /// The matrix or kernel.
    pub weight: Weight,
    /// The bias, where there is one.
    pub bias: Option<Weight>,
    /// The low-rank updates of the matrix or kernel. The operand of [`ImplicitGemm::low_rank`] holds what the right factors
    /// make of `x`, scaled; the left factors multiply it here.
    pub low_rank: Option<LowRank>,
    /// Whether a device that quantizes may quantize the matrix or kernel.
    pub quantizable: bool,
}

impl From<Weight> for LinearWeights {
    /// A matrix or a kernel alone.
    fn from(weight: Weight) -> Self {
        Self { weight, bias: None, low_rank: None, quantizable: false }
    }
}

/// A fully connected layer over the last dimension. Operands and result: see [`ImplicitGemm`].
#[derive(Debug, Clone)]
pub struct Linear {
    /// One for each group of output channels, joined in order.
    pub parts: Vec<LinearWeights>,
    /// Sources of `x`: 1 or 2.
    pub sources: usize,
    /// The operations on the sums before they are stored.
    pub epilogue: Epilogue,
}

impl Linear {
    /// `[.., C]` to `[.., outputs of all parts]`.
    pub(super) fn infer(&self, operands: &[&[usize]]) -> Inferred {
        let mut shape = operands[0].to_vec();
        let k = shape.pop().unwrap_or(0);
        shape.push(self.parts.iter().map(|p| p.weight.shape()[0]).sum());
        let fits = self.parts.iter().all(|p| p.weight.shape().get(1) == Some(&k))
            && ImplicitGemm::from(self).low_rank_fits(operands);
        Inferred::new(shape, fits, || {
            let weights: Vec<_> = self.parts.iter().map(|p| p.weight.shape()).collect();
            format!("linear {weights:?} on {:?}", operands[0])
        })
    }
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
    /// The operations on the sums before they are stored.
    pub epilogue: Epilogue,
}

impl Conv2d {
    /// `[N, H, W, C]` to `[N, H', W', outputs]`.
    pub(super) fn infer(&self, operands: &[&[usize]]) -> Inferred {
        let shape = operands[0];
        let Conv2dParams { kernel, stride, padding, .. } = self.params;
        let padding = padding.iter().sum::<usize>();
        let fits = shape.len() == 4
            && shape[1] + padding >= kernel
            && shape[2] + padding >= kernel
            && ImplicitGemm::from(self).low_rank_fits(operands);
        if !fits {
            let problem = Some(format!("convolution {} on {shape:?}", self.weights.weight.name()));
            return Inferred { shape: shape.to_vec(), problem };
        }
        let side = |d: usize| (d + padding - kernel) / stride + 1;
        vec![shape[0], side(shape[1]), side(shape[2]), self.weights.weight.shape()[0]].into()
    }
}

/// The end of a [`Linear`] or [`Conv2d`]: `activation(sums + bias + per_image_bias) + residual`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Epilogue {
    /// Whether an operand `[B, C]` is added to every row of image b.
    pub per_image_bias: bool,
    /// Applied before the residual is added.
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
/// Operands: the sources, then the low-rank updates', then the per-image bias, then the residual, each where there is one.
#[derive(Debug, Clone, Copy)]
pub struct ImplicitGemm<'a> {
    /// One for each group of output channels, joined in order.
    pub parts: &'a [LinearWeights],
    /// The geometry by which pixels are gathered; `None` for a fully connected layer.
    pub conv: Option<Conv2dParams>,
    /// Sources of `x`: 1 or 2.
    pub sources: usize,
    /// The operations on the sums before they are stored.
    pub epilogue: Epilogue,
}

impl<'a> From<&'a Linear> for ImplicitGemm<'a> {
    fn from(Linear { parts, sources, epilogue }: &'a Linear) -> Self {
        Self { parts, conv: None, sources: *sources, epilogue: *epilogue }
    }
}

impl<'a> From<&'a Conv2d> for ImplicitGemm<'a> {
    fn from(Conv2d { weights, params, sources, epilogue }: &'a Conv2d) -> Self {
        let parts = std::slice::from_ref(weights);
        Self { parts, conv: Some(*params), sources: *sources, epilogue: *epilogue }
    }
}

impl ImplicitGemm<'_> {
    /// The number of the operand that the left factors of low-rank updates multiply: rows as of the result, the ranks of all
    /// parts side by side. Either all parts have updates, or none has.
    pub fn low_rank(&self) -> Option<usize> {
        self.parts.iter().any(|part| part.low_rank.is_some()).then_some(self.sources)
    }

    /// The number of the operand that is the per-image bias.
    pub fn per_image_bias(&self) -> Option<usize> {
        self.epilogue.per_image_bias.then_some(self.sources + usize::from(self.low_rank().is_some()))
    }

    /// The number of the operand that is the residual.
    pub fn residual(&self) -> Option<usize> {
        let before = usize::from(self.low_rank().is_some()) + usize::from(self.epilogue.per_image_bias);
        self.epilogue.residual.then_some(self.sources + before)
    }

    /// The ranks of all parts' updates.
    pub fn rank(&self) -> usize {
        self.parts.iter().filter_map(|part| part.low_rank.as_ref()).map(LowRank::rank).sum()
    }

    /// Whether all parts have updates, and the operand is as wide as their ranks; or none has.
    fn low_rank_fits(&self, operands: &[&[usize]]) -> bool {
        let Some(k) = self.low_rank() else { return true };
        let outputs = |part: &LinearWeights| part.weight.shape()[0];
        let fits = |part: &LinearWeights| {
            part.low_rank.as_ref().is_some_and(|l| l.up.iter().all(|up| up.shape()[0] == outputs(part)))
        };
        self.parts.iter().all(fits) && operands.get(k).is_some_and(|shape| channels(shape) == self.rank())
    }

    /// Whether nothing follows the product but its own bias.
    pub fn is_bare(&self) -> bool {
        self.epilogue == Epilogue::default() && self.low_rank().is_none()
    }

    /// Output channels before GEGLU.
    pub fn columns(&self) -> usize {
        self.parts.iter().map(|part| part.weight.shape().first().copied().unwrap_or(1)).sum()
    }

    /// Output channels.
    pub fn outputs(&self) -> usize {
        if self.epilogue.activation == EpilogueActivation::Geglu { self.columns() / 2 } else { self.columns() }
    }

    pub(super) fn label(&self, shapes: &OpShapes<'_>) -> OpLabel {
        let mut details = Vec::new();
        if let Some(conv) = self.conv {
            let resized = if conv.resize.is_some() { ", enlarged" } else { "" };
            details.push(format!("{0}x{0}/{1}{resized}", conv.kernel, conv.stride));
        }
        if self.sources > 1 {
            details.push(shapes.sources(self.sources));
        }
        if self.parts.iter().any(|part| part.bias.is_some()) {
            details.push("bias".into());
        }
        if self.parts.len() > 1 {
            details.push(format!("{} parts", self.parts.len()));
        }
        if self.low_rank().is_some() {
            details.push(format!("rank {}", self.rank()));
        }
        if self.epilogue.per_image_bias {
            details.push(format!("bias of {} images", shapes.result[0]));
        }
        if let EpilogueActivation::Pointwise(activation) = self.epilogue.activation {
            details.push(activation.name().into());
        }
        if self.epilogue.residual {
            details.push("residual".into());
        }
        let details = details.join(", ");
        if self.conv.is_some() {
            return OpLabel { kind: "convolution", shape: shapes.arrow(), details };
        }
        let sum = self.parts.first().map_or(0, |part| part.weight.len() / part.weight.shape()[0].max(1));
        let geglu = self.epilogue.activation == EpilogueActivation::Geglu;
        let kind = if geglu { "linear with GEGLU" } else { "linear" };
        OpLabel { kind, shape: times(&[shapes.rows(), self.columns(), sum]), details }
    }

    /// The cost without that of moving the activations.
    pub(super) fn cost(&self, shapes: &OpShapes<'_>) -> OpCost {
        let rows = shapes.rows();
        let ups = |part: &LinearWeights| part.low_rank.iter().flat_map(|l| &l.up).map(Weight::len).sum::<usize>();
        let all = |part: &LinearWeights| part.weight.len() + part.bias.as_ref().map_or(0, Weight::len) + ups(part);
        OpCost {
            macs: self.parts.iter().map(|part| rows as u64 * (part.weight.len() + ups(part)) as u64).sum(),
            weights: self.parts.iter().map(all).sum(),
            accumulators: rows * self.columns(),
            ..OpCost::default()
        }
    }
}

/// The geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dParams {
    /// Side of the kernel.
    pub kernel: usize,
    /// Pixels from one place of the kernel to the next.
    pub stride: usize,
    /// Zeros before the image's first row and column, and after its last ones.
    pub padding: [usize; 2],
    /// The image is first enlarged to this height and width by nearest neighbour.
    pub resize: Option<(usize, usize)>,
}
