//! The facts that every operation states about itself: the types that it reads, the shape of its result, a label, its cost.

/// The type of an input's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputType {
    /// IEEE binary32.
    F32,
    /// Signed integers of 32 bits: token ids, indices, counts.
    I32,
}

impl std::fmt::Display for InputType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::I32 => "i32",
        })
    }
}

/// The shapes around an operation.
#[derive(Debug, Clone)]
pub struct OpShapes<'a> {
    /// The shapes of the operands, in order.
    pub operands: Vec<&'a [usize]>,
    /// The shape of the result.
    pub result: &'a [usize],
    /// Whether all operands are one tensor.
    pub one_source: bool,
}

impl OpShapes<'_> {
    /// Elements of the result.
    pub(super) fn len(&self) -> usize {
        self.result.iter().product()
    }

    /// Rows of the result: its elements divided by its channels.
    pub(super) fn rows(&self) -> usize {
        self.len() / channels(self.result).max(1)
    }

    /// The channels of the first `count` operands as `a+b in`.
    pub(super) fn sources(&self, count: usize) -> String {
        let widths: Vec<_> = self.operands.iter().take(count).map(|shape| channels(shape).to_string()).collect();
        widths.join("+") + " in"
    }

    /// `operand > result`, for operations that change more than values.
    pub(super) fn arrow(&self) -> String {
        format!("{} > {}", times(self.operands.first().unwrap_or(&&[][..])), times(self.result))
    }
}

/// The last dimension.
pub(super) fn channels(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// The product of the dimensions between the first and the last: pixels or tokens of one image.
pub(super) fn tokens(shape: &[usize]) -> usize {
    shape.get(1..shape.len().saturating_sub(1)).unwrap_or_default().iter().product()
}

/// A shape as `2x77x768`.
pub(super) fn times(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// The result of a shape rule. There is a shape even where the operands do not fit, so that a builder can go on to the end
/// of a model and report the first problem there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inferred {
    /// The shape of the result.
    pub shape: Vec<usize>,
    /// The reason why the operands do not fit; `None` where they do.
    pub problem: Option<String>,
}

impl Inferred {
    /// A result of `shape`, with a problem unless `fits`.
    pub(super) fn new(shape: Vec<usize>, fits: bool, problem: impl FnOnce() -> String) -> Self {
        Self { shape, problem: (!fits).then(problem) }
    }
}

impl From<Vec<usize>> for Inferred {
    fn from(shape: Vec<usize>) -> Self {
        Self { shape, problem: None }
    }
}

/// A short description of an operation, for tables and profiles. Operations with equal labels do equal work.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OpLabel {
    /// The operation.
    pub kind: &'static str,
    /// `rows x columns x sum` of a fully connected layer, `operand > result` of a convolution, else the result's shape.
    pub shape: String,
    /// Everything else that distinguishes it, comma-separated.
    pub details: String,
}

/// The work of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpCost {
    /// Multiplications, each with its addition; those of fully connected layers, convolutions and attention count.
    pub macs: u64,
    /// Elements of operands and result, each distinct one once.
    pub activations: usize,
    /// Elements of weights that are read; of a table, those that are picked.
    pub weights: usize,
    /// Of fully connected layers and convolutions, the elements of the result before GEGLU; of attention, its queries
    /// times its heads.
    pub accumulators: usize,
}

impl OpCost {
    /// Floating-point operations, two for each multiplication with its addition.
    pub fn flops(&self) -> f64 {
        2.0 * self.macs as f64
    }

    /// Bytes that must move where nothing is read twice, for elements of these sizes in bytes.
    pub fn bytes(&self, activation: usize, weight: usize) -> f64 {
        (self.activations * activation + self.weights * weight) as f64
    }
}
