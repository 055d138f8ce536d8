//! How the tensors that a caller gives and takes, all f32, lie on the device.
//!
//! All inputs go up in one copy and all outputs come back in one. What kernels read in the storage type is converted by one
//! launch for all inputs: the f32 block and the block of the storage type have the same order. Indices and lengths become
//! integers on their way.

use crate::device::LoopSteps;
use crate::device::cuda::lower::{int, product};
use crate::error::{Error, Result};
use crate::graph::{Graph, Location, MemoryPlan, Node, NodeId, Op};

/// Elements to which every tensor is aligned: 64 bytes of f32, 32 of a 16-bit type.
const ALIGN: usize = 16;

/// How a node reads an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperandRole {
    /// In the storage type.
    Storage,
    /// As f32.
    Float,
    /// As integers of 32 bits.
    Integer,
    /// As a row of a table of counts.
    Count,
}

/// How `node` reads operand `k`.
fn read(graph: &Graph, node: &Node, k: usize) -> OperandRole {
    match &node.op {
        Op::TimestepEmbedding { .. } => OperandRole::Float,
        op if k == 0 && op.implicit_gemm().is_some_and(|gemm| product::is_patches(graph, node, gemm)) => {
            OperandRole::Float
        }
        Op::Embedding { .. } => OperandRole::Integer,
        Op::Gather if k == 1 => OperandRole::Integer,
        Op::Attention(a) if a.branches.iter().any(|s| s.length == Some(k)) => OperandRole::Count,
        Op::Attention(a) if a.branches.iter().any(|s| s.scale.is_some_and(|(operand, _)| operand == k)) => {
            OperandRole::Float
        }
        _ => OperandRole::Storage,
    }
}

/// That a node cannot find its operand by the step's number.
fn varies(node: &Node) -> Error {
    Error::Graph(format!("`{}` on CUDA reads an input that varies from step to step", node.name))
}

/// A row of a table of counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenCount {
    /// The same for every image.
    Fixed(i32),
    /// The graph's input of that number, `[B]`.
    Input(usize),
}

/// Where an input lies: elements from the start of its block.
#[derive(Debug, Clone, Copy, Default)]
pub struct InputBinding {
    /// In the f32 block and, where it is read so, in that of the storage type.
    pub float: Option<usize>,
    /// Whether it is converted.
    pub storage: bool,
    /// Among the integers.
    pub integer: Option<usize>,
    /// Among those that vary from step to step: all steps' values, one after the other.
    pub varying: Option<usize>,
}

/// A table of counts, `[rows, B]`, among the integers.
#[derive(Debug, Clone)]
pub struct TokenCounts {
    rows: Vec<TokenCount>,
    images: usize,
    at: usize,
}

/// The places of all bound tensors.
#[derive(Debug, Clone, Default)]
pub struct Bindings {
    /// See [`Graph::owners`].
    pub root: Vec<usize>,
    /// One for each input.
    pub inputs: Vec<InputBinding>,
    /// f32 elements of the inputs' block; the first `converted` are read in the storage type.
    pub floats: usize,
    /// See `floats`.
    pub converted: usize,
    /// Integers after the f32 block.
    pub integers: usize,
    /// Elements of the inputs that vary from step to step, of all steps.
    pub varying: usize,
    counts: Vec<TokenCounts>,
    /// Where each output lies, in elements from the start of the f32 block and of that of the storage type.
    pub outputs: Vec<usize>,
    /// Whether the node writes the f32 block itself.
    pub direct: Vec<bool>,
    /// Elements of the outputs' blocks; those of the first `returned` are converted, the rest is direct.
    pub results: usize,
    /// See `results`.
    pub returned: usize,
}

impl Bindings {
    /// Finds out how every bound tensor is used and gives it its places.
    ///
    /// # Errors
    /// Indices or lengths that are computed within the graph; inputs that vary with `steps` and are read otherwise than as
    /// the rows of a product.
    pub fn new(graph: &Graph, plan: &MemoryPlan, steps: Option<&LoopSteps>) -> Result<Self> {
        let inputs = vec![InputBinding::default(); graph.inputs.len()];
        let mut bindings = Self { inputs, root: graph.owners(), ..Self::default() };
        // Reads of each owner that are no reshape, outputs included.
        let mut readers = vec![0usize; graph.nodes.len()];
        let (mut float, mut integer) = (vec![false; graph.inputs.len()], vec![false; graph.inputs.len()]);
        for node in graph.nodes.iter().filter(|node| !matches!(node.op, Op::Reshape)) {
            for (k, id) in node.inputs.iter().enumerate() {
                let owner = bindings.root[id.0];
                readers[owner] += 1;
                let given = bindings.input_of(graph, *id);
                if given.is_some_and(|input| steps.is_some_and(|s| s.varying.contains(&input))) {
                    let Some(p) = node.op.implicit_gemm() else { return Err(varies(node)) };
                    if product::rows_at(graph, node, p) != Some(k) {
                        return Err(varies(node));
                    }
                    continue;
                }
                match (read(graph, node, k), given) {
                    (OperandRole::Storage, Some(input)) => bindings.inputs[input].storage = true,
                    (OperandRole::Float, Some(input)) => float[input] = true,
                    (OperandRole::Integer, Some(input)) => integer[input] = true,
                    (OperandRole::Count, Some(_)) | (OperandRole::Storage | OperandRole::Float, None) => {}
                    (OperandRole::Integer | OperandRole::Count, None) => {
                        return Err(Error::Graph(format!(
                            "`{}` reads indices or lengths that are no input",
                            node.name
                        )));
                    }
                }
            }
        }
        for (_, id) in &graph.outputs {
            readers[bindings.root[id.0]] += 1;
            if let Some(input) = bindings.input_of(graph, *id) {
                float[input] = true;
            }
        }
        bindings.place_inputs(graph, &float, &integer);
        if let Some(steps) = steps {
            for k in steps.varying.clone() {
                let len = graph.inputs.get(k).map_or(0, |(_, id)| graph.node(*id).len());
                bindings.inputs[k].varying = Some(bindings.varying);
                bindings.varying += (steps.max_steps * len).next_multiple_of(ALIGN);
            }
        }
        bindings.place_counts(graph);
        bindings.place_outputs(graph, plan, &readers);
        Ok(bindings)
    }

    /// The graph's input whose bytes a node shows.
    pub fn input_of(&self, graph: &Graph, id: NodeId) -> Option<usize> {
        graph.inputs.iter().position(|(_, input)| input.0 == self.root[id.0])
    }

    fn place_inputs(&mut self, graph: &Graph, float: &[bool], integer: &[bool]) {
        let len = |k: usize| graph.node(graph.inputs[k].1).len().next_multiple_of(ALIGN);
        for storage in [true, false] {
            for (k, input) in self.inputs.iter_mut().enumerate() {
                if input.storage == storage && (storage || float[k]) {
                    input.float = Some(self.floats);
                    self.floats += len(k);
                }
            }
            if storage {
                self.converted = self.floats;
            }
        }
        for (k, input) in self.inputs.iter_mut().enumerate().filter(|(k, _)| integer[*k]) {
            input.integer = Some(self.integers);
            self.integers += len(k);
        }
    }

    /// Tables of counts: one for all attentions that count alike.
    fn place_counts(&mut self, graph: &Graph) {
        for node in &graph.nodes {
            let Op::Attention(_) = &node.op else { continue };
            let Some(rows) = self.counts_of(graph, node) else { continue };
            let images = node.shape[0];
            if self.find(&rows, images).is_none() {
                let len = (rows.len() * images).next_multiple_of(ALIGN);
                self.counts.push(TokenCounts { rows, images, at: self.integers });
                self.integers += len;
            }
        }
    }

    /// The rows of counts that an attention needs; none where every token counts and no weight is asked for.
    pub fn counts_of(&self, graph: &Graph, node: &Node) -> Option<Vec<TokenCount>> {
        let Op::Attention(a) = &node.op else { return None };
        if let [strand] = a.branches.as_slice()
            && strand.scale.is_none()
        {
            let length = strand.length?;
            return Some(vec![TokenCount::Input(self.input_of(graph, node.inputs[length])?)]);
        }
        // The kernel's first strand has no weight of its own: an empty one goes before a first strand that has.
        let mut rows = Vec::new();
        if a.branches.first().is_some_and(|s| s.scale.is_some()) {
            rows.push(TokenCount::Fixed(0));
        }
        for strand in &a.branches {
            rows.push(match strand.length {
                Some(operand) => TokenCount::Input(self.input_of(graph, node.inputs[operand])?),
                None => TokenCount::Fixed(int(graph.node(node.inputs[strand.keys.operand]).tokens())),
            });
        }
        Some(rows)
    }

    /// Where that table begins among the integers.
    pub fn find(&self, rows: &[TokenCount], images: usize) -> Option<usize> {
        self.counts.iter().find(|c| c.rows == rows && c.images == images).map(|c| c.at)
    }

    fn place_outputs(&mut self, graph: &Graph, plan: &MemoryPlan, readers: &[usize]) {
        self.outputs = vec![0; graph.outputs.len()];
        self.direct = vec![false; graph.outputs.len()];
        for (k, (_, id)) in graph.outputs.iter().enumerate() {
            let owner = self.root[id.0];
            let node = &graph.nodes[owner];
            self.direct[k] = match plan.locations[owner] {
                Location::Output(place) if place == k => {
                    readers[owner] == 1
                        && node.op.implicit_gemm().is_some_and(|gemm| product::writes_f32(graph, node, gemm))
                }
                // A copy of an input, or of a result that another output holds.
                Location::Input(_) => true,
                _ => false,
            };
        }
        for direct in [false, true] {
            for (k, (_, id)) in graph.outputs.iter().enumerate() {
                if self.direct[k] == direct {
                    self.outputs[k] = self.results;
                    self.results += graph.node(*id).len().next_multiple_of(ALIGN);
                }
            }
            if !direct {
                self.returned = self.results;
            }
        }
    }

    /// Bytes that go up with each run.
    pub fn upload(&self) -> usize {
        (self.floats + self.integers) * 4
    }

    /// Bytes that come back with each run.
    pub fn download(&self) -> usize {
        self.results * 4
    }

    /// Lays the given tensors out as they go up.
    pub fn write(&self, given: &[&[f32]], to: &mut [u8]) {
        let float = |to: &mut [u8], at: usize, values: &[f32]| {
            to[at * 4..][..values.len() * 4].copy_from_slice(bytemuck::cast_slice(values));
        };
        // Saturating: a value that is no index becomes one that the kernels clamp.
        let integer = |to: &mut [u8], at: usize, values: &mut dyn Iterator<Item = i32>| {
            for (place, value) in to[(self.floats + at) * 4..].chunks_exact_mut(4).zip(values) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        };
        for (input, values) in self.inputs.iter().zip(given) {
            if let Some(at) = input.float {
                float(to, at, values);
            }
            if let Some(at) = input.integer {
                integer(to, at, &mut values.iter().map(|v| *v as i32));
            }
        }
        for table in &self.counts {
            for (r, row) in table.rows.iter().enumerate() {
                let at = table.at + r * table.images;
                match row {
                    TokenCount::Fixed(n) => integer(to, at, &mut std::iter::repeat_n(*n, table.images)),
                    TokenCount::Input(k) => {
                        integer(to, at, &mut given[*k].iter().take(table.images).map(|v| *v as i32))
                    }
                }
            }
        }
    }

    /// Reads the outputs out of what came back.
    pub fn read(&self, from: &[u8], taken: &mut [&mut [f32]]) {
        for (at, values) in self.outputs.iter().zip(taken) {
            let bytes = &from[at * 4..][..values.len() * 4];
            bytemuck::cast_slice_mut::<f32, u8>(values).copy_from_slice(bytes);
        }
    }
}
