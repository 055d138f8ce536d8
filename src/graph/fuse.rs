//! Fusion: passes that turn a graph as a model writes it into one with fewer and larger nodes, same results.

use super::attention::ChannelSlice;
use super::gemm::{
    Activation, Conv2d, Conv2dParams, Epilogue, EpilogueActivation, ImplicitGemm, Linear, LinearWeights,
};
use super::nodes::{Graph, Node, NodeId};
use super::op::Op;
use crate::weights::lora::LowRank;
use std::collections::HashMap;

/// Runs every pass and drops the nodes that nothing reads any more.
///
/// - SiLU into the GroupNorm before it; activations, GEGLU, per-image biases and residuals into the fully connected layer
///   or convolution before them
/// - nearest upsample into the convolution after it
/// - a concatenation that only group norms, fully connected layers and convolutions read is read in place from its two
///   sources
/// - fully connected layers over one operand that only attention reads (q, k, v) become one
pub fn fuse(mut graph: Graph) -> Graph {
    join_concats(&mut graph);
    let mut uses = graph.uses();
    for i in 0..graph.nodes.len() {
        if let Some(node) = absorbed(&graph, i, &uses) {
            graph.nodes[i] = node;
            uses = graph.uses_of_live();
        }
    }
    merge_projections(&mut graph);
    sweep(graph)
}

/// A node that may do the work of an operand along with its own.
struct Site<'a> {
    graph: &'a Graph,
    node: &'a Node,
    uses: &'a [usize],
}

/// The node that does the work of node `i` and of the operand it absorbs.
fn absorbed(graph: &Graph, i: usize, uses: &[usize]) -> Option<Node> {
    let node = &graph.nodes[i];
    let site = Site { graph, node, uses };
    match &node.op {
        Op::Activation(kind) => site.activation(*kind),
        Op::Geglu => site.geglu(),
        Op::BroadcastAdd => site.per_image_bias(),
        Op::Add => (0..2).rev().find_map(|side| site.residual(side)),
        Op::Conv2d(conv) => site.upsample(conv),
        _ => None,
    }
}

impl<'a> Site<'a> {
    /// The node of an operand that nothing else reads.
    fn sole_operand(&self, operand: usize) -> Option<&'a Node> {
        let id = *self.node.inputs.get(operand)?;
        (self.uses[id.0] == 1).then(|| &self.graph.nodes[id.0])
    }

    /// An operand that nothing else reads and that is a fully connected layer or a convolution.
    fn sole_gemm(&self, operand: usize) -> Option<(&'a Node, ImplicitGemm<'a>)> {
        let before = self.sole_operand(operand)?;
        Some((before, before.op.implicit_gemm()?))
    }

    /// The node `before` with another operation, further operands, and the result of this node.
    fn merged(&self, before: &Node, op: Op, further: &[NodeId]) -> Option<Node> {
        let inputs = before.inputs.iter().chain(further).copied().collect();
        Some(Node { op, inputs, shape: self.node.shape.clone(), name: before.name.clone() })
    }

    fn activation(&self, kind: Activation) -> Option<Node> {
        let before = self.sole_operand(0)?;
        if let Op::GroupNorm { silu: false, .. } = before.op {
            let mut op = before.op.clone();
            if let Op::GroupNorm { silu, .. } = &mut op {
                *silu = true;
            }
            return if kind == Activation::Silu { self.merged(before, op, &[]) } else { None };
        }
        let epilogue = before.op.implicit_gemm()?.epilogue;
        if epilogue.activation != EpilogueActivation::None || epilogue.residual {
            return None;
        }
        let epilogue = Epilogue { activation: EpilogueActivation::Pointwise(kind), ..epilogue };
        self.merged(before, before.op.clone().with_epilogue(epilogue), &[])
    }

    fn geglu(&self) -> Option<Node> {
        let before = self.sole_operand(0)?;
        let Op::Linear(linear) = &before.op else { return None };
        // The two halves must come from one matrix so that a tile can hold matching columns of both.
        if linear.epilogue != Epilogue::default() || linear.parts.len() != 1 {
            return None;
        }
        let epilogue = Epilogue { activation: EpilogueActivation::Geglu, ..linear.epilogue };
        self.merged(before, before.op.clone().with_epilogue(epilogue), &[])
    }

    fn per_image_bias(&self) -> Option<Node> {
        let (before, gemm) = self.sole_gemm(0)?;
        if gemm.epilogue != Epilogue::default() {
            return None;
        }
        let epilogue = Epilogue { per_image_bias: true, ..gemm.epilogue };
        self.merged(before, before.op.clone().with_epilogue(epilogue), &self.node.inputs[1..2])
    }

    /// The sum as the end of its operand `side`.
    fn residual(&self, side: usize) -> Option<Node> {
        let (before, gemm) = self.sole_gemm(side)?;
        let other = self.node.inputs[1 - side];
        let shape = &self.node.shape;
        // GEGLU's kernels have none.
        let taken = gemm.epilogue.residual || gemm.epilogue.activation == EpilogueActivation::Geglu;
        if taken || self.graph.node(other).shape != *shape || before.shape != *shape {
            return None;
        }
        let epilogue = Epilogue { residual: true, ..gemm.epilogue };
        self.merged(before, before.op.clone().with_epilogue(epilogue), &[other])
    }

    fn upsample(&self, conv: &Conv2d) -> Option<Node> {
        // Others may read the enlarged image, as the right factor of a low-rank update does, and enlarge it themselves.
        let before = self.graph.node(*self.node.inputs.first()?);
        if !matches!(before.op, Op::Upsample { .. }) || conv.sources != 1 || conv.params.resize.is_some() {
            return None;
        }
        let params = Conv2dParams { resize: Some((before.shape[1], before.shape[2])), ..conv.params };
        let mut node = Node { op: Op::Conv2d(Conv2d { params, ..conv.clone() }), ..self.node.clone() };
        node.inputs[0] = before.inputs[0];
        Some(node)
    }
}

/// Makes the readers of a concatenation read its two sources.
fn join_concats(graph: &mut Graph) {
    for i in 0..graph.nodes.len() {
        if !matches!(graph.nodes[i].op, Op::Concat) || graph.outputs.iter().any(|(_, id)| id.0 == i) {
            continue;
        }
        let sources = graph.nodes[i].inputs.clone();
        let readers: Vec<usize> =
            (i + 1..graph.nodes.len()).filter(|&r| graph.nodes[r].inputs.contains(&NodeId(i))).collect();
        let joins = |node: &Node| match &node.op {
            Op::GroupNorm { .. } => node.inputs.len() == 1,
            op => op.implicit_gemm().is_some_and(|g| g.sources == 1 && !node.inputs[1..].contains(&NodeId(i))),
        };
        if !readers.iter().all(|&r| joins(&graph.nodes[r])) {
            continue;
        }
        for r in readers {
            let node = &mut graph.nodes[r];
            node.inputs.splice(0..1, sources.iter().copied());
            if let Op::Linear(Linear { sources, .. }) | Op::Conv2d(Conv2d { sources, .. }) = &mut node.op {
                *sources = 2;
            }
        }
    }
}

/// Joins plain fully connected layers over one operand into one, where only attention reads them.
fn merge_projections(graph: &mut Graph) {
    let plain = |node: &Node| matches!(&node.op, Op::Linear(l) if l.sources == 1 && l.epilogue == Epilogue::default());
    let mut groups: HashMap<NodeId, Vec<usize>> = HashMap::new();
    let uses = graph.uses_of_live();
    for (i, node) in graph.nodes.iter().enumerate() {
        if uses[i] > 0 && plain(node) && only_attention_reads(graph, NodeId(i)) {
            groups.entry(node.inputs[0]).or_default().push(i);
        }
    }
    for (source, members) in groups {
        if members.len() < 2 || !merge_low_rank(graph, &uses, source, &members) {
            continue;
        }
        let mut parts: Vec<LinearWeights> = Vec::new();
        let mut starts = HashMap::new();
        let mut width = 0;
        for &m in &members {
            starts.insert(NodeId(m), width);
            width += graph.nodes[m].channels();
            if let Op::Linear(linear) = &graph.nodes[m].op {
                parts.extend(linear.parts.iter().cloned());
            }
        }
        let first = members[0];
        let node = &mut graph.nodes[first];
        if let Some(c) = node.shape.last_mut() {
            *c = width;
        }
        node.inputs[0] = source;
        if let Op::Linear(linear) = &mut node.op {
            linear.parts = parts;
        }
        for node in &mut graph.nodes {
            if let Op::Attention(a) = &mut node.op {
                let inputs = node.inputs.clone();
                let shift = |c: &mut ChannelSlice| c.start += starts.get(&inputs[c.operand]).copied().unwrap_or(0);
                shift(&mut a.query);
                for s in &mut a.branches {
                    shift(&mut s.keys);
                    shift(&mut s.values);
                }
                for id in &mut node.inputs {
                    if starts.contains_key(id) {
                        *id = NodeId(first);
                    }
                }
            }
        }
    }
}

/// Joins the right factors of the low-rank updates of fully connected layers over `source` into those of the first layer;
/// `false` where that cannot be. There is nothing to do where none has any.
fn merge_low_rank(graph: &mut Graph, uses: &[usize], source: NodeId, members: &[usize]) -> bool {
    let low_rank = |member: &usize| graph.nodes[*member].op.implicit_gemm().and_then(|gemm| gemm.low_rank());
    let with = members.iter().filter(|member| low_rank(member).is_some()).count();
    if with == 0 {
        return true;
    }
    let updates = |member: &usize| match &graph.nodes[*member].op {
        Op::Linear(linear) => linear.parts.iter().filter_map(|part| part.low_rank.clone()).collect::<Vec<_>>(),
        _ => Vec::new(),
    };
    let updates: Vec<LowRank> = members.iter().flat_map(updates).collect();
    if with < members.len() || !LowRank::adjacent(&updates) {
        return false;
    }
    // Each member's updates come from a layer over the same source, whose result is scaled.
    let mut chains = Vec::new();
    for &member in members {
        let scaled = graph.nodes[member].inputs[1];
        let down = graph.node(scaled).inputs[0];
        let sole = [scaled, down].iter().all(|id| uses[id.0] == 1);
        let Op::Linear(linear) = &graph.node(down).op else { return false };
        if !sole || !matches!(graph.node(scaled).op, Op::ScaleChannels { .. }) || graph.node(down).inputs != [source] {
            return false;
        }
        chains.push((scaled, down, linear.parts.clone()));
    }
    let rank = updates.iter().map(LowRank::rank).sum();
    let (scaled, down, _) = chains[0];
    for id in [scaled, down] {
        if let Some(c) = graph.nodes[id.0].shape.last_mut() {
            *c = rank;
        }
    }
    if let Op::Linear(linear) = &mut graph.nodes[down.0].op {
        linear.parts = chains.into_iter().flat_map(|(_, _, parts)| parts).collect();
    }
    true
}

fn only_attention_reads(graph: &Graph, id: NodeId) -> bool {
    graph.outputs.iter().all(|(_, o)| *o != id)
        && graph.nodes.iter().all(|n| !n.inputs.contains(&id) || matches!(n.op, Op::Attention(_)))
}

impl Graph {
    /// Like [`Graph::uses`], counting only nodes that lead to an output.
    fn uses_of_live(&self) -> Vec<usize> {
        let live = self.live();
        let mut uses = vec![0; self.nodes.len()];
        let reads = self.nodes.iter().zip(&live).filter(|(_, live)| **live).flat_map(|(n, _)| &n.inputs);
        for id in reads.chain(self.outputs.iter().map(|(_, id)| id)) {
            uses[id.0] += 1;
        }
        uses
    }

    fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.nodes.len()];
        for (_, id) in self.outputs.iter().chain(&self.inputs) {
            live[id.0] = true;
        }
        for i in (0..self.nodes.len()).rev() {
            if live[i] {
                for id in &self.nodes[i].inputs {
                    live[id.0] = true;
                }
            }
        }
        live
    }
}

/// Drops nodes that lead to no output; inputs stay, so that bindings keep their order.
fn sweep(graph: Graph) -> Graph {
    let live = graph.live();
    let mut places = vec![0; graph.nodes.len()];
    let mut nodes = Vec::new();
    for (i, mut node) in graph.nodes.into_iter().enumerate() {
        if live[i] {
            places[i] = nodes.len();
            for id in &mut node.inputs {
                id.0 = places[id.0];
            }
            nodes.push(node);
        }
    }
    let moved = |list: Vec<(String, NodeId)>| list.into_iter().map(|(n, id)| (n, NodeId(places[id.0]))).collect();
    Graph { nodes, inputs: moved(graph.inputs), outputs: moved(graph.outputs) }
}
