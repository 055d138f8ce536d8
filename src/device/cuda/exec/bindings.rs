//! Places the tensors that a caller gives and takes on the device, and lays them out.
//!
//! All inputs are uploaded in one copy and all outputs downloaded in one. What kernels read in the storage type is converted by one
//! launch for all inputs: the f32 block and the block of the storage type have the same order. Integers follow the f32 block.

use crate::device::TensorData;
use crate::device::cuda::ops::bindings::{Bindings, InputBinding, OperandRole, TokenCount, TokenCounts};
use crate::device::cuda::ops::registry::lowering_of;
use crate::graph::{Graph, InputType, Location, MemoryPlan, Op};

/// Elements to which every tensor is aligned: 64 bytes of f32, 32 of a 16-bit type.
const ALIGN: usize = 16;

/// The readers of a graph's tensors.
struct Readers {
    /// Reads of each owner that are no reshape, outputs included.
    counts: Vec<usize>,
    /// The inputs that are read as f32.
    float: Vec<bool>,
    /// The inputs of integers that are read as they are: not only as a row of a table of counts.
    integer: Vec<bool>,
}

impl Bindings {
    /// Finds out how every bound tensor is read and gives it its places.
    pub(crate) fn new(graph: &Graph, plan: &MemoryPlan) -> Self {
        let inputs = vec![InputBinding::default(); graph.inputs.len()];
        let mut bindings = Self { inputs, root: graph.owners(), ..Self::default() };
        let readers = bindings.find_readers(graph);
        bindings.place_inputs(graph, &readers.float, &readers.integer);
        bindings.place_counts(graph);
        bindings.place_outputs(graph, plan, &readers.counts);
        bindings
    }

    fn find_readers(&mut self, graph: &Graph) -> Readers {
        let (float, integer) = (vec![false; graph.inputs.len()], vec![false; graph.inputs.len()]);
        let mut readers = Readers { counts: vec![0; graph.nodes.len()], float, integer };
        for node in graph.nodes.iter().filter(|node| !matches!(node.op, Op::Reshape)) {
            for (k, id) in node.inputs.iter().enumerate() {
                readers.counts[self.root[id.0]] += 1;
                let Some(input) = self.input_of(graph, *id) else { continue };
                let op = lowering_of(&node.op);
                if graph.element_type(*id) == InputType::I32 {
                    let counts = op.is_some_and(|op| (op.token_counts)(self, graph, node).is_some());
                    readers.integer[input] |= !counts && node.op.reads(k, InputType::I32);
                    continue;
                }
                match op.map_or(OperandRole::Storage, |op| (op.operand_role)(graph, node, k)) {
                    OperandRole::Storage => self.inputs[input].storage = true,
                    OperandRole::Float => readers.float[input] = true,
                }
            }
        }
        for (_, id) in &graph.outputs {
            readers.counts[self.root[id.0]] += 1;
            if let Some(input) = self.input_of(graph, *id) {
                readers.float[input] = true;
            }
        }
        readers
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

    /// Lays out the given tensors for the upload.
    pub(crate) fn write(&self, given: &[TensorData<'_>], to: &mut [u8]) {
        let mut write = |at: usize, bytes: &[u8]| to[at * 4..][..bytes.len()].copy_from_slice(bytes);
        for (input, values) in self.inputs.iter().zip(given) {
            if let Some(at) = input.float.or(input.integer.map(|at| self.floats + at)) {
                write(at, values.bytes());
            }
        }
        for table in &self.counts {
            for (r, row) in table.rows.iter().enumerate() {
                let at = self.floats + table.at + r * table.images;
                match row {
                    TokenCount::Fixed(n) => write(at, bytemuck::cast_slice(&vec![*n; table.images])),
                    TokenCount::Input(k) => {
                        let bytes = given[*k].bytes();
                        write(at, &bytes[..bytes.len().min(4 * table.images)]);
                    }
                }
            }
        }
    }

    /// Reads the outputs out of the downloaded bytes.
    pub(crate) fn read(&self, from: &[u8], taken: &mut [&mut [f32]]) {
        for (at, values) in self.outputs.iter().zip(taken) {
            let bytes = &from[at * 4..][..values.len() * 4];
            bytemuck::cast_slice_mut::<f32, u8>(values).copy_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, ChannelSlice, KvBranch};
    use crate::weights::{Scope, Weights};

    /// A graph of ids, and of the tokens of each of two images that count.
    fn graph() -> Graph {
        let weights = Scope::new(Weights::new("none"));
        let mut b = Builder::new();
        let (x, ids, length) = (b.input("x", &[2, 3, 8]), b.input_i32("ids", &[2, 3]), b.input_i32("length", &[2]));
        let rows = b.embedding(ids, vec![weights.get("table", &[1 << 25, 8])], weights.get("positions", &[3, 8]));
        let slice = |operand| ChannelSlice { operand, start: 0 };
        let branch = KvBranch { keys: slice(1), values: slice(1), length: Some(2), scale: None, mask: None };
        let y = b.decoupled_attention(&[x, rows, length], 1, false, vec![branch]);
        b.output("y", y);
        b.finish().unwrap()
    }

    #[test]
    fn integers_are_written_as_given() {
        let graph = graph();
        let bindings = Bindings::new(&graph, &MemoryPlan::new(&graph));
        // No f32 holds the first.
        let (x, ids, length) = (vec![0.5; 48], [(1 << 24) + 1, -1, 0, 1, 2, i32::MAX], [3, 2]);
        let mut up = vec![0; bindings.upload()];
        bindings.write(&[x.into(), (&ids).into(), (&length).into()], &mut up);
        let read = |at: usize, len: usize| -> Vec<i32> {
            let bytes = &up[(bindings.floats + at) * 4..][..len * 4];
            bytes.chunks(4).map(|four| i32::from_ne_bytes(four.try_into().unwrap())).collect()
        };
        assert_eq!(read(bindings.inputs[1].integer.unwrap(), 6), ids);
        // The lengths are a row of a table, and are not there again.
        assert_eq!(read(bindings.find_counts(&[TokenCount::Input(2)], 2).unwrap(), 2), length);
        assert!(bindings.inputs[2].integer.is_none() && bindings.integers == 2 * ALIGN);
        assert_eq!((bindings.floats, bindings.converted), (48, 48));
    }
}
