//! The lowering of one graph while it is under way: addresses of operands and results, the commands so far.
//!
//! Lowering is a pure function of graph, options and the addresses of the allocations. It runs twice: with addresses of zero to
//! find out how large they must be, which is also the whole plan of a graph on a machine without a device, and with the real ones.
//! Launches run one after another, so every node reuses the scratch memory.

use super::bindings::{Bindings, OperandRole, TokenCount};
use super::kernel::{Pointer, Quantized};
use super::memory_layout::{MemoryLayout, REGION};
use super::moments::{MomentsPlan, RUN, source_of};
use super::tile::TileDevice;
use crate::device::cuda::driver::command::Command;
use crate::device::cuda::driver::kernel::Kernel;
use crate::device::cuda::driver::tensor_map::TensorMapDesc;
use crate::device::cuda::weights::addresses::WeightAddresses;
use crate::device::cuda::weights::layout::WeightLayout;
use crate::error::{Error, Result};
use crate::graph::{Graph, Location, MemoryPlan, Node, NodeId};
use crate::tensor::DType;
use bytemuck::Pod;

/// The options that lowering depends on besides the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoweringOptions {
    /// The storage type: f16, bf16, or f32 for a decoder.
    pub dtype: DType,
    /// Multiprocessors of the device, for the choice of tiles.
    pub multiprocessors: usize,
    /// Its compute capability, for the same.
    pub capability: (u32, u32),
    /// Whether plain products go to cuBLASLt; those of f32 never do.
    pub cublaslt: bool,
    /// Whether layers that may be quantized multiply e4m3, which devices of compute capability 9.0 alone have kernels for.
    pub fp8: bool,
    /// The sizes above which work is done in pieces.
    pub limits: ChunkLimits,
}

/// Sizes above which work is done in pieces. Results do not depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLimits {
    /// Bytes of the staging buffers through which weights go up, unless one row of a tensor is longer.
    pub staging: usize,
    /// Bytes of scores that an attention holds at once where it does not keep them in registers.
    pub scores: usize,
}

impl ChunkLimits {
    /// 32 and 64 MiB.
    pub const DEFAULT: Self = Self { staging: 32 << 20, scores: 64 << 20 };
}

impl LoweringOptions {
    /// The properties of the device on which the choice of tiles depends.
    pub(crate) fn tile_device(&self) -> TileDevice {
        TileDevice { multiprocessors: self.multiprocessors, capability: self.capability }
    }
}

/// Addresses of the allocations.
#[derive(Clone, Copy, Default)]
pub(crate) struct BaseAddresses<'a> {
    /// Addresses of the weights; each lies at its offset where they are not known yet.
    pub(crate) weights: Option<&'a WeightAddresses>,
    /// The allocation that other executables may read.
    pub(crate) results: u64,
    /// The allocation of everything else.
    pub(crate) work: u64,
}

/// The place to which a result is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResultSlot {
    /// Its address.
    pub(crate) at: u64,
    /// Whether as f32 rather than in the storage type.
    pub(crate) float: bool,
}

/// An operation of the graph on this device.
pub(crate) struct OpLowering {
    /// Adds the commands that compute a node.
    pub(crate) lower: fn(&mut Lowering<'_>, &Node, ResultSlot) -> Result<()>,
    /// The role of the operand of that number, which is of floats.
    pub(crate) operand_role: fn(&Graph, &Node, usize) -> OperandRole,
    /// Whether a node can store its result as f32.
    pub(crate) writes_f32: fn(&Graph, &Node) -> bool,
    /// The rows of the table of token counts that a node needs.
    pub(crate) token_counts: fn(&Bindings, &Graph, &Node) -> Option<Vec<TokenCount>>,
}

impl OpLowering {
    /// An operation that reads its operands and stores its result in the storage type.
    pub(crate) const fn new(lower: fn(&mut Lowering<'_>, &Node, ResultSlot) -> Result<()>) -> Self {
        Self {
            lower,
            operand_role: |_, _, _| OperandRole::Storage,
            writes_f32: |_, _| false,
            token_counts: |_, _, _| None,
        }
    }
}

/// The lowering of a graph.
pub(crate) struct Lowering<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) options: LoweringOptions,
    pub(crate) bindings: Bindings,
    pub(crate) regions: MemoryLayout,
    pub(crate) commands: Vec<Command>,
    pub(crate) weights: WeightLayout,
    plan: &'a MemoryPlan,
    moments: MomentsPlan,
    bases: BaseAddresses<'a>,
    /// The node that is lowered.
    node: usize,
    /// Bytes of scratch that the node has taken, and the most that any took.
    scratch: usize,
    deepest: usize,
}

impl<'a> Lowering<'a> {
    /// Begins with no commands.
    pub(crate) fn new(
        (graph, plan, moments): (&'a Graph, &'a MemoryPlan, MomentsPlan),
        options: LoweringOptions,
        bases: BaseAddresses<'a>,
        bindings: Bindings,
        regions: MemoryLayout,
    ) -> Self {
        let (commands, weights) = (Vec::new(), WeightLayout::new(options.dtype, options.limits.staging));
        let (node, scratch, deepest) = (0, 0, 0);
        Self { graph, options, bindings, regions, commands, weights, plan, moments, bases, node, scratch, deepest }
    }

    /// Goes on to that node, or past the last one, and frees the scratch memory of the one before.
    pub(crate) fn next_node(&mut self, node: usize) {
        (self.node, self.scratch) = (node, 0);
    }

    /// Bytes of scratch memory that the nodes need.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.deepest
    }

    /// Bytes of an element of the storage type.
    pub(crate) fn size(&self) -> usize {
        self.options.dtype.size()
    }

    /// Whether f32 is stored, which neither the tensor cores nor the library multiply.
    pub(crate) fn is_f32(&self) -> bool {
        self.options.dtype == DType::F32
    }

    /// An address in the work allocation.
    pub(crate) fn work(&self, at: usize) -> u64 {
        self.bases.work + at as u64
    }

    /// An address in the allocation of the results.
    pub(crate) fn kept(&self, at: usize) -> u64 {
        self.bases.results + at as u64
    }

    /// Memory for this node alone.
    pub(crate) fn scratch(&mut self, bytes: usize) -> u64 {
        let at = self.regions.scratch + self.scratch;
        self.scratch += bytes.next_multiple_of(REGION);
        self.deepest = self.deepest.max(self.scratch);
        self.work(at)
    }

    /// The place of an output.
    pub(crate) fn output(&self, k: usize) -> ResultSlot {
        let (at, float) = (self.bindings.outputs[k], self.bindings.direct[k]);
        let place = if float {
            self.kept(self.regions.outputs + at * 4)
        } else {
            self.work(self.regions.returned + at * self.size())
        };
        ResultSlot { at: place, float }
    }

    /// The place of a node's result.
    pub(crate) fn result(&self, i: usize) -> ResultSlot {
        match self.plan.locations[i] {
            Location::Output(k) => self.output(k),
            Location::Arena(at) => ResultSlot { at: self.work(self.regions.arena + at * self.size()), float: false },
            // Inputs are no results.
            Location::Input(_) => ResultSlot { at: 0, float: false },
        }
    }

    /// The address of a node's result in the storage type.
    pub(crate) fn place(&self, id: NodeId) -> u64 {
        match self.plan.locations[id.0] {
            Location::Input(k) => {
                let at = self.bindings.inputs[k].float.unwrap_or(0);
                self.work(self.regions.converted + at * self.size())
            }
            _ => self.result(id.0).at,
        }
    }

    /// The place for the moments of what the present node's kernel stores at `out`, runs of the rows that an image has; null where no norm
    /// reads them or the runs are not whole.
    pub(crate) fn store_moments(&mut self, out: Pointer, rows_of_image: usize) -> Pointer {
        // A sum before an activation is no result.
        let result = out.0 == self.result(self.node).at;
        match self.moments.places[self.node] {
            Some(at) if result && rows_of_image.is_multiple_of(RUN) => {
                self.moments.made[self.node] = true;
                Pointer(self.work(self.regions.moments + at * 4))
            }
            _ => Pointer(0),
        }
    }

    /// The moments of the runs of a norm's operand, where its kernel has stored them.
    pub(crate) fn moments_of(&self, id: NodeId) -> Option<Pointer> {
        let source = source_of(self.graph, &self.bindings.root, id)?;
        let at = self.moments.places[source].filter(|_| self.moments.made[source])?;
        Some(Pointer(self.work(self.regions.moments + at * 4)))
    }

    /// The address of an input as f32; `None` for a node's result.
    pub(crate) fn f32_input(&self, id: NodeId) -> Option<u64> {
        let Location::Input(k) = self.plan.locations[id.0] else { return None };
        let at = self.bindings.inputs[k].float.unwrap_or(0);
        Some(self.work(self.regions.inputs + at * 4))
    }

    /// An address among the inputs' integers.
    pub(crate) fn integers(&self, at: usize) -> u64 {
        self.work(self.regions.inputs + (self.bindings.floats + at) * 4)
    }

    /// The address of an input of integers.
    pub(crate) fn indices(&self, id: NodeId) -> u64 {
        let input = self.bindings.input_of(self.graph, id);
        self.integers(input.and_then(|k| self.bindings.inputs[k].integer).unwrap_or(0))
    }

    /// The channels of an operand.
    pub(crate) fn width(&self, id: NodeId) -> usize {
        self.graph.node(id).channels()
    }

    /// The address of a block of weights.
    pub(crate) fn weight(&self, offset: usize) -> u64 {
        self.bases.weights.map_or(offset as u64, |places| places.address(offset))
    }

    /// The addresses of quantized weights, given their offset and the bytes from there to their scales.
    pub(crate) fn quantized_weight(&self, (offset, scales): (usize, usize)) -> Quantized {
        let at = self.weight(offset);
        Quantized { at, scales: at + scales as u64 }
    }

    /// Adds a launch for the storage type.
    ///
    /// # Errors
    /// [`Error::Graph`] where the kernel does not take it.
    pub(crate) fn launch<P: Pod>(&mut self, kernel: &'static Kernel, grid: [u32; 3], params: P) -> Result<()> {
        self.commands.push(Command::Launch(kernel.launch(self.options.dtype, grid, params)?));
        Ok(())
    }

    /// The same with tensor maps in the parameters, each with its offset there.
    ///
    /// # Errors
    /// [`Error::Graph`] where the kernel does not take it, or where a map breaks a rule of the driver.
    pub(crate) fn launch_with_tensor_maps<P: Pod>(
        &mut self,
        kernel: &'static Kernel,
        grid: [u32; 3],
        params: P,
        maps: Vec<(usize, TensorMapDesc)>,
    ) -> Result<()> {
        let launch = kernel.launch(self.options.dtype, grid, params)?.with_tensor_maps(maps)?;
        self.commands.push(Command::Launch(launch));
        Ok(())
    }

    /// The error for a node whose kernels need sources of a multiple of 8 channels.
    pub(crate) fn uneven(&self, node: &Node, sources: usize) -> Error {
        let widths: Vec<String> = node.inputs.iter().take(sources).map(|id| self.width(*id).to_string()).collect();
        unsupported(node, &format!("sources of {} channels; multiples of 8 are needed", widths.join(" and ")))
    }
}

/// The error for a node that no kernel takes.
pub(crate) fn unsupported(node: &Node, what: &str) -> Error {
    Error::Graph(format!("`{}` {:?} on CUDA: {what}; the CPU runs it", node.name, node.shape))
}

/// The error for a node of an operation that has no kernel, or of another one than its lowering expects, a defect of the registry.
pub(crate) fn misrouted(node: &Node) -> Error {
    unsupported(node, "there is no kernel for this operation")
}
