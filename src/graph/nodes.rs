//! Nodes and the graph that they make.

use super::op::Op;
use super::op_info::{InputType, OpCost, OpLabel, OpShapes};
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// A node of a [`Graph`], by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) usize);

/// One operation with its operands and the shape of its result.
#[derive(Debug, Clone)]
pub struct Node {
    /// The operation.
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

/// A model as data for a device: see the module.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// In topological order.
    pub nodes: Vec<Node>,
    /// The tensors given at each run, by name, in the order of the bindings.
    pub inputs: Vec<(String, NodeId)>,
    /// The tensors kept of each run, by name, in the order of the bindings.
    pub outputs: Vec<(String, NodeId)>,
}

impl Graph {
    /// The node of that id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The rows of the first output, its first dimension; 1 where there is none.
    pub(crate) fn rows(&self) -> usize {
        self.outputs.first().map_or(1, |(_, id)| self.node(*id).shape[0])
    }

    /// Cuts one node out as a graph: each operand becomes an input, once where it is read twice, and the result the one
    /// output. For measurements and for finding out what one operation does.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn single(&self, id: NodeId) -> Self {
        self.excerpt(&[id])
    }

    /// The same of several nodes, in order: what the others give becomes inputs, and the last one's result the output.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn excerpt(&self, ids: &[NodeId]) -> Self {
        let mut alone = Self::default();
        let mut places: Vec<(NodeId, NodeId)> = Vec::new();
        for id in ids {
            let mut node = self.node(*id).clone();
            for operand in &mut node.inputs {
                let known = places.iter().find(|(from, _)| from == operand).map(|(_, to)| *to);
                let to = known.unwrap_or_else(|| {
                    let to = NodeId(alone.nodes.len());
                    let Node { shape, name, .. } = self.node(*operand).clone();
                    let op = Op::Input(self.element_type(*operand));
                    alone.nodes.push(Node { op, inputs: Vec::new(), shape, name: name.clone() });
                    alone.inputs.push((name, to));
                    places.push((*operand, to));
                    to
                });
                *operand = to;
            }
            let place = NodeId(alone.nodes.len());
            places.push((*id, place));
            alone.outputs = vec![(node.name.clone(), place)];
            alone.nodes.push(node);
        }
        alone
    }

    /// Every node with its id, in order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId(i), node))
    }

    /// The number of readers of each node, outputs included.
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

    /// The type of a node's elements: an input's is declared, also where it is reshaped; every result is f32.
    pub fn element_type(&self, id: NodeId) -> InputType {
        let node = self.node(id);
        match (&node.op, node.inputs.first()) {
            (Op::Input(declared), _) => *declared,
            (Op::Reshape, Some(operand)) => self.element_type(*operand),
            _ => InputType::F32,
        }
    }

    /// Refuses operations that read integers as floats or floats as integers, and integers as outputs.
    ///
    /// # Errors
    /// [`Error::Graph`] with the operation's name.
    pub(crate) fn check_types(&self) -> Result<()> {
        for node in &self.nodes {
            for (k, id) in node.inputs.iter().enumerate() {
                let (given, operand) = (self.element_type(*id), &self.node(*id).name);
                let other = if given == InputType::I32 { InputType::F32 } else { InputType::I32 };
                if node.op.reads(k, other) {
                    let name = &node.name;
                    return Err(Error::Graph(format!("`{name}` reads `{operand}` as {other}, which is {given}")));
                }
            }
        }
        match self.outputs.iter().find(|(_, id)| self.element_type(*id) != InputType::F32) {
            Some((name, id)) => {
                let input = &self.node(*id).name;
                Err(Error::Graph(format!("output `{name}` is `{input}` of i32; outputs are f32")))
            }
            None => Ok(()),
        }
    }

    /// Refuses bindings of other numbers, types or lengths than were declared; for the devices.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub(crate) fn check_bindings(
        &self,
        inputs: impl ExactSizeIterator<Item = (InputType, usize)>,
        outputs: &[&mut [f32]],
    ) -> Result<()> {
        self.check_inputs(inputs)?;
        self.check("output", &self.outputs, outputs.iter().map(|b| (InputType::F32, b.len())))
    }

    /// As [`Graph::check_bindings`], for inputs of these types and lengths alone.
    pub(crate) fn check_inputs(&self, bound: impl ExactSizeIterator<Item = (InputType, usize)>) -> Result<()> {
        self.check("input", &self.inputs, bound)
    }

    fn check(
        &self,
        kind: &str,
        declared: &[(String, NodeId)],
        bound: impl ExactSizeIterator<Item = (InputType, usize)>,
    ) -> Result<()> {
        if declared.len() != bound.len() {
            return Err(Error::Graph(format!("{} {kind}s declared, {} bound", declared.len(), bound.len())));
        }
        for ((name, id), (given, len)) in declared.iter().zip(bound) {
            let (wanted, shape) = (self.element_type(*id), &self.node(*id).shape);
            if wanted != given || self.node(*id).len() != len {
                let what = format!("{kind} `{name}` is {wanted} {shape:?}, bound to {len} values of {given}");
                return Err(Error::Graph(what));
            }
        }
        Ok(())
    }

    /// The shapes around a node of this graph.
    fn shapes<'a>(&'a self, node: &'a Node) -> OpShapes<'a> {
        OpShapes {
            operands: node.inputs.iter().map(|id| self.node(*id).shape.as_slice()).collect(),
            result: &node.shape,
            one_source: node.inputs.windows(2).all(|pair| pair[0] == pair[1]),
        }
    }

    /// The name of a node of this graph in tables and profiles; `None` where there is nothing to do.
    pub fn label(&self, node: &Node) -> Option<OpLabel> {
        node.op.label(&self.shapes(node))
    }

    /// The work of a node of this graph.
    pub fn cost(&self, node: &Node) -> OpCost {
        let operands: BTreeSet<_> = node.inputs.iter().collect();
        let operands: usize = operands.into_iter().map(|id| self.node(*id).len()).sum();
        OpCost { activations: operands + node.len(), ..node.op.cost(&self.shapes(node)) }
    }

    /// Multiplications with additions of a run: those of fully connected layers, convolutions and attention.
    pub fn macs(&self) -> u64 {
        self.nodes.iter().map(|node| self.cost(node).macs).sum()
    }
}
