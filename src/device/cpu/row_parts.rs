//! A graph whose rows are cut among the threads: each runs all operations for rows of its own.
//!
//! Threads that share every operation read in each what the others wrote in the one before, and wait for one another hundreds of times
//! in an evaluation of a denoiser. Here they meet once. In exchange each of them widens all weights, which is more than is gained where
//! the model is large.

use super::pool::Pool;
use crate::cancel;
use crate::device::{Compiled, Executable, RowAxis, TensorData, rows};
use crate::error::Result;
use crate::graph::{Graph, fuse};
use std::sync::Arc;

/// A graph of several rows as graphs of some of them each, one a thread.
pub(super) struct RowParts {
    pool: Arc<Pool>,
    graph: Graph,
    /// The number of rows.
    rows: usize,
    parts: Vec<Box<dyn Executable>>,
    row_axes: Vec<RowAxis>,
}

/// The run of a part.
struct Run<'a> {
    executable: &'a mut dyn Executable,
    inputs: Vec<TensorData<'a>>,
    outputs: Vec<&'a mut [f32]>,
    result: Result<()>,
}

/// Weights an operation of a graph, in the mean, beyond which each thread's widening of all of them takes longer than its waiting for the
/// others at each operation would.
const MAX_MEAN_WEIGHTS: usize = 100_000;

/// The rows of the parts in which `threads` threads make an evaluation of `graph`: a part for each, or one for all.
pub(super) fn row_parts(graph: &Graph, threads: usize) -> Vec<usize> {
    let rows = graph.rows();
    let most = rows.div_ceil(threads);
    // A thread that has no row, or has less to do than the others, waits.
    let even = rows >= threads && most * threads * 4 <= rows * 5;
    let products = graph.nodes.iter().filter_map(|node| node.op.implicit_gemm());
    let weights: usize = products.flat_map(|gemm| gemm.parts).map(|part| part.weight.len()).sum();
    if !even || weights > graph.nodes.len() * MAX_MEAN_WEIGHTS {
        return vec![rows];
    }
    (0..threads).map(|thread| rows / threads + usize::from(thread < rows % threads)).collect()
}

/// Takes the first values off a slice.
fn take_first<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (first, after) = std::mem::take(rest).split_at_mut(len);
    *rest = after;
    first
}

impl RowParts {
    /// Runs `graph` as `parts`, the same model with rows that together are as many, on the threads of `pool`; every output has the rows as
    /// its first dimension, and input `k` as `row_axes[k]` says.
    pub(super) fn new(pool: Arc<Pool>, graph: Graph, parts: Vec<Box<dyn Executable>>, row_axes: &[RowAxis]) -> Self {
        let graph = fuse(graph);
        Self { pool, rows: graph.rows(), graph, parts, row_axes: row_axes.to_vec() }
    }
}

impl Compiled for RowParts {
    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes()).sum()
    }
}

impl Executable for RowParts {
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        let Self { pool, graph, rows: all, parts, row_axes } = self;
        graph.check_bindings(inputs.iter().map(|b| (b.element_type(), b.len())), outputs)?;
        let mut rest: Vec<&mut [f32]> = outputs.iter_mut().map(|output| &mut **output).collect();
        let mut runs = Vec::new();
        let mut first = 0;
        for executable in parts {
            let own = first..first + executable.graph().rows();
            let axis = |k: usize| (row_axes.get(k).copied().unwrap_or_default(), *all);
            let inputs = inputs.iter().enumerate().map(|(k, values)| rows::rows_of(values, axis(k), own.clone()));
            let inputs = inputs.collect::<Result<_>>()?;
            let left = *all - first;
            let share = |len: usize| len / left * own.len();
            let outputs = rest.iter_mut().map(|rest| take_first(rest, share(rest.len()))).collect();
            runs.push(Run { executable: executable.as_mut(), inputs, outputs, result: Ok(()) });
            first = own.end;
        }
        let scopes = cancel::scopes();
        pool.for_each(&mut runs, &|_, Run { executable, inputs, outputs, result }| {
            *result = cancel::within(scopes.clone(), || executable.run(inputs, outputs));
        });
        runs.into_iter().try_for_each(|run| run.result)
    }
}
