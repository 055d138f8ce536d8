//! The places of a graph's bound tensors; `exec` decides them, the lowering of operations reads them.

use crate::graph::{Graph, NodeId};

/// The way in which a node reads an operand of floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperandRole {
    /// In the storage type.
    Storage,
    /// As f32.
    Float,
}

/// A row of a table of token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenCount {
    /// The same for every image.
    Fixed(i32),
    /// The graph's input of that number, `[B]`.
    Input(usize),
}

/// The places of an input: elements from the start of each block.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct InputBinding {
    /// In the f32 block and, where it is read so, in that of the storage type.
    pub(crate) float: Option<usize>,
    /// Whether it is converted to the storage type.
    pub(crate) storage: bool,
    /// Among the integers, where some node reads it as it is.
    pub(crate) integer: Option<usize>,
}

/// A table of token counts, `[rows, B]`, among the integers.
#[derive(Debug, Clone)]
pub(crate) struct TokenCounts {
    /// Its rows.
    pub(crate) rows: Vec<TokenCount>,
    /// Its columns.
    pub(crate) images: usize,
    /// Its place.
    pub(crate) at: usize,
}

/// The places of all bound tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bindings {
    /// See [`Graph::owners`].
    pub(crate) root: Vec<usize>,
    /// One for each input.
    pub(crate) inputs: Vec<InputBinding>,
    /// f32 elements of the inputs' block; the first `converted` are read in the storage type.
    pub(crate) floats: usize,
    /// See `floats`.
    pub(crate) converted: usize,
    /// Integers after the f32 block.
    pub(crate) integers: usize,
    /// Tables of token counts among the integers.
    pub(crate) counts: Vec<TokenCounts>,
    /// The place of each output, in elements from the start of the f32 block and of that of the storage type.
    pub(crate) outputs: Vec<usize>,
    /// Whether the node writes the f32 block itself.
    pub(crate) direct: Vec<bool>,
    /// Elements of the outputs' blocks; those of the first `returned` are converted, the rest is direct.
    pub(crate) results: usize,
    /// See `results`.
    pub(crate) returned: usize,
}

impl Bindings {
    /// The graph's input whose bytes a node shows.
    pub(crate) fn input_of(&self, graph: &Graph, id: NodeId) -> Option<usize> {
        graph.inputs.iter().position(|(_, input)| input.0 == self.root[id.0])
    }

    /// The place of a table of token counts among the integers.
    pub(crate) fn find_counts(&self, rows: &[TokenCount], images: usize) -> Option<usize> {
        self.counts.iter().find(|c| c.rows == rows && c.images == images).map(|c| c.at)
    }

    /// Bytes uploaded in each run.
    pub(crate) fn upload(&self) -> usize {
        (self.floats + self.integers) * 4
    }

    /// Bytes downloaded in each run.
    pub(crate) fn download(&self) -> usize {
        self.results * 4
    }
}
