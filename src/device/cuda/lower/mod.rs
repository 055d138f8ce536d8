//! From a graph to launches: every node becomes kernels with their parameters, grids and addresses, once, at load.
//!
//! Lowering is a pure function of graph, settings and the addresses of two slabs. It runs twice: with addresses of zero to
//! find out how large the slabs must be, which is also the whole plan of a graph on a machine without a device, and with the
//! real ones. Launches run one after another, so that scratch memory is used again by every node.

mod attention;
mod denoise_loop;
mod pointwise;
pub(super) mod product;
mod results;

use super::driver::command::Command;
use super::driver::kernel::Launch;
use super::kernels::named;
use super::params::{Pointer, TransposeParams, UnaryParams};
use super::tiles::blocks;
use crate::device::Role;
use crate::device::cuda::exec::bindings::Bindings;
use crate::device::cuda::weights::cache::WeightAddresses;
use crate::device::cuda::weights::layout::WeightLayout;
use crate::error::{Error, Result};
use crate::graph::{Graph, Location, MemoryPlan, Node, NodeId, Op};
use crate::tensor::DType;
use bytemuck::Pod;
pub use denoise_loop::LoopState;
use std::ops::Range;

/// What lowering depends on besides the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoweringOptions {
    /// The storage type: f16, bf16, or f32 for a decoder.
    pub dtype: DType,
    /// Multiprocessors of the device, for the choice of tiles.
    pub multiprocessors: usize,
    /// Whether plain products go to the driver's library; those of f32 never do.
    pub library: bool,
}

/// To which every region of a slab is aligned.
const REGION: usize = 256;

/// Addresses of the slabs.
#[derive(Clone, Copy, Default)]
pub struct BaseAddresses<'a> {
    /// Of the weights; each lies at its offset where this is not known yet.
    pub(super) weights: Option<&'a WeightAddresses>,
    /// Of what other programs may read.
    pub results: u64,
    /// Of everything else.
    pub work: u64,
}

/// The regions of the work slab and of that of the results, bytes from its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryLayout {
    /// Inputs: f32, then integers; at 0.
    pub inputs: usize,
    /// Outputs in f32; this and the next two in the slab of the results.
    pub outputs: usize,
    /// A decoder's pixels.
    pub pixels: usize,
    /// Whether the outputs are finite, where that is looked at: after the pixels.
    pub flag: usize,
    /// The end of the slab of the results.
    pub results: usize,
    /// Inputs in the storage type.
    pub converted: usize,
    /// Outputs in the storage type.
    pub returned: usize,
    /// What lives between nodes.
    pub arena: usize,
    /// What lives within a node.
    pub scratch: usize,
    /// Inputs that vary from step to step, in f32 and in the storage type.
    pub varying: [usize; 2],
    /// What a sampler keeps from step to step.
    pub state: LoopState,
    /// The end.
    pub end: usize,
}

/// A graph as launches.
#[derive(Debug)]
pub struct Lowered {
    /// Before a sampler's first step: what makes its inputs ready.
    pub once: Vec<Command>,
    /// In order; for a sampler all that a step does.
    pub steps: Vec<Command>,
    /// Those of `steps` that compute the nodes; what is around them takes inputs and outputs.
    pub body: Range<usize>,
    /// The weights.
    pub weights: WeightLayout,
    /// Where things lie in the work slab.
    pub regions: MemoryLayout,
    /// Where inputs and outputs lie in their regions.
    pub bindings: Bindings,
}

/// Lowers a fused graph for its part in a request.
///
/// # Errors
/// [`Error::Graph`] with the node's name where no kernel takes it.
pub fn lower(
    graph: &Graph,
    plan: &MemoryPlan,
    settings: &LoweringOptions,
    role: &Role,
    bases: BaseAddresses<'_>,
) -> Result<Lowered> {
    check(graph)?;
    let steps = match role {
        Role::Denoise(steps) => Some(steps),
        _ => None,
    };
    if let Some(steps) = steps {
        denoise_loop::check(graph, steps)?;
    }
    let bindings = Bindings::new(graph, plan, steps)?;
    let size = settings.dtype.size();
    let mut regions = MemoryLayout::default();
    let (mut end, mut results) = (0, 0);
    let place = |end: &mut usize, bytes: usize| {
        let start = *end;
        *end += bytes.next_multiple_of(REGION);
        start
    };
    let mut region = |bytes: usize| place(&mut end, bytes);
    regions.inputs = region(bindings.upload());
    regions.outputs = place(&mut results, bindings.download());
    regions.converted = region(bindings.converted * size);
    regions.returned = region(bindings.returned * size);
    regions.varying = [region(bindings.varying * 4), region(bindings.varying * size)];
    if let Some(steps) = steps {
        regions.state = LoopState::new(graph, steps, &mut region);
        regions.state.latents = place(&mut results, regions.state.len * 4);
    }
    if let Role::Condition | Role::Decode { .. } = role {
        let [pixels, flag] = results::sizes(graph, role);
        regions.pixels = place(&mut results, pixels + flag);
        regions.flag = regions.pixels + pixels;
    }
    regions.results = results;
    regions.arena = region(plan.arena * size);
    regions.scratch = end;
    let mut lowering = Lowering {
        graph,
        plan,
        settings: *settings,
        bases,
        bindings,
        regions,
        once: Vec::new(),
        steps: Vec::new(),
        body: 0..0,
        jobs: WeightLayout::new(settings.dtype),
        scratch: 0,
        deepest: 0,
    };
    match steps {
        Some(steps) => lowering.lower_denoise_loop(steps)?,
        None => {
            lowering.given()?;
            lowering.nodes()?;
            lowering.results(role)?;
        }
    }
    let Lowering { once, steps, body, jobs, bindings, mut regions, deepest, .. } = lowering;
    regions.end = (regions.scratch + deepest).next_multiple_of(REGION);
    Ok(Lowered { once, steps, body, weights: jobs, regions, bindings })
}

/// Every count must fit the kernels' 32-bit parameters; only an input may be empty, such as the scales of no adapter.
fn check(graph: &Graph) -> Result<()> {
    for node in &graph.nodes {
        let rows = node.len() / node.channels().max(1);
        let empty = node.is_empty() && !matches!(node.op, Op::Input);
        if empty || rows > i32::MAX as usize || node.channels() > i32::MAX as usize / 16 {
            return Err(Error::Graph(format!("`{}` of shape {:?} is too large or empty", node.name, node.shape)));
        }
    }
    Ok(())
}

/// A count as a kernel takes it; [`check`] has seen to it that it fits.
pub(super) fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// A count or stride of 64 bits.
pub(super) fn long(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Where a node's result goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResultSlot {
    pub(super) at: u64,
    pub(super) float: bool,
}

pub(super) struct Lowering<'a> {
    graph: &'a Graph,
    plan: &'a MemoryPlan,
    settings: LoweringOptions,
    bases: BaseAddresses<'a>,
    bindings: Bindings,
    regions: MemoryLayout,
    once: Vec<Command>,
    steps: Vec<Command>,
    body: Range<usize>,
    jobs: WeightLayout,
    /// Bytes of scratch that the node has taken, and the most that any took.
    scratch: usize,
    deepest: usize,
}

impl Lowering<'_> {
    /// What was given, in the storage type.
    fn given(&mut self) -> Result<()> {
        let regions = self.regions;
        let [floats, halves] = regions.varying;
        for (from, to, count) in
            [(regions.inputs, regions.converted, self.bindings.converted), (floats, halves, self.bindings.varying)]
        {
            if count > 0 {
                self.unary("from_f32", self.work(from), self.work(to), count, 1.0, 0.0)?;
            }
        }
        Ok(())
    }

    /// All nodes, then the outputs.
    fn nodes(&mut self) -> Result<()> {
        let graph = self.graph;
        let first = self.steps.len();
        for (i, node) in graph.nodes.iter().enumerate() {
            self.scratch = 0;
            self.node(i, node)?;
        }
        self.body = first..self.steps.len();
        self.scratch = 0;
        for (k, id) in &self.plan.copies {
            let len = graph.node(*id).len();
            let out = self.output(*k);
            let (from, size) = match self.bindings.input_of(graph, *id) {
                Some(_) => (self.floats(*id)?, 4),
                None => (self.place(*id), self.size()),
            };
            self.steps.push(Command::Copy(from, out.at, len * size));
        }
        let count = self.bindings.returned;
        if count > 0 {
            let (from, to) = (self.work(self.regions.returned), self.kept(self.regions.outputs));
            self.unary("to_f32", from, to, count, 1.0, 0.0)?;
        }
        Ok(())
    }

    fn node(&mut self, i: usize, node: &Node) -> Result<()> {
        if let Some(gemm) = node.op.implicit_gemm() {
            return self.product(i, node, gemm);
        }
        match &node.op {
            Op::Input | Op::Reshape => Ok(()),
            Op::Attention(a) => self.attention(i, node, a),
            _ => self.pointwise(i, node),
        }
    }

    /// Bytes of an element of the storage type.
    fn size(&self) -> usize {
        self.settings.dtype.size()
    }

    /// Whether f32 is stored, which neither the tensor cores nor the library multiply.
    fn is_f32(&self) -> bool {
        self.settings.dtype == DType::F32
    }

    /// An address in the work slab.
    fn work(&self, at: usize) -> u64 {
        self.bases.work + at as u64
    }

    /// An address in the slab of the results.
    fn kept(&self, at: usize) -> u64 {
        self.bases.results + at as u64
    }

    /// Memory for this node alone.
    fn scratch(&mut self, bytes: usize) -> u64 {
        let at = self.regions.scratch + self.scratch;
        self.scratch += bytes.next_multiple_of(REGION);
        self.deepest = self.deepest.max(self.scratch);
        self.work(at)
    }

    /// Where an output is written.
    fn output(&self, k: usize) -> ResultSlot {
        let (at, float) = (self.bindings.outputs[k], self.bindings.direct[k]);
        let place = if float {
            self.kept(self.regions.outputs + at * 4)
        } else {
            self.work(self.regions.returned + at * self.size())
        };
        ResultSlot { at: place, float }
    }

    /// Where a node's result is written.
    fn result(&self, i: usize) -> ResultSlot {
        match self.plan.locations[i] {
            Location::Output(k) => self.output(k),
            Location::Arena(at) => ResultSlot { at: self.work(self.regions.arena + at * self.size()), float: false },
            // Inputs are no results.
            Location::Input(_) => ResultSlot { at: 0, float: false },
        }
    }

    /// A node's result in the storage type.
    fn place(&self, id: NodeId) -> u64 {
        match self.plan.locations[id.0] {
            Location::Input(k) => {
                let at = self.bindings.inputs[k].float.unwrap_or(0);
                self.work(self.regions.converted + at * self.size())
            }
            _ => self.result(id.0).at,
        }
    }

    /// A node's result as f32: what was given from outside, else a copy in scratch.
    fn floats(&mut self, id: NodeId) -> Result<u64> {
        match self.plan.locations[id.0] {
            Location::Input(k) => {
                let at = self.bindings.inputs[k].float.unwrap_or(0);
                Ok(self.work(self.regions.inputs + at * 4))
            }
            _ => {
                let count = self.graph.node(id).len();
                let to = self.scratch(count * 4);
                self.unary("to_f32", self.place(id), to, count, 1.0, 0.0)?;
                Ok(to)
            }
        }
    }

    /// Rows that a product adds: their address, that of the step's number and the elements from step to step, where they vary.
    fn rows(&self, id: NodeId) -> (u64, u64, i64) {
        let input = self.bindings.input_of(self.graph, id);
        match input.and_then(|k| self.bindings.inputs[k].varying) {
            Some(at) => {
                let [_, halves] = self.regions.varying;
                (
                    self.work(halves + at * self.size()),
                    self.work(self.regions.state.counter),
                    long(self.graph.node(id).len()),
                )
            }
            None => (self.place(id), 0, 0),
        }
    }

    /// An address among the inputs' integers.
    fn integers(&self, at: usize) -> u64 {
        self.work(self.regions.inputs + (self.bindings.floats + at) * 4)
    }

    /// Adds a launch of a kernel of the table.
    fn launch<P: Pod>(&mut self, name: &str, grid: [u32; 3], params: P) -> Result<()> {
        self.steps.push(Command::Launch(launch(self.settings.dtype, name, grid, params)?));
        Ok(())
    }

    /// An operation of one value each.
    fn unary(&mut self, name: &str, x: u64, out: u64, count: usize, scale: f32, shift: f32) -> Result<()> {
        let params = UnaryParams { x: Pointer(x), out: Pointer(out), count: long(count), scale, shift };
        self.launch(name, [blocks(count, 2048), 1, 1], params)
    }

    /// A matrix `[rows, columns]` with that stride, transposed to `[columns, pitch]`.
    fn transpose(&mut self, x: (u64, usize), rows: usize, columns: usize, to: (u64, usize)) -> Result<()> {
        let params = TransposeParams {
            x: Pointer(x.0),
            out: Pointer(to.0),
            x_stride: long(x.1),
            x_image: 0,
            pitch: long(to.1),
            out_image: 0,
            rows: int(rows),
            columns: int(columns),
        };
        self.launch("transpose", [blocks(to.1, 32), blocks(columns, 32), 1], params)
    }

    /// That the kernels of this node need sources of a multiple of 8 channels.
    fn uneven(&self, node: &Node, sources: usize) -> Error {
        let widths: Vec<String> = node.inputs.iter().take(sources).map(|id| self.width(*id).to_string()).collect();
        refused(node, &format!("sources of {} channels; multiples of 8 are needed", widths.join(" and ")))
    }

    /// The channels of an operand.
    fn width(&self, id: NodeId) -> usize {
        self.graph.node(id).channels()
    }

    /// The address of a block of weights.
    fn weight(&self, offset: usize) -> u64 {
        self.bases.weights.map_or(offset as u64, |places| places.address(offset))
    }
}

/// A launch of a kernel of the table, for that storage type.
pub(super) fn launch<P: Pod>(dtype: DType, name: &str, grid: [u32; 3], params: P) -> Result<Launch> {
    let Some(kernel) = named(name) else { return Err(Error::Graph(format!("there is no kernel `{name}`"))) };
    kernel.launch(dtype, grid, params)
}

/// That a node is not what the kernels take.
fn refused(node: &Node, what: &str) -> Error {
    Error::Graph(format!("`{}` {:?} on CUDA: {what}; the CPU runs it", node.name, node.shape))
}
