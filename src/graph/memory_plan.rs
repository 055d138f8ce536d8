//! The memory plan: from the lifetimes of results to places in one arena.

use super::nodes::{Graph, NodeId};

/// The place of a node's result during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// In the caller's input of that number.
    Input(usize),
    /// In the caller's output of that number.
    Output(usize),
    /// In the arena, from that element on.
    Arena(usize),
}

/// Places for all results of a graph.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// The place of each node.
    pub locations: Vec<Location>,
    /// Elements of the arena.
    pub arena: usize,
    /// Outputs that must be copied from another node's place at the end of a run, because that node is an input or is
    /// kept twice.
    pub copies: Vec<(usize, NodeId)>,
}

/// Elements to which every place is aligned: 64 bytes.
const ALIGN: usize = 16;

impl MemoryPlan {
    /// Plans a graph: results that live at the same time never overlap. The largest are placed first, each into the
    /// lowest gap that fits.
    pub fn new(graph: &Graph) -> Self {
        let n = graph.nodes.len();
        let root = graph.owners();
        let mut last: Vec<usize> = (0..n).collect();
        for (i, node) in graph.nodes.iter().enumerate() {
            for id in &node.inputs {
                last[root[id.0]] = i;
            }
        }
        let mut places: Vec<Option<Location>> = vec![None; n];
        for (k, (_, id)) in graph.inputs.iter().enumerate() {
            places[id.0] = Some(Location::Input(k));
        }
        let mut copies = Vec::new();
        for (k, (_, id)) in graph.outputs.iter().enumerate() {
            match places[root[id.0]] {
                None => places[root[id.0]] = Some(Location::Output(k)),
                Some(_) => copies.push((k, *id)),
            }
        }
        let mut order: Vec<usize> = (0..n).filter(|&i| root[i] == i && places[i].is_none()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(graph.nodes[i].len()), i));
        let mut placed: Vec<(usize, usize, usize)> = Vec::new(); // (node, start, end), sorted by start
        let mut arena = 0;
        for i in order {
            let size = graph.nodes[i].len().next_multiple_of(ALIGN);
            let mut start = 0;
            for &(j, from, to) in &placed {
                let together = i <= last[j] && j <= last[i];
                if together && start + size > from && start < to {
                    start = to;
                }
            }
            places[i] = Some(Location::Arena(start));
            arena = arena.max(start + size);
            let at = placed.partition_point(|p| p.1 <= start);
            placed.insert(at, (i, start, start + size));
        }
        let locations = (0..n).map(|i| places[root[i]].unwrap_or(Location::Arena(0))).collect();
        Self { locations, arena, copies }
    }
}
