//! An operation prepared for its shapes, and the tensors of one run of it.

use super::pool::Pool;
use super::scratch::Scratch;
use crate::cancel;
use crate::graph::{Graph, Node};

/// An operation prepared for its shapes.
pub(crate) trait CpuOp: Send {
    /// Floats of scratch that each thread needs.
    fn scratch(&self) -> usize {
        0
    }

    /// Floats of scratch that all threads share.
    fn shared_scratch(&self) -> usize {
        0
    }

    /// Bytes held besides the mapped weights.
    fn bytes(&self) -> usize {
        0
    }

    /// Computes the result.
    ///
    /// # Safety
    /// `run` is of the node for which this was prepared.
    unsafe fn run(&self, run: &OpRun<'_>);
}

/// Rows that one item of a row-wise operation takes.
const ROWS: usize = 16;

/// The threads of an executable's run, which a [`crate::CancelToken`] stops: what an operation leaves then is no result, and nothing
/// that outlasts the run may follow from it.
#[derive(Clone, Copy)]
pub(crate) struct RunPool<'a>(pub(crate) &'a Pool);

impl RunPool<'_> {
    /// As [`Pool::threads`].
    pub(crate) fn threads(self) -> usize {
        self.0.threads()
    }

    /// As [`Pool::run`] where nothing stops it.
    pub(crate) fn run(self, items: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        self.0.run_while(items, task, &|| !cancel::is_cancelled());
    }
}

/// One run of an operation: its operands, its result and what it may use meanwhile.
pub(crate) struct OpRun<'a> {
    /// The threads.
    pub(crate) pool: RunPool<'a>,
    /// Memory of each thread.
    pub(crate) scratch: &'a Scratch,
    /// Zeros as long as the widest row of the graph.
    pub(crate) zeros: &'a [f32],
    graph: &'a Graph,
    node: &'a Node,
    places: &'a [*mut f32],
    out: *mut f32,
}

// SAFETY: operands are only read, and the items of an operation write disjoint parts of its result.
unsafe impl Sync for OpRun<'_> {}

/// The resources that the runs of all nodes of an executable share.
pub(crate) struct RunResources<'a> {
    pub(crate) pool: RunPool<'a>,
    pub(crate) scratch: &'a Scratch,
    pub(crate) zeros: &'a [f32],
    pub(crate) graph: &'a Graph,
}

/// An integer as an index or a count: 0 where it is negative.
pub(crate) fn index(value: i32) -> usize {
    usize::try_from(value).unwrap_or(0)
}

impl<'a> OpRun<'a> {
    /// A run of node `i`, `places` being where the result of each node of the graph lies.
    ///
    /// # Safety
    /// Each place has the length of its node's shape, that of node `i` overlaps none of its operands', and nothing else uses
    /// them during the run.
    pub(crate) unsafe fn new(resources: &RunResources<'a>, places: &'a [*mut f32], i: usize) -> Self {
        let RunResources { pool, scratch, zeros, graph } = *resources;
        Self { pool, scratch, zeros, graph, node: &graph.nodes[i], places, out: places[i] }
    }

    /// The number of operands.
    pub(crate) fn operands(&self) -> usize {
        self.node.inputs.len()
    }

    /// The first element of an operand.
    pub(crate) fn operand(&self, k: usize) -> *const f32 {
        self.places[self.node.inputs[k].0].cast_const()
    }

    /// An operand.
    pub(crate) fn input(&self, k: usize) -> &'a [f32] {
        // SAFETY: promised to `new`.
        unsafe { std::slice::from_raw_parts(self.operand(k), self.graph.node(self.node.inputs[k]).len()) }
    }

    /// An operand of integers.
    pub(crate) fn integers(&self, k: usize) -> &'a [i32] {
        // SAFETY: as above; both types are of four bytes and take any bits.
        unsafe { std::slice::from_raw_parts(self.operand(k).cast(), self.graph.node(self.node.inputs[k]).len()) }
    }

    /// The shape of an operand.
    pub(crate) fn input_shape(&self, k: usize) -> &'a [usize] {
        &self.graph.node(self.node.inputs[k]).shape
    }

    /// The shape of the result.
    pub(crate) fn shape(&self) -> &'a [usize] {
        &self.node.shape
    }

    /// The first element of the result.
    pub(crate) fn out(&self) -> *mut f32 {
        self.out
    }

    /// The channels of the result.
    pub(crate) fn channels(&self) -> usize {
        self.node.channels()
    }

    /// The rows of the result.
    pub(crate) fn rows(&self) -> usize {
        self.node.len() / self.channels().max(1)
    }

    /// Calls `work(row, result)` for every row of the result, on all threads.
    pub(crate) fn for_each_row(&self, work: impl Fn(usize, &mut [f32]) + Sync) {
        let (count, c) = (self.rows(), self.channels());
        self.pool.run(count.div_ceil(ROWS), &|item, _| {
            for row in item * ROWS..((item + 1) * ROWS).min(count) {
                // SAFETY: the row lies in the result, and one item writes it.
                work(row, unsafe { std::slice::from_raw_parts_mut(self.out().add(row * c), c) });
            }
        });
    }
}
