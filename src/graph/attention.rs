//! Attention over one or several branches of keys and values.

use super::op_info::{Inferred, InputType, OpCost, OpLabel, OpShapes, channels, times, tokens};

/// Consecutive channels of an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelSlice {
    /// The number of the operand.
    pub operand: usize,
    /// The first channel.
    pub start: usize,
}

/// Keys and values that share one softmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvBranch {
    /// The keys.
    pub keys: ChannelSlice,
    /// The values.
    pub values: ChannelSlice,
    /// An operand `[B]` of integers: the number of tokens that count for image b; all of them where it is absent.
    pub length: Option<usize>,
    /// An operand `[.., B]` and the element from which on it holds the factors of this branch, one for the result of each
    /// image. A factor of 0 skips the branch.
    pub scale: Option<(usize, usize)>,
    /// An operand `[T]`: a factor for the result of each query, the same for every image.
    pub mask: Option<usize>,
}

impl KvBranch {
    /// Whether its softmax counts as it is.
    pub fn is_plain(&self) -> bool {
        self.scale.is_none() && self.mask.is_none()
    }
}

/// Attention of one query over branches that each have a softmax of their own: `sum_i scale_i mask_i softmax(q k_i^T / sqrt d) v_i`.
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
    /// Text first, then the image branches.
    pub branches: Vec<KvBranch>,
}

impl Attention {
    /// The shape of the queries.
    pub(super) fn infer(&self, operands: &[&[usize]]) -> Inferred {
        let shape = operands[0].to_vec();
        let images = &shape[..1];
        if let Some(length) = self.branches.iter().filter_map(|b| b.length).find(|&length| operands[length] != images) {
            let problem = format!("lengths {:?} for the images of {shape:?}", operands[length]);
            return Inferred::new(shape, false, || problem);
        }
        let queries = [tokens(&shape)];
        if let Some(mask) = self.branches.iter().filter_map(|b| b.mask).find(|&mask| operands[mask] != queries) {
            let problem = format!("a mask {:?} for the queries of {shape:?}", operands[mask]);
            return Inferred::new(shape, false, || problem);
        }
        let fits = self.heads > 0 && channels(&shape).is_multiple_of(self.heads);
        Inferred::new(shape, fits, || format!("{} heads over {:?}", self.heads, operands[0]))
    }

    /// Whether an operand is read as elements of that type: lengths are integers.
    pub(super) fn reads(&self, operand: usize, as_type: InputType) -> bool {
        let any = |read: &dyn Fn(&KvBranch) -> bool| self.branches.iter().any(read);
        match as_type {
            InputType::I32 => any(&|branch| branch.length == Some(operand)),
            InputType::F32 => {
                self.query.operand == operand
                    || any(&|branch| [branch.keys.operand, branch.values.operand].contains(&operand))
                    || any(&|branch| branch.scale.is_some_and(|(scales, _)| scales == operand))
                    || any(&|branch| branch.mask == Some(operand))
            }
        }
    }

    /// Tokens of each branch.
    fn keys(&self, shapes: &OpShapes<'_>) -> Vec<usize> {
        self.branches.iter().map(|branch| tokens(shapes.operands[branch.keys.operand])).collect()
    }

    pub(super) fn label(&self, shapes: &OpShapes<'_>) -> OpLabel {
        let keys: Vec<_> = self.keys(shapes).iter().map(usize::to_string).collect();
        let result = times(&[shapes.result[0], tokens(shapes.result), channels(shapes.result)]);
        let mut details = vec![format!("{} heads of {}", self.heads, self.dim)];
        if shapes.one_source {
            details.push("one source".into());
        }
        if self.causal {
            details.push("causal".into());
        }
        let kind = if self.branches.len() > 1 { "decoupled attention" } else { "attention" };
        OpLabel { kind, shape: format!("{result} over {}", keys.join("+")), details: details.join(", ") }
    }

    /// The cost without that of moving the activations.
    pub(super) fn cost(&self, shapes: &OpShapes<'_>) -> OpCost {
        let (rows, width) = (shapes.rows(), (self.heads * self.dim) as u64);
        OpCost {
            macs: self.keys(shapes).iter().map(|keys| 2 * rows as u64 * *keys as u64 * width).sum(),
            accumulators: rows * self.heads,
            ..OpCost::default()
        }
    }
}
