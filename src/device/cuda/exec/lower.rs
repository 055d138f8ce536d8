//! From a graph to commands: every node becomes launches with their parameters, grids and addresses, once, when the graph is compiled.

use crate::device::cuda::driver::command::Command;
use crate::device::cuda::ops::bindings::Bindings;
use crate::device::cuda::ops::lowering::{BaseAddresses, Lowering, LoweringOptions, misrouted};
use crate::device::cuda::ops::memory_layout::{MemoryLayout, REGION};
use crate::device::cuda::ops::moments::MomentsPlan;
use crate::device::cuda::ops::pointwise::{as_f32, from_f32, to_f32};
use crate::device::cuda::ops::registry::lowering_of;
use crate::device::cuda::ops::step;
use crate::device::cuda::weights::layout::WeightLayout;
use crate::device::{Role, RowAxis};
use crate::error::{Error, Result};
use crate::graph::{Graph, MemoryPlan, Op};
use std::ops::Range;

/// A graph as commands.
#[derive(Debug)]
pub(crate) struct Lowered {
    /// Before a denoise loop's first step: converts its inputs.
    pub(crate) once: Vec<Command>,
    /// In order; for a denoise loop all that a step does.
    pub(crate) steps: Vec<Command>,
    /// Those of `steps` that compute the nodes; those around them convert inputs and outputs.
    pub(crate) body: Range<usize>,
    /// The weights.
    pub(crate) weights: WeightLayout,
    /// The regions of the allocations.
    pub(crate) regions: MemoryLayout,
    /// The places of inputs and outputs in their regions.
    pub(crate) bindings: Bindings,
}

/// Lowers a fused graph for its part in a request.
///
/// # Errors
/// [`Error::Graph`] with the node's name where no kernel takes it, or where it reads an input of another type.
pub(crate) fn lower(
    graph: &Graph,
    plan: &MemoryPlan,
    options: &LoweringOptions,
    role: &Role,
    bases: BaseAddresses<'_>,
) -> Result<Lowered> {
    graph.check_types()?;
    check(graph)?;
    let steps = if let Role::Denoise(steps) = role { Some(steps) } else { None };
    if let Some(steps) = steps {
        steps.check(graph)?;
        if graph.outputs.len() > 1 {
            return Err(Error::Graph("a denoise loop's graph on CUDA: one output is possible".into()));
        }
        if steps.varying.clone().any(|k| steps.row_axis(k) == RowAxis::Shared) {
            return Err(Error::Graph("a denoise loop's graph on CUDA: inputs that vary have rows of their own".into()));
        }
    }
    let bindings = Bindings::new(graph, plan);
    let moments = MomentsPlan::new(graph, &bindings.root, options.tile_device(), options.dtype);
    let regions = layout(graph, (plan, moments.floats), options, role, &bindings);
    let mut l = Lowering::new((graph, plan, moments), *options, bases, bindings, regions);
    convert_inputs(&mut l)?;
    let (once, body) = match steps {
        Some(steps) => {
            let once = std::mem::take(&mut l.commands);
            step::model_input(&mut l)?;
            step::step_inputs(&mut l, steps)?;
            let body = nodes(&mut l, plan)?;
            step::scheduler_step(&mut l)?;
            (once, body)
        }
        None => {
            let body = nodes(&mut l, plan)?;
            if let Role::Condition | Role::Decode(_) = role {
                step::check_finite(&mut l)?;
            }
            if let Role::Decode(rounding) = role {
                step::to_rgb8(&mut l, *rounding)?;
            }
            (Vec::new(), body)
        }
    };
    let deepest = l.scratch_bytes();
    let Lowering { commands: steps, weights, bindings, mut regions, .. } = l;
    regions.end = (regions.scratch + deepest).next_multiple_of(REGION);
    Ok(Lowered { once, steps, body, weights, regions, bindings })
}

/// Checks that every count fits the kernels' 32-bit parameters; only an input may be empty, such as the scales of no adapter.
fn check(graph: &Graph) -> Result<()> {
    for node in &graph.nodes {
        let rows = node.len() / node.channels().max(1);
        let empty = node.is_empty() && !matches!(node.op, Op::Input(_));
        if empty || rows > i32::MAX as usize || node.channels() > i32::MAX as usize / 16 {
            return Err(Error::Graph(format!("`{}` of shape {:?} is too large or empty", node.name, node.shape)));
        }
    }
    Ok(())
}

/// Places the regions, all but the end of the scratch memory.
fn layout(
    graph: &Graph,
    (plan, moments): (&MemoryPlan, usize),
    options: &LoweringOptions,
    role: &Role,
    bindings: &Bindings,
) -> MemoryLayout {
    let size = options.dtype.size();
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
    if let Role::Denoise(steps) = role {
        regions.state = step::loop_state(graph, steps, &mut region);
    }
    if let Role::Condition | Role::Decode(_) = role {
        let pixels = match (role, graph.outputs.first()) {
            (Role::Decode(_), Some((_, id))) => graph.node(*id).len().next_multiple_of(4),
            _ => 0,
        };
        // The flag comes right after the pixels.
        regions.pixels = place(&mut results, pixels + 4);
        regions.flag = regions.pixels + pixels;
    }
    regions.results = results;
    regions.arena = region(plan.arena * size);
    regions.moments = region(moments * 4);
    regions.scratch = end;
    regions
}

/// Converts the inputs to the storage type.
fn convert_inputs(l: &mut Lowering<'_>) -> Result<()> {
    let count = l.bindings.converted;
    if count > 0 {
        let [from, to] = [l.regions.inputs, l.regions.converted].map(|at| l.work(at));
        from_f32(l, from, to, count)?;
    }
    Ok(())
}

/// Lowers all nodes, then the outputs; returns the commands of the nodes.
fn nodes(l: &mut Lowering<'_>, plan: &MemoryPlan) -> Result<Range<usize>> {
    let graph = l.graph;
    let first = l.commands.len();
    for (i, node) in graph.nodes.iter().enumerate() {
        l.next_node(i);
        match lowering_of(&node.op) {
            Some(op) => {
                let out = l.result(i);
                (op.lower)(l, node, out)?;
            }
            None if matches!(node.op, Op::Input(_) | Op::Reshape) => {}
            None => return Err(misrouted(node)),
        }
    }
    let body = first..l.commands.len();
    l.next_node(graph.nodes.len());
    for (k, id) in &plan.copies {
        let len = graph.node(*id).len();
        let out = l.output(*k);
        let (from, size) = match l.bindings.input_of(graph, *id) {
            Some(_) => (as_f32(l, *id)?, 4),
            None => (l.place(*id), l.size()),
        };
        l.commands.push(Command::Copy(from, out.at, len * size));
    }
    let count = l.bindings.returned;
    if count > 0 {
        let (from, to) = (l.work(l.regions.returned), l.kept(l.regions.outputs));
        to_f32(l, from, to, count)?;
    }
    Ok(body)
}
