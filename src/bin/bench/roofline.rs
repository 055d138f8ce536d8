//! `bench roofline`: the work of SDXL's UNet on a GPU that need not be there.
//!
//! Products are taken as Braid's own kernels, with the tiles that they would have; where the driver's library takes one, its
//! tile is its own affair. Bytes are those that must move if nothing is read twice. Time is the longer of computing and moving,
//! operation by operation; launches cost nothing, because a program is replayed as one captured graph.

use crate::args::{self, Failure};
use crate::gpus::{self, GPUS, Gpu};
use crate::host::Host;
use crate::lists::{self, Format, table};
use crate::terminal;
use braid::device::cuda::tiles;
use braid::graph::{Epilogue, Graph, Node, Op, fuse};
use braid::models::condition::condition;
use braid::models::tables::{self, Table};
use braid::models::unet::{UnetShape, unet};
use braid::pipeline::MAX_SIDE;
use braid::synth::published;
use braid::tensor::DType;
use braid::weights::{Scope, Storage, Weight, Weights};
use braid::{Compat, Error};
use lexopt::Arg;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes of an element as a GPU stores it.
const SIZE: f64 = 2.0;
/// Pixels of a side of the latents' pixels.
const FACTOR: usize = 8;
/// How many of the worst are listed.
const WORST: usize = 10;

pub fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let p = &mut parser;
    let (mut gpus, mut sizes, mut batches, mut format) = (Vec::new(), vec![1024], vec![2], Format::Markdown);
    while let Some(arg) = p.next().map_err(args::usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return terminal::print(crate::HELP),
            Arg::Long("gpu") => {
                for name in args::text(p, "--gpu")?.split(',') {
                    let known = GPUS.map(|g| g.name).join(", ");
                    let what = || Failure::usage(format!("--gpu: `{name}` is not known; one of {known} is"));
                    gpus.push(gpus::find(name.trim()).ok_or_else(what)?);
                }
            }
            Arg::Long("size") => sizes = lists::numbers(p, "--size", 64, MAX_SIDE)?,
            Arg::Short('b') | Arg::Long("batch") => batches = lists::numbers(p, "--batch", 1, 64)?,
            Arg::Short('o') | Arg::Long("output") => format = Format::read(p)?,
            other => return Err(args::unexpected_of(other, "bench --help")),
        }
    }
    if gpus.is_empty() {
        return Err(Failure::usage(format!("--gpu: missing; give one of {}", GPUS.map(|g| g.name).join(", "))));
    }
    let mut rows = Vec::new();
    for &size in &sizes {
        if size % FACTOR != 0 {
            return Err(Failure::usage(format!("--size: {size} given; a multiple of {FACTOR} is needed")));
        }
        for &batch in &batches {
            let graph = denoise(size / FACTOR, batch)?;
            let pass_flops = pass(size / FACTOR)?;
            gpus.iter().for_each(|gpu| rows.push(Roofline::new(*gpu, size, batch, pass_flops, &graph)));
        }
    }
    terminal::print(&match format {
        Format::Markdown => rows.iter().map(Roofline::markdown).collect::<Vec<_>>().join("\n"),
        Format::Csv => {
            let cells: Vec<_> = rows.iter().flat_map(|r| r.ops.iter().map(|o| r.cells(o))).collect();
            table(&TITLES, &cells, false)
        }
        Format::Json => terminal::json(&rows),
        Format::JsonLines => rows.iter().map(terminal::json).collect(),
    })
}

/// Tensors of these shapes, all of them one element that repeats: a graph without its weights' bytes.
fn hollow(table: Table) -> Result<Scope, Error> {
    let storage = Arc::new(Storage::owned(vec![0; 2]));
    let mut weights = Weights::new("published");
    for (name, shape) in table {
        let strides = vec![0; shape.len()];
        let weight = Weight::strided(storage.clone(), 0, DType::F16, shape, strides, name.as_str());
        weights.insert(name, weight.ok_or_else(|| Error::Graph("a table's shape overflows".into()))?)?;
    }
    Ok(Scope::new(weights))
}

fn shape(side: usize, batch: usize) -> UnetShape {
    UnetShape { batch, height: side, width: side, tokens: 77, image_tokens: Vec::new() }
}

/// One evaluation of the published UNet, fused.
fn denoise(side: usize, batch: usize) -> Result<Graph, Error> {
    let config = published::unet();
    let scope = hollow(tables::unet(&config))?;
    Ok(fuse(unet(&config, &scope, &shape(side, batch), &Compat::diffusers())?))
}

/// FLOPs of the UNet for one row, what Braid computes once a request (time embeddings, the text's keys and values) included:
/// what is published as the model's work.
fn pass(side: usize) -> Result<f64, Error> {
    let config = published::unet();
    let scope = hollow(tables::unet(&config))?;
    let once = condition(&config, &scope, &shape(side, 1), 1, &[])?;
    Ok(2.0 * (denoise(side, 1)?.macs() + once.macs()) as f64)
}

/// How work is cut into blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Cut {
    tile: String,
    blocks: usize,
    /// Share of the tiles' elements that the result has.
    tile_efficiency: f64,
    /// Share of the multiprocessors' turns in which they have a block.
    wave_efficiency: f64,
}

impl Cut {
    fn new(tile: String, blocks: usize, tile_efficiency: f64, multiprocessors: usize) -> Self {
        let turns = blocks.div_ceil(multiprocessors) * multiprocessors;
        Self { tile, blocks, tile_efficiency, wave_efficiency: blocks as f64 / turns.max(1) as f64 }
    }
}

/// An operation of one shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Operation {
    kind: &'static str,
    /// `rows x columns x sum` of a product, else the result's shape.
    shape: String,
    /// The first layer of that shape.
    layer: String,
    /// How often it occurs; what follows is of one of them.
    count: usize,
    flops: f64,
    bytes: f64,
    /// The longer of computing and moving at full speed.
    floor_seconds: f64,
    /// The same with computing slowed by tiles and waves that are not full.
    predicted_seconds: f64,
    cut: Option<Cut>,
}

impl Operation {
    fn of(graph: &Graph, node: &Node, gpu: &Gpu) -> Option<Self> {
        let sms = gpu.multiprocessors;
        let (rows, n) = (node.len() / node.channels().max(1), node.channels());
        // Query, key and value may come from one tensor.
        let inputs: BTreeSet<_> = node.inputs.iter().collect();
        let operands: usize = inputs.into_iter().map(|id| graph.node(*id).len()).sum();
        let (mut flops, mut weights) = (0.0, 0);
        let result = || node.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let (kind, shape, cut) = match &node.op {
            Op::Input | Op::Reshape => return None,
            Op::Product(p) => {
                weights = p.parts.iter().map(|a| a.weight.len() + a.bias.as_ref().map_or(0, |b| b.len())).sum();
                let macs: usize = p.parts.iter().map(|a| rows * a.weight.len()).sum();
                flops = 2.0 * macs as f64;
                let columns: usize = p.parts.iter().map(|a| a.weight.shape().first().copied().unwrap_or(1)).sum();
                let k = macs / (rows * columns).max(1);
                let geglu = p.epilogue == Epilogue::Geglu;
                let tile = if geglu { tiles::geglu(rows, n, sms) } else { tiles::product(rows, columns, sms) };
                // A convolution after an upsample by two is cut into one picture for each of the four phases.
                let phases = if p.window.is_some_and(|w| w.resize.is_some()) { 4 } else { 1 };
                let [x, y] = tile.grid(rows.div_ceil(phases), columns);
                let blocks = x as usize * y as usize * phases;
                let full = (rows * columns) as f64 / (blocks * tile.m * tile.n) as f64;
                let kind = match p.window {
                    Some(w) if w.kernel > 1 => "convolution",
                    _ if geglu => "product with GEGLU",
                    _ => "product",
                };
                (kind, format!("{rows}x{columns}x{k}"), Some(Cut::new(tile.name(), blocks, full, sms)))
            }
            Op::Attention(a) => {
                let keys: usize = a.strands.iter().map(|s| graph.node(node.inputs[s.keys.operand]).tokens()).sum();
                flops = 4.0 * (rows * keys * a.heads * a.dim) as f64;
                let plain = a.strands.len() == 1 && a.strands[0].scale.is_none();
                let kernel = if plain { tiles::attention(a.dim) } else { tiles::decoupled(a.dim) };
                let cut = kernel.map(|(name, queries)| {
                    let tokens = node.tokens();
                    let blocks = tokens.div_ceil(queries) * a.heads * node.shape[0];
                    let full = tokens as f64 / (tokens.div_ceil(queries) * queries) as f64;
                    Cut::new(format!("{name}, {queries} queries"), blocks, full, sms)
                });
                ("attention", format!("{}x{keys}x{}", result(), a.heads), cut)
            }
            Op::GroupNorm { .. } => ("group norm", result(), None),
            Op::LayerNorm { .. } => ("layer norm", result(), None),
            _ => ("pointwise", result(), None),
        };
        let bytes = SIZE * (operands + weights + node.len()) as f64;
        let (compute, moving) = (flops / gpu.peak, bytes / gpu.bandwidth);
        let share = cut.as_ref().map_or(1.0, |c| c.tile_efficiency * c.wave_efficiency);
        Some(Self {
            kind,
            shape,
            layer: node.name.clone(),
            count: 1,
            flops,
            bytes,
            floor_seconds: compute.max(moving),
            predicted_seconds: (compute / share).max(moving),
            cut,
        })
    }
}

/// The work of one evaluation on one GPU.
#[derive(Debug, Serialize)]
struct Roofline {
    benchmark: &'static str,
    #[serde(flatten)]
    host: Host,
    gpu: Gpu,
    width: usize,
    height: usize,
    batch: usize,
    /// The whole UNet for one row of the batch, in FLOP.
    pass_flops: f64,
    /// What a step computes for all rows.
    step_flops: f64,
    step_bytes: f64,
    floor_seconds: f64,
    predicted_seconds: f64,
    /// The longest altogether first.
    ops: Vec<Operation>,
    /// The worst wave efficiencies.
    worst: Vec<Operation>,
}

const TITLES: [&str; 13] = [
    "gpu",
    "size",
    "batch",
    "op",
    "shape",
    "count",
    "GFLOP",
    "MB",
    "floor us",
    "tile",
    "tile %",
    "wave %",
    "predicted us",
];

impl Roofline {
    fn new(gpu: Gpu, size: usize, batch: usize, pass_flops: f64, graph: &Graph) -> Self {
        let mut distinct: BTreeMap<_, Operation> = BTreeMap::new();
        for op in graph.nodes.iter().filter_map(|n| Operation::of(graph, n, &gpu)) {
            // Bytes tell apart what has a residual and what has none.
            let key = (op.kind, op.shape.clone(), op.bytes as u64);
            distinct.entry(key).and_modify(|o| o.count += 1).or_insert(op);
        }
        let mut ops: Vec<_> = distinct.into_values().collect();
        let total = |f: fn(&Operation) -> f64| ops.iter().map(|o| o.count as f64 * f(o)).sum();
        let (step_flops, step_bytes) = (total(|o| o.flops), total(|o| o.bytes));
        let (floor_seconds, predicted_seconds) = (total(|o| o.floor_seconds), total(|o| o.predicted_seconds));
        let time = |o: &Operation| o.count as f64 * o.predicted_seconds;
        ops.sort_by(|a, b| time(b).total_cmp(&time(a)));
        let wave = |o: &Operation| o.cut.as_ref().map_or(1.0, |c| c.wave_efficiency);
        let mut worst: Vec<_> = ops.iter().filter(|o| o.cut.is_some()).cloned().collect();
        worst.sort_by(|a, b| wave(a).total_cmp(&wave(b)));
        worst.truncate(WORST);
        Self {
            benchmark: "roofline",
            host: Host::now(),
            gpu,
            width: size,
            height: size,
            batch,
            pass_flops,
            step_flops,
            step_bytes,
            floor_seconds,
            predicted_seconds,
            ops,
            worst,
        }
    }

    fn cells(&self, o: &Operation) -> Vec<String> {
        let (tile, full, wave) = match &o.cut {
            Some(c) => (
                c.tile.clone(),
                format!("{:.1}", c.tile_efficiency * 100.0),
                format!("{:.1}", c.wave_efficiency * 100.0),
            ),
            None => Default::default(),
        };
        vec![
            self.gpu.name.into(),
            self.width.to_string(),
            self.batch.to_string(),
            o.kind.into(),
            o.shape.clone(),
            o.count.to_string(),
            format!("{:.2}", o.flops / 1e9),
            format!("{:.2}", o.bytes / 1e6),
            format!("{:.1}", o.floor_seconds * 1e6),
            tile,
            full,
            wave,
            format!("{:.1}", o.predicted_seconds * 1e6),
        ]
    }

    fn markdown(&self) -> String {
        let list = |ops: &[Operation]| {
            let rows: Vec<_> = ops.iter().map(|o| self.cells(o).split_off(3)).collect();
            table(&TITLES[3..], &rows, true)
        };
        format!(
            "{} at {}x{}, {} row(s): {:.2} TFLOP per UNet pass of one row\n\
             a step: {:.2} TFLOP, {:.2} GB, floor {:.2} ms, predicted {:.2} ms\n\n{}\n\
             The {} worst by wave efficiency:\n\n{}",
            self.gpu.name,
            self.width,
            self.height,
            self.batch,
            self.pass_flops / 1e12,
            self.step_flops / 1e12,
            self.step_bytes / 1e9,
            self.floor_seconds * 1e3,
            self.predicted_seconds * 1e3,
            list(&self.ops),
            self.worst.len(),
            list(&self.worst)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_of_sdxl_at_1024() {
        let flops = pass(128).unwrap_or(0.0);
        assert!((flops / 6.76e12 - 1.0).abs() < 0.01, "{flops}");
    }

    #[test]
    fn waves() {
        // 80 blocks on 132 multiprocessors: 61 % of them have work. 133: two turns for one block more.
        let wave = |blocks| Cut::new(String::new(), blocks, 1.0, 132).wave_efficiency;
        assert!((wave(80) - 80.0 / 132.0).abs() < 1e-12);
        assert_eq!(wave(132), 1.0);
        assert!((wave(133) - 133.0 / 264.0).abs() < 1e-12);
    }
}
