//! Runs a graph on the CPU, node by node, in one arena.

use super::buffer::Buffer;
use super::op::{CpuOp, OpRun, RunPool, RunResources};
use super::ops::{self, Arithmetic};
use super::pool::Pool;
use super::scratch::Scratch;
use crate::cancel;
use crate::device::{Compiled, Executable, TensorData};
use crate::error::{Error, Result};
use crate::graph::{Graph, Location, MemoryPlan};
use crate::memory;
use std::sync::Arc;

/// The stage that an error about memory names, unless the caller knows better.
const STAGE: &str = "planning";

/// A graph with its prepared operations and the memory in which it runs.
pub(super) struct CpuExecutable {
    pool: Arc<Pool>,
    pub(super) graph: Graph,
    plan: MemoryPlan,
    /// One for each node; none where there is nothing to do.
    ops: Vec<Option<Box<dyn CpuOp>>>,
    arena: Buffer,
    zeros: Vec<f32>,
    scratch: Scratch,
    bytes: usize,
}

impl CpuExecutable {
    /// Prepares `graph` to run on the threads of `pool`.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] where there is too little; [`crate::Error::Graph`] where an operation reads an input of another
    /// type; [`crate::Error::Cancelled`].
    pub(super) fn new(pool: Arc<Pool>, graph: Graph, arithmetic: Arithmetic<'_>) -> Result<Self> {
        graph.check_types()?;
        let threads = pool.threads();
        let plan = MemoryPlan::new(&graph);
        let statistics: usize = graph.nodes.iter().map(ops::statistics_bytes).sum();
        let hint = || "ask for a smaller image or free memory".into();
        // Before the norms' statistics are allocated below.
        memory::require(STAGE, (plan.arena as u64 * 4).saturating_add(statistics as u64), hint)?;
        let prepare = |node| cancel::check().map(|()| ops::prepare(&graph, node, &pool, arithmetic));
        let ops = graph.nodes.iter().map(prepare).collect::<Result<Vec<_>>>()?;
        let scratch = ops.iter().flatten().map(|op| op.scratch()).max().unwrap_or(0);
        let shared = ops.iter().flatten().map(|op| op.shared_scratch()).max().unwrap_or(0);
        let widest = graph.nodes.iter().map(|node| node.channels()).max().unwrap_or(0).max(1);
        let need = (plan.arena as u64).saturating_add((threads * scratch + shared + widest) as u64).saturating_mul(4);
        memory::require(STAGE, need, hint)?;
        let short = || Error::Memory { stage: STAGE, need, have: memory::available().unwrap_or(0), hint: hint() };
        let arena = Buffer::zeroed(plan.arena).ok_or_else(short)?;
        let scratch = Scratch::new(threads, scratch, shared).ok_or_else(short)?;
        let held: usize = ops.iter().flatten().map(|op| op.bytes()).sum();
        let bytes = held + arena.len() * 4 + scratch.bytes() + widest * 4;
        Ok(Self { pool, graph, plan, ops, arena, zeros: vec![0.0; widest], scratch, bytes })
    }
}

impl Compiled for CpuExecutable {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn graph(&self) -> &Graph {
        &self.graph
    }
}

impl Executable for CpuExecutable {
    fn run(&mut self, inputs: &[TensorData<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.graph.check_bindings(inputs.iter().map(|b| (b.element_type(), b.len())), outputs)?;
        // Those of integers too: operations read them as such, see `OpRun::integers`.
        let inputs: Vec<*const f32> = inputs.iter().map(|b| b.bytes().as_ptr().cast()).collect();
        let outputs: Vec<*mut f32> = outputs.iter_mut().map(|b| b.as_mut_ptr()).collect();
        let arena = self.arena.as_mut_ptr();
        let place = |location: &Location| match *location {
            Location::Input(k) => inputs[k].cast_mut(),
            Location::Output(k) => outputs[k],
            // SAFETY: the plan keeps every place inside the arena.
            Location::Arena(at) => unsafe { arena.add(at) },
        };
        let places: Vec<*mut f32> = self.plan.locations.iter().map(place).collect();
        let Self { pool, scratch, zeros, graph, .. } = self;
        let resources = RunResources { pool: RunPool(pool), scratch, zeros, graph };
        for (i, op) in self.ops.iter().enumerate() {
            let Some(op) = op else { continue };
            // SAFETY: every place has the length of its node's shape (checked above and by the plan), results that live at the
            // same time do not overlap, and inputs are never a result's place; the operation was prepared for node i.
            unsafe { op.run(&OpRun::new(&resources, &places, i)) };
            cancel::check()?;
        }
        for (k, id) in &self.plan.copies {
            // SAFETY: both have the length of that node, and an output is never another node's place.
            unsafe { outputs[*k].copy_from_nonoverlapping(places[id.0], self.graph.node(*id).len()) };
        }
        Ok(())
    }
}
