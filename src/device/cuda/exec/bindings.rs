//! Decides where the tensors that a caller gives and takes, all f32, lie on the device, and lays them out.
//!
//! All inputs go up in one copy and all outputs come back in one. What kernels read in the storage type is converted by one
//! launch for all inputs: the f32 block and the block of the storage type have the same order. Indices and lengths become
//! integers on their way.

use crate::device::LoopSpec;
use crate::device::cuda::ops::bindings::{Bindings, InputBinding, OperandRole, TokenCount, TokenCounts};
use crate::device::cuda::ops::registry::lowering_of;
use crate::error::{Error, Result};
use crate::graph::{Graph, Location, MemoryPlan, Node, Op};

/// Elements to which every tensor is aligned: 64 bytes of f32, 32 of a 16-bit type.
const ALIGN: usize = 16;

/// The error that a node cannot find its operand by the step's number.
fn varies(node: &Node) -> Error {
    Error::Graph(format!("`{}` on CUDA reads an input that varies from step to step", node.name))
}

/// The readers of a graph's tensors.
struct Readers {
    /// Reads of each owner that are no reshape, outputs included.
    counts: Vec<usize>,
    /// The inputs that are read as f32.
    float: Vec<bool>,
    /// The inputs that are read as integers.
    integer: Vec<bool>,
}

impl Bindings {
    /// Finds out how every bound tensor is read and gives it its places.
    ///
    /// # Errors
    /// Indices or lengths that are computed within the graph; inputs that vary with `steps` and are read otherwise than as
    /// the per-image bias of a product.
    pub(crate) fn new(graph: &Graph, plan: &MemoryPlan, steps: Option<&LoopSpec>) -> Result<Self> {
        let inputs = vec![InputBinding::default(); graph.inputs.len()];
        let mut bindings = Self { inputs, root: graph.owners(), ..Self::default() };
        let readers = bindings.find_readers(graph, steps)?;
        bindings.place_inputs(graph, &readers.float, &readers.integer);
        if let Some(steps) = steps {
            for k in steps.varying.clone() {
                let len = graph.inputs.get(k).map_or(0, |(_, id)| graph.node(*id).len());
                bindings.inputs[k].varying = Some(bindings.varying);
                bindings.varying += (steps.max_steps * len).next_multiple_of(ALIGN);
            }
        }
        bindings.place_counts(graph);
        bindings.place_outputs(graph, plan, &readers.counts);
        Ok(bindings)
    }

    fn find_readers(&mut self, graph: &Graph, steps: Option<&LoopSpec>) -> Result<Readers> {
        let (float, integer) = (vec![false; graph.inputs.len()], vec![false; graph.inputs.len()]);
        let mut readers = Readers { counts: vec![0; graph.nodes.len()], float, integer };
        for node in graph.nodes.iter().filter(|node| !matches!(node.op, Op::Reshape)) {
            for (k, id) in node.inputs.iter().enumerate() {
                readers.counts[self.root[id.0]] += 1;
                let given = self.input_of(graph, *id);
                let op = lowering_of(&node.op);
                if given.is_some_and(|input| steps.is_some_and(|s| s.varying.contains(&input))) {
                    if op.and_then(|op| (op.varying_operand)(graph, node)) != Some(k) {
                        return Err(varies(node));
                    }
                    continue;
                }
                let role = op.map_or(OperandRole::Storage, |op| (op.operand_role)(graph, node, k));
                match (role, given) {
                    (OperandRole::Storage, Some(input)) => self.inputs[input].storage = true,
                    (OperandRole::Float, Some(input)) => readers.float[input] = true,
                    (OperandRole::Integer, Some(input)) => readers.integer[input] = true,
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
            readers.counts[self.root[id.0]] += 1;
            if let Some(input) = self.input_of(graph, *id) {
                readers.float[input] = true;
            }
        }
        Ok(readers)
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
            let rows = lowering_of(&node.op).and_then(|op| (op.token_counts)(self, graph, node));
            let Some(rows) = rows else { continue };
            let images = node.shape[0];
            if self.find_counts(&rows, images).is_none() {
                let len = (rows.len() * images).next_multiple_of(ALIGN);
                self.counts.push(TokenCounts { rows, images, at: self.integers });
                self.integers += len;
            }
        }
    }

    fn place_outputs(&mut self, graph: &Graph, plan: &MemoryPlan, readers: &[usize]) {
        self.outputs = vec![0; graph.outputs.len()];
        self.direct = vec![false; graph.outputs.len()];
        for (k, (_, id)) in graph.outputs.iter().enumerate() {
            let owner = self.root[id.0];
            let node = &graph.nodes[owner];
            self.direct[k] = match plan.locations[owner] {
                Location::Output(place) if place == k => {
                    readers[owner] == 1 && lowering_of(&node.op).is_some_and(|op| (op.writes_f32)(graph, node))
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

    /// Lays the given tensors out as they go up.
    pub(crate) fn write(&self, given: &[&[f32]], to: &mut [u8]) {
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
    pub(crate) fn read(&self, from: &[u8], taken: &mut [&mut [f32]]) {
        for (at, values) in self.outputs.iter().zip(taken) {
            let bytes = &from[at * 4..][..values.len() * 4];
            bytemuck::cast_slice_mut::<f32, u8>(values).copy_from_slice(bytes);
        }
    }
}
