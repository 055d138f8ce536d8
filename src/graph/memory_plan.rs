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
    /// Plans a graph: results that live at the same time never overlap.
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
        let rest: Vec<usize> = (0..n).filter(|&i| root[i] == i && places[i].is_none()).collect();
        let lives: Vec<Life> =
            rest.iter().map(|&i| Life { len: graph.nodes[i].len(), first: i, last: last[i] }).collect();
        let (starts, arena) = place(&lives);
        for (i, start) in rest.into_iter().zip(starts) {
            places[i] = Some(Location::Arena(start));
        }
        let locations = (0..n).map(|i| places[root[i]].unwrap_or(Location::Arena(0))).collect();
        Self { locations, arena, copies }
    }
}

/// Something that lies in memory for a while.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// Its elements.
    pub len: usize,
    /// The node that writes it.
    pub first: usize,
    /// The last node that reads it.
    pub last: usize,
}

/// Places things so that those that live at the same time never overlap: the largest first, each into the lowest gap that fits. Gives
/// their starts and the end of all, in elements.
pub fn place(lives: &[Life]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lives.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lives[i].len), i));
    let mut placed: Vec<(usize, usize, usize)> = Vec::new(); // (number, start, end), sorted by start
    let (mut starts, mut end) = (vec![0; lives.len()], 0);
    for i in order {
        let size = lives[i].len.next_multiple_of(ALIGN);
        let mut start = 0;
        for &(j, from, to) in &placed {
            let together = lives[i].first <= lives[j].last && lives[j].first <= lives[i].last;
            if together && start + size > from && start < to {
                start = to;
            }
        }
        starts[i] = start;
        end = end.max(start + size);
        let at = placed.partition_point(|p| p.1 <= start);
        placed.insert(at, (i, start, start + size));
    }
    (starts, end)
}
