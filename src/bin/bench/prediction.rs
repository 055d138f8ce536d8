//! Operations on a GPU that need not be present: their division into blocks, their floor, and what the present kernels should take.

use crate::gpus::Gpu;
use crate::model::{self, Modelled};
use crate::sm90;
use crate::work::{Label, Operation, Part};
use braid::Error;
use braid::device::cuda::driver::{Gemm, Launch};
use braid::device::cuda::{ChunkLimits, LoweringOptions, LoweringReport};
use braid::tensor::DType;
use serde::Serialize;

/// Bytes of an element as a GPU stores it.
const SIZE: usize = 2;

/// The settings by which graphs are lowered for a GPU.
pub fn lowering(gpu: &Gpu, cublaslt: bool, fp8: bool) -> LoweringOptions {
    LoweringOptions {
        dtype: DType::F16,
        multiprocessors: gpu.multiprocessors,
        capability: gpu.capability,
        cublaslt,
        fp8,
        limits: ChunkLimits::DEFAULT,
    }
}

/// The division of an operation into blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cut {
    /// The kernel that does most.
    pub kernel: String,
    /// Blocks of all kernels that multiply; of those of sm_90a, whose blocks take several, tiles.
    pub blocks: usize,
    /// Share of the tiles' elements that the result has.
    pub tile_efficiency: f64,
    /// Share of the multiprocessors' waves in which they have a block.
    pub wave_efficiency: f64,
}

/// Elements of the result, GEGLU's gates included, that a block of a kernel makes, or rows of queries that it takes; `None` for
/// kernels that do not multiply.
fn elements(kernel: &str) -> Option<usize> {
    match kernel {
        "convolution_few_in" => return Some(16 * 128),
        "convolution_few_out_4" => return Some(16 * 4),
        "convolution_few_out_8" => return Some(16 * 8),
        "attention_64" | "attention_80" | "attention_sm90_64" | "decoupled_sm90_64" => return Some(128),
        "attention_112" => return Some(64),
        _ if kernel.starts_with("decoupled_") => return Some(64),
        _ => {}
    }
    let name = ["gemm_geglu_", "gemm_", "convolution_"].into_iter().find_map(|start| kernel.strip_prefix(start))?;
    let (m, n) = name.trim_start_matches("fp8_").trim_start_matches("sm90_").split_once('x')?;
    Some(m.parse::<usize>().ok()? * n.parse::<usize>().ok()?)
}

fn wave_count(blocks: usize, multiprocessors: usize) -> f64 {
    blocks as f64 / (blocks.div_ceil(multiprocessors) * multiprocessors).max(1) as f64
}

impl Cut {
    /// The division of an operation's launches; `None` where nothing is multiplied.
    fn of(operation: &Operation, launches: &[Launch], multiprocessors: usize) -> Option<Self> {
        let kernel = |l: &Launch| l.entry.rsplit_once('_').map_or(l.entry.as_str(), |(name, _)| name).to_owned();
        let blocks = |l: &Launch| match sm90::Work::of(l) {
            Some(work) => work.tiles(),
            None => l.grid.iter().map(|n| *n as usize).product::<usize>(),
        };
        let main: Vec<_> =
            launches.iter().filter_map(|l| Some((kernel(l), blocks(l), elements(&kernel(l))?))).collect();
        let (name, _, _) = main.iter().max_by_key(|(_, blocks, elements)| blocks * elements)?;
        let made: usize = main.iter().map(|(_, blocks, elements)| blocks * elements).sum();
        // Attention by products goes through scores and back: its launches do the same work each and fill their tiles.
        let alone = main.len() == 1;
        let tile_efficiency = if alone { (operation.cost.accumulators as f64 / made as f64).min(1.0) } else { 1.0 };
        let inverse: f64 = main.iter().map(|(_, blocks, _)| 1.0 / wave_count(*blocks, multiprocessors)).sum();
        Some(Self {
            kernel: name.clone(),
            blocks: main.iter().map(|(_, blocks, _)| blocks).sum(),
            tile_efficiency,
            wave_efficiency: main.len() as f64 / inverse,
        })
    }
}

/// An operation on a GPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Predicted {
    /// Its names and how often it occurs.
    #[serde(flatten)]
    pub label: Label,
    /// FLOPs of one of them; the figures below are of one, too.
    pub flops: f64,
    /// FLOPs that the kernels compute: an upsample folded into a convolution leaves four of nine taps.
    pub kernel_flops: f64,
    /// Bytes that must move.
    pub bytes: f64,
    /// The longer of computing and moving at full speed.
    pub floor_seconds: f64,
    /// The same with computing slowed by tiles and waves that are not full.
    pub predicted_seconds: f64,
    /// The time that `bench ops` measured, where that was given and has it.
    pub measured_seconds: Option<f64>,
    /// The blocks, where something is multiplied.
    pub cut: Option<Cut>,
    /// Launches of the present kernels and the library.
    pub nodes: usize,
    /// The present kernels and the library, where the build has the kernels' machine code.
    pub modelled: Option<Modelled>,
}

impl Predicted {
    /// Predicts an operation; `measured` is the time that was measured of it.
    ///
    /// # Errors
    /// [`Error::Graph`] where no kernel takes it.
    pub fn of(operation: &Operation, gpu: &Gpu, measured: Option<f64>) -> Result<Self, Error> {
        // Within a model the result is read again, so it is stored as halves, where an output alone would be f32.
        let mut graph = operation.around.clone();
        graph.outputs.extend_from_within(..);
        let norm = operation.label.kind == "group norm";
        let own = |(mut launches, mut library): (Vec<Launch>, Vec<Gemm>)| {
            launches.retain(|launch| (launch.kernel.module == "group_norm") == norm);
            library.retain(|_| !norm);
            (launches, library)
        };
        let work = |cublaslt| LoweringReport::work_of(graph.clone(), &lowering(gpu, cublaslt, operation.fp8)).map(own);
        let (launches, _) = work(false)?;
        let phases = launches.iter().any(|l| l.entry.starts_with("convolution_") && l.grid[2] == 4)
            || launches.iter().any(sm90::phases);
        let kernel_flops = if phases { operation.cost.flops() * 4.0 / 9.0 } else { operation.cost.flops() };
        let cut = Cut::of(operation, &launches, gpu.multiprocessors);
        // Weights of one byte each, at twice the rate.
        let shrunk = if launches.iter().any(sm90::multiplies_e4m3) { 2 } else { 1 };
        let bytes = operation.cost.bytes(SIZE, SIZE / shrunk);
        let (present, library) = work(true)?;
        let library: Vec<_> = library.iter().map(|gemm| [gemm.n * gemm.batch, gemm.m, gemm.k]).collect();
        let (compute, moving) = (kernel_flops / (gpu.peak * shrunk as f64), bytes / gpu.bandwidth);
        let share = cut.as_ref().map_or(1.0, |c| c.tile_efficiency * c.wave_efficiency);
        Ok(Self {
            label: operation.label.clone(),
            flops: operation.cost.flops(),
            kernel_flops,
            bytes,
            floor_seconds: compute.max(moving),
            predicted_seconds: (compute / share).max(moving),
            measured_seconds: measured,
            nodes: present.len() + library.len(),
            modelled: model::operation(&present, &library, bytes, gpu),
            cut,
        })
    }

    /// A figure of one, as often as the operation occurs.
    pub fn all(&self, of_one: f64) -> f64 {
        self.label.count as f64 * of_one
    }
}

/// A part of a request: sums over its operations, of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// Its name.
    pub part: &'static str,
    /// The number of times that a request, or a frame of a stream, runs it.
    pub runs: usize,
    /// FLOPs.
    pub flops: f64,
    /// Bytes that must move.
    pub bytes: f64,
    /// Launches of the present kernels and the library.
    pub nodes: usize,
    /// The sum of the floors.
    pub floor_seconds: f64,
    /// The sum of what tiles and waves leave.
    pub predicted_seconds: f64,
    /// The sum, where every operation was measured.
    pub measured_seconds: Option<f64>,
    /// The sum of the present kernels, where every one could be modelled.
    pub modelled_seconds: Option<f64>,
}

impl Stage {
    /// The sums over the operations of a part.
    pub fn new(part: Part, runs: usize, ops: &[Predicted]) -> Self {
        let total = |f: fn(&Predicted) -> f64| ops.iter().map(|o| o.all(f(o))).sum();
        let measured: Option<f64> = ops.iter().map(|o| o.measured_seconds.map(|s| o.all(s))).sum();
        let modelled: Option<f64> = ops.iter().map(|o| o.modelled.map(|m| o.all(m.seconds))).sum();
        Self {
            part: part.name(),
            runs,
            flops: total(|o| o.flops),
            bytes: total(|o| o.bytes),
            nodes: ops.iter().map(|o| o.label.count * o.nodes).sum(),
            floor_seconds: total(|o| o.floor_seconds),
            predicted_seconds: total(|o| o.predicted_seconds),
            measured_seconds: measured.filter(|_| !ops.is_empty()),
            modelled_seconds: modelled,
        }
    }
}

#[cfg(test)]
#[path = "prediction_tests.rs"]
mod tests;
