//! Fusion: passes that turn a graph as a model writes it into one with fewer and larger nodes, same results.

use super::{ChannelSlice, Epilogue, Graph, LinearWeights, Node, NodeId, Op, Product};
use std::collections::HashMap;

/// Runs every pass and drops the nodes that nothing reads any more.
///
/// - SiLU into the GroupNorm before it; activations, GEGLU, per-image rows and residuals into the product before them
/// - nearest upsample into the convolution after it
/// - a concatenation that only normalisations and 1x1 products read is read in place from its two sources
/// - products of one operand that only attention reads (q, k, v) become one
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

/// The node that does the work of node `i` and of the operand it swallows.
fn absorbed(graph: &Graph, i: usize, uses: &[usize]) -> Option<Node> {
    let node = &graph.nodes[i];
    let before = |operand: usize| {
        let id = *node.inputs.get(operand)?;
        (uses[id.0] == 1).then(|| &graph.nodes[id.0])
    };
    let product = |operand: usize| match before(operand) {
        Some(n) => match &n.op {
            Op::Product(p) => Some((n, p.clone())),
            _ => None,
        },
        None => None,
    };
    let merged = |n: &Node, op: Op, inputs: Vec<NodeId>| {
        Some(Node { op, inputs, shape: node.shape.clone(), name: n.name.clone() })
    };
    match &node.op {
        Op::Activation(kind) => {
            let n = before(0)?;
            match &n.op {
                Op::GroupNorm { groups, eps, weight, bias, silu: false } if *kind == super::Activation::Silu => {
                    let op = Op::GroupNorm {
                        groups: *groups,
                        eps: *eps,
                        weight: weight.clone(),
                        bias: bias.clone(),
                        silu: true,
                    };
                    merged(n, op, n.inputs.clone())
                }
                Op::Product(p) if p.epilogue == Epilogue::None && !p.residual => {
                    let p = Product { epilogue: Epilogue::Activation(*kind), ..p.clone() };
                    merged(n, Op::Product(p), n.inputs.clone())
                }
                _ => None,
            }
        }
        Op::Geglu => {
            let (n, mut p) = product(0)?;
            // The two halves must come from one matrix so that a tile can hold matching columns of both.
            if p.epilogue != Epilogue::None
                || p.residual
                || p.per_image_bias
                || p.window.is_some()
                || p.parts.len() != 1
            {
                return None;
            }
            p.epilogue = Epilogue::Geglu;
            merged(n, Op::Product(p), n.inputs.clone())
        }
        Op::BroadcastAdd => {
            let (n, mut p) = product(0)?;
            if p.epilogue != Epilogue::None || p.residual || p.per_image_bias {
                return None;
            }
            p.per_image_bias = true;
            let mut inputs = n.inputs.clone();
            inputs.push(node.inputs[1]);
            merged(n, Op::Product(p), inputs)
        }
        Op::Add => (0..2).rev().find_map(|side| {
            let (n, mut p) = product(side)?;
            let other = &graph.nodes[node.inputs[1 - side].0];
            if p.residual || other.shape != node.shape || n.shape != node.shape {
                return None;
            }
            p.residual = true;
            let mut inputs = n.inputs.clone();
            inputs.push(node.inputs[1 - side]);
            merged(n, Op::Product(p), inputs)
        }),
        Op::Product(p) => {
            let mut window = p.window?;
            let n = before(0)?;
            if !matches!(n.op, Op::Upsample) || p.sources != 1 || window.resize.is_some() {
                return None;
            }
            window.resize = Some((n.shape[1], n.shape[2]));
            let mut inputs = node.inputs.clone();
            inputs[0] = n.inputs[0];
            let p = Product { window: Some(window), ..p.clone() };
            Some(Node { op: Op::Product(p), inputs, shape: node.shape.clone(), name: node.name.clone() })
        }
        _ => None,
    }
}

/// Lets the readers of a concatenation read its two sources.
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
            Op::Product(p) => p.sources == 1 && !node.inputs[1..].contains(&NodeId(i)),
            _ => false,
        };
        if !readers.iter().all(|&r| joins(&graph.nodes[r])) {
            continue;
        }
        for r in readers {
            let node = &mut graph.nodes[r];
            node.inputs.splice(0..1, sources.iter().copied());
            if let Op::Product(p) = &mut node.op {
                p.sources = 2;
            }
        }
    }
}

/// Joins plain products of one operand into one product, where only attention reads them.
fn merge_projections(graph: &mut Graph) {
    let plain = |node: &Node| match &node.op {
        Op::Product(p) => {
            p.window.is_none() && p.sources == 1 && !p.per_image_bias && !p.residual && p.epilogue == Epilogue::None
        }
        _ => false,
    };
    let mut groups: HashMap<NodeId, Vec<usize>> = HashMap::new();
    let uses = graph.uses_of_live();
    for (i, node) in graph.nodes.iter().enumerate() {
        if uses[i] > 0 && plain(node) && only_attention_reads(graph, NodeId(i)) {
            groups.entry(node.inputs[0]).or_default().push(i);
        }
    }
    for (source, members) in groups {
        if members.len() < 2 {
            continue;
        }
        let mut parts: Vec<LinearWeights> = Vec::new();
        let mut starts = HashMap::new();
        let mut width = 0;
        for &m in &members {
            starts.insert(NodeId(m), width);
            width += graph.nodes[m].channels();
            if let Op::Product(p) = &graph.nodes[m].op {
                parts.extend(p.parts.iter().cloned());
            }
        }
        let first = members[0];
        let node = &mut graph.nodes[first];
        if let Some(c) = node.shape.last_mut() {
            *c = width;
        }
        node.inputs = vec![source];
        if let Op::Product(p) = &mut node.op {
            p.parts = parts;
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
