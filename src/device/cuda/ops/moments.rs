//! The moments that kernels of sm_90a store beside a result that a group norm reads, so that the norm does not read it twice.
//!
//! Of each run of [`RUN`] rows of one image and each channel: the mean of the values as they are stored and the sum of their squared
//! deviations from it, `[images, runs, 2, channels]` in f32. The rows of a run, and whether there are moments at all, depend on one
//! image's shape alone.

use super::tile::TileDevice;
use super::tile_sm90::STEP;
use crate::graph::{Graph, ImplicitGemm, Life, Node, NodeId, Op, place};
use crate::tensor::DType;

/// Rows of a run: those of a box of the kernels' results (`mainloop_sm90.cuh`), which no tile divides.
pub const RUN: usize = 64;

/// The moments of a graph's results.
#[derive(Debug, Clone)]
pub(crate) struct MomentsPlan {
    /// The place of each node's, in f32 from the start of their region; none where no norm reads them or there are no whole runs.
    pub(crate) places: Vec<Option<usize>>,
    /// Whether the node's kernel stores them.
    pub(crate) made: Vec<bool>,
    /// The f32 of the region.
    pub(crate) floats: usize,
}

impl MomentsPlan {
    /// Gives moments that live at the same time places of their own. `owners` are [`Graph::owners`].
    pub(crate) fn new(graph: &Graph, owners: &[usize], device: TileDevice, dtype: DType) -> Self {
        let count = graph.nodes.len();
        let mut last = vec![None; count];
        for (i, node) in graph.nodes.iter().enumerate() {
            if matches!(node.op, Op::GroupNorm { .. }) {
                for source in node.inputs.iter().filter_map(|id| source_of(graph, owners, *id)) {
                    last[source] = Some(i);
                }
            }
        }
        let possible = device.capability == (9, 0) && dtype != DType::F32;
        let (mut nodes, mut lives) = (Vec::new(), Vec::new());
        for (first, node) in graph.nodes.iter().enumerate().filter(|_| possible) {
            if let (Some(last), true) = (last[first], has_runs(graph, node)) {
                nodes.push(first);
                lives.push(Life { len: node.len() / RUN * 2, first, last });
            }
        }
        let (starts, floats) = place(&lives);
        let mut places = vec![None; count];
        nodes.into_iter().zip(starts).for_each(|(node, start)| places[node] = Some(start));
        Self { places, made: vec![false; count], floats }
    }
}

/// Rows of an image beyond which there are no moments: they would take tens of megabytes, and a norm's joining of them as long as reading.
const MOST: usize = 1 << 18;

/// Whether a node may be computed by a kernel that stores moments: a product, or a convolution of sources that fill a step, whose images
/// have whole runs of rows, and not too many.
fn has_runs(graph: &Graph, node: &Node) -> bool {
    let wide = |gemm: ImplicitGemm<'_>| {
        let mut sources = node.inputs.iter().take(gemm.sources);
        gemm.conv.is_none() || sources.all(|id| graph.node(*id).channels() >= STEP)
    };
    node.op.implicit_gemm().is_some_and(wide) && node.tokens().is_multiple_of(RUN) && node.tokens() <= MOST
}

/// Cuts a node out with those on which its kernels depend: a group norm with the products and convolutions that may store its moments,
/// one of these with the first norm that reads it, others alone.
///
/// # Panics
/// If there is no such node.
pub fn excerpt(graph: &Graph, id: NodeId) -> Graph {
    // From the node that owns an operand's bytes, over reshapes, to the operand.
    let path = |operand: NodeId| {
        let mut path = vec![operand];
        while matches!(graph.node(path[0]).op, Op::Reshape) {
            path.insert(0, graph.node(path[0]).inputs[0]);
        }
        path
    };
    let is_norm = |node: &Node| matches!(node.op, Op::GroupNorm { .. });
    let (node, mut ids) = (graph.node(id), vec![id]);
    if is_norm(node) {
        let paths = node.inputs.iter().map(|operand| path(*operand));
        ids.extend(paths.filter(|path| has_runs(graph, graph.node(path[0]))).flatten());
    } else if has_runs(graph, node) {
        let reads = |norm: &Node| norm.inputs.iter().map(|operand| path(*operand)).find(|path| path[0] == id);
        let mut norms = graph.iter().filter(|(_, norm)| is_norm(norm));
        if let Some((norm, path)) = norms.find_map(|(norm, node)| Some((norm, reads(node)?))) {
            ids.extend(path);
            ids.push(norm);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    graph.excerpt(&ids)
}

/// The node whose result a norm reads as its operand: of the same images and channels, reshaped or not.
pub(crate) fn source_of(graph: &Graph, owners: &[usize], id: NodeId) -> Option<usize> {
    let (source, read) = (&graph.nodes[owners[id.0]], graph.node(id));
    (source.shape.first() == read.shape.first() && source.channels() == read.channels()).then_some(owners[id.0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, fuse};
    use crate::weights::{Scope, Weight, Weights};

    const H100: TileDevice = TileDevice { multiprocessors: 132, capability: (9, 0) };

    /// Three convolutions, each before a norm, over images of that side.
    fn block(side: usize) -> Graph {
        let mut weights = Weights::new("test");
        for (name, shape) in [
            ("conv.weight", vec![STEP, STEP, 3, 3]),
            ("conv.bias", vec![STEP]),
            ("norm.weight", vec![STEP]),
            ("norm.bias", vec![STEP]),
        ] {
            let values = vec![0.5; shape.iter().product()];
            weights.insert(name, Weight::from_f32(&values, &shape, name).unwrap()).unwrap();
        }
        let (s, mut b) = (Scope::new(weights), Builder::new());
        let mut x = b.input("x", &[2, side, side, STEP]);
        for _ in 0..3 {
            let h = b.conv2d(x, &s.pp("conv"), STEP, 3, 1);
            x = b.group_norm(h, &s.pp("norm"), 2, 1e-5);
        }
        b.output("y", x);
        fuse(b.finish().unwrap())
    }

    /// A convolution's moments are of no use once its norm has read them, so the next ones take their place.
    #[test]
    fn places_are_used_again() {
        let graph = block(16);
        let plan = MomentsPlan::new(&graph, &graph.owners(), H100, DType::F16);
        let places: Vec<usize> = plan.places.iter().flatten().copied().collect();
        let each = 2 * 16 * 16 / RUN * 2 * STEP;
        assert_eq!((places, plan.floats), (vec![0; 3], each));
        assert!(!plan.made.contains(&true));
    }

    /// No runs, no such kernels, or a type that they do not have.
    #[test]
    fn graphs_without_moments() {
        let floats = |side, capability, dtype| {
            let graph = block(side);
            MomentsPlan::new(&graph, &graph.owners(), TileDevice { capability, ..H100 }, dtype).floats
        };
        assert!(floats(8, (9, 0), DType::BF16) > 0);
        assert_eq!(
            [floats(12, (9, 0), DType::F16), floats(8, (8, 0), DType::F16), floats(8, (9, 0), DType::F32)],
            [0; 3]
        );
    }
}
