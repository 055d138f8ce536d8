//! `bench roofline`: predicts the work of SDXL on a GPU, which need not be present.
//!
//! Every operation is lowered as for the GPU, so that kernels, tiles and grids are those that would run. Bytes are those that must
//! move if nothing is read twice. The floor is the longer of computing and moving at the data sheet's rates; the prediction
//! divides the computing by the tiles' and waves' efficiency of Braid's own kernels. Beside these bounds stands what the present
//! kernels should take, with the library's products where it takes part: [`crate::model`], by [`crate::assumptions`].

use crate::arguments;
use crate::assumptions::{self, Assumptions};
use crate::gpus::{self, GPUS, Gpu};
use crate::host::Host;
use crate::lists;
use crate::model::{self, Modelled};
use crate::results::Measurements;
use crate::work::{Label, Operation, Part, Setting, hollow};
use crate::work_options::{self, FACTOR, WorkOptions};
use braid::Error;
use braid::cli::failure::Failure;
use braid::cli::flag::{self, Flag};
use braid::cli::terminal;
use braid::cli::value::{Value, any_of};
use braid::device::cuda::driver::Launch;
use braid::device::cuda::{ChunkLimits, LoweringOptions, LoweringReport};
use braid::tensor::DType;
use serde::Serialize;

/// Bytes of an element as a GPU stores it.
const SIZE: usize = 2;
/// The length of the list of the worst.
const WORST: usize = 10;

/// The predictions that were asked for.
pub struct Options {
    work: WorkOptions,
    gpus: Vec<Gpu>,
    measured: Option<Measurements>,
}

/// The flags beside those of [`WorkOptions`].
pub const FLAGS: &[Flag<Options>] = &[
    Flag { long: "--gpu", value: Some("LIST"), help: "a100, h100, h200, rtx4090, l40s", set: gpus, ..Flag::NEW },
    Flag {
        long: "--measured",
        value: Some("FILE"),
        help: "`bench ops -o json` of that GPU, to stand beside the prediction",
        set: |o, v| {
            o.measured = Some(Measurements::read(&v.path()?)?);
            Ok(())
        },
        ..Flag::NEW
    },
];

fn known() -> String {
    any_of(&GPUS.map(|gpu| gpu.name))
}

fn gpus(o: &mut Options, value: &mut Value<'_>) -> Result<(), Failure> {
    let wrong = |name: &str| Failure::usage(format!("--gpu: unknown value `{name}` (expected {})", known()));
    let gpus = value.list(|name| gpus::find(name).ok_or_else(|| wrong(name)))?;
    o.gpus.extend(gpus);
    Ok(())
}

/// Runs it; `false` where help was asked for.
pub fn run(mut parser: lexopt::Parser) -> Result<bool, Failure> {
    let mut options = Options { work: WorkOptions::new(vec![Part::Unet]), gpus: Vec::new(), measured: None };
    let work = |options: &mut Options, argument: &flag::Argument, p: &mut lexopt::Parser| {
        flag::take(work_options::FLAGS, argument, &mut options.work, p)
    };
    if !arguments::read(&mut parser, FLAGS, &mut options, work)? {
        return Ok(false);
    }
    if options.gpus.is_empty() {
        return Err(Failure::usage(format!("--gpu: missing; give {}", known())));
    }
    let mut rows = Vec::new();
    for setting in options.work.settings()? {
        let pass_flops = setting.pass_flops()?;
        let work = Part::ALL.map(|part| setting.operations(part, &hollow()).map(|list| (part, list)));
        let work = work.into_iter().collect::<Result<Vec<_>, _>>()?;
        for gpu in &options.gpus {
            rows.push(Roofline::new(*gpu, &setting, pass_flops, &work, &options)?);
        }
    }
    let cells = |row: &Roofline| row.ops.iter().map(|op| row.cells(op)).collect();
    terminal::print(&lists::pages(&rows, options.work.format, &TITLES, Roofline::markdown, cells))?;
    Ok(true)
}

/// The division of an operation into blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Cut {
    /// The kernel that does most.
    kernel: String,
    blocks: usize,
    /// Share of the tiles' elements that the result has.
    tile_efficiency: f64,
    /// Share of the multiprocessors' waves in which they have a block.
    wave_efficiency: f64,
}

/// Elements of the result, GEGLU's gates included, that a block of a kernel makes, or rows of queries that it takes; `None` for
/// kernels that do not multiply.
fn elements(kernel: &str) -> Option<usize> {
    match kernel {
        "convolution_few_in" => return Some(16 * 128),
        "convolution_few_out_4" => return Some(16 * 4),
        "convolution_few_out_8" => return Some(16 * 8),
        "attention_64" | "attention_80" => return Some(128),
        "attention_112" => return Some(64),
        _ if kernel.starts_with("decoupled_") => return Some(64),
        _ => {}
    }
    let name = ["gemm_geglu_", "gemm_", "convolution_"].into_iter().find_map(|start| kernel.strip_prefix(start))?;
    let (m, n) = name.split_once('x')?;
    Some(m.parse::<usize>().ok()? * n.parse::<usize>().ok()?)
}

fn wave_count(blocks: usize, multiprocessors: usize) -> f64 {
    blocks as f64 / (blocks.div_ceil(multiprocessors) * multiprocessors).max(1) as f64
}

impl Cut {
    /// The division of an operation's launches; `None` where nothing is multiplied.
    fn of(operation: &Operation, launches: &[Launch], multiprocessors: usize) -> Option<Self> {
        let kernel = |l: &Launch| l.entry.rsplit_once('_').map_or(l.entry.as_str(), |(name, _)| name).to_owned();
        let blocks = |l: &Launch| l.grid.iter().map(|n| *n as usize).product::<usize>();
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
struct Predicted {
    #[serde(flatten)]
    label: Label,
    /// FLOPs of one of them; the figures below are of one, too.
    flops: f64,
    /// FLOPs that the kernels compute: an upsample folded into a convolution leaves four of nine taps.
    kernel_flops: f64,
    bytes: f64,
    /// The longer of computing and moving at full speed.
    floor_seconds: f64,
    /// The same with computing slowed by tiles and waves that are not full.
    predicted_seconds: f64,
    /// The time that `bench ops` measured, where that was given and has it.
    measured_seconds: Option<f64>,
    cut: Option<Cut>,
    /// The present kernels and the library, where the build has the kernels' machine code.
    modelled: Option<Modelled>,
}

impl Predicted {
    fn of(operation: &Operation, gpu: &Gpu, measured: Option<f64>) -> Result<Self, Error> {
        let settings = LoweringOptions {
            dtype: DType::F16,
            multiprocessors: gpu.multiprocessors,
            capability: gpu.capability,
            cublaslt: false,
            limits: ChunkLimits::DEFAULT,
        };
        let (launches, _) = LoweringReport::work_of(operation.graph.clone(), &settings)?;
        let phases = launches.iter().any(|l| l.entry.starts_with("convolution_") && l.grid[2] == 4);
        let kernel_flops = if phases { operation.cost.flops() * 4.0 / 9.0 } else { operation.cost.flops() };
        let cut = Cut::of(operation, &launches, gpu.multiprocessors);
        let bytes = operation.cost.bytes(SIZE, SIZE);
        let settings = LoweringOptions { cublaslt: true, ..settings };
        let (present, library) = LoweringReport::work_of(operation.graph.clone(), &settings)?;
        let library: Vec<_> = library.iter().map(|gemm| [gemm.n * gemm.batch, gemm.m, gemm.k]).collect();
        let (compute, moving) = (kernel_flops / gpu.peak, bytes / gpu.bandwidth);
        let share = cut.as_ref().map_or(1.0, |c| c.tile_efficiency * c.wave_efficiency);
        Ok(Self {
            label: operation.label.clone(),
            flops: operation.cost.flops(),
            kernel_flops,
            bytes,
            floor_seconds: compute.max(moving),
            predicted_seconds: (compute / share).max(moving),
            measured_seconds: measured,
            modelled: model::operation(&present, &library, bytes, gpu),
            cut,
        })
    }

    fn all(&self, of_one: f64) -> f64 {
        self.label.count as f64 * of_one
    }
}

/// A part of a request: sums over its operations, of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Stage {
    part: &'static str,
    /// The number of times that a request runs it.
    runs: usize,
    flops: f64,
    bytes: f64,
    floor_seconds: f64,
    predicted_seconds: f64,
    /// The sum, where every operation was measured.
    measured_seconds: Option<f64>,
    /// The sum of the present kernels, where every one could be modelled.
    modelled_seconds: Option<f64>,
}

impl Stage {
    fn new(part: Part, runs: usize, ops: &[Predicted]) -> Self {
        let total = |f: fn(&Predicted) -> f64| ops.iter().map(|o| o.all(f(o))).sum();
        let measured: Option<f64> = ops.iter().map(|o| o.measured_seconds.map(|s| o.all(s))).sum();
        let modelled: Option<f64> = ops.iter().map(|o| o.modelled.map(|m| o.all(m.seconds))).sum();
        Self {
            part: part.name(),
            runs,
            flops: total(|o| o.flops),
            bytes: total(|o| o.bytes),
            floor_seconds: total(|o| o.floor_seconds),
            predicted_seconds: total(|o| o.predicted_seconds),
            measured_seconds: measured.filter(|_| !ops.is_empty()),
            modelled_seconds: modelled,
        }
    }
}

/// The work of a request on one GPU.
#[derive(Debug, Serialize)]
struct Roofline {
    benchmark: &'static str,
    #[serde(flatten)]
    host: Host,
    gpu: Gpu,
    model: &'static str,
    width: usize,
    height: usize,
    batch: usize,
    steps: usize,
    adapter: bool,
    /// The whole UNet for one row of the batch, in FLOP.
    pass_flops: f64,
    /// The FLOPs of a step for all rows.
    step_flops: f64,
    step_bytes: f64,
    /// The floor of a step.
    floor_seconds: f64,
    predicted_seconds: f64,
    measured_seconds: Option<f64>,
    /// A step with the present kernels.
    modelled_seconds: Option<f64>,
    assumptions: Option<Assumptions>,
    /// A whole request for one image: every part as often as it runs.
    picture_floor_seconds: f64,
    picture_predicted_seconds: f64,
    image_modelled_seconds: Option<f64>,
    stages: Vec<Stage>,
    /// The longest altogether first.
    ops: Vec<Predicted>,
    /// The worst wave efficiencies.
    worst: Vec<Predicted>,
}

const TITLES: [&str; 18] = [
    "gpu",
    "size",
    "batch",
    "part",
    "op",
    "shape",
    "with",
    "count",
    "GFLOP",
    "MB",
    "floor us",
    "kernel",
    "tile %",
    "wave %",
    "predicted us",
    "measured us",
    "modelled us",
    "bound by",
];

impl Roofline {
    fn new(
        gpu: Gpu,
        setting: &Setting,
        pass_flops: f64,
        work: &[(Part, Vec<Operation>)],
        options: &Options,
    ) -> Result<Self, Failure> {
        let (size, measured) = (setting.side * FACTOR, options.measured.as_ref());
        let (mut stages, mut ops) = (Vec::new(), Vec::new());
        for (part, list) in work {
            let seconds = |label| measured.and_then(|m| m.seconds(setting.model.name(), size, setting.batch, label));
            let list = list.iter().map(|o| Predicted::of(o, &gpu, seconds(&o.label))).collect::<Result<Vec<_>, _>>()?;
            let runs = if *part == Part::Unet { setting.steps } else { usize::from(!list.is_empty()) };
            stages.push(Stage::new(*part, runs, &list));
            if options.work.parts.contains(part) {
                ops.extend(list);
            }
        }
        let time = |o: &Predicted| o.all(o.predicted_seconds);
        ops.sort_by(|a, b| time(b).total_cmp(&time(a)));
        let wave = |o: &Predicted| o.cut.as_ref().map_or(1.0, |c| c.wave_efficiency);
        let mut worst: Vec<_> = ops.iter().filter(|o| o.cut.is_some()).cloned().collect();
        worst.sort_by(|a, b| wave(a).total_cmp(&wave(b)));
        worst.truncate(WORST);
        let image = |f: fn(&Stage) -> f64| stages.iter().map(|s| s.runs as f64 * f(s)).sum();
        let (floor, predicted) = (image(|s| s.floor_seconds), image(|s| s.predicted_seconds));
        let modelled = stages.iter().map(|s| s.modelled_seconds.map(|one| s.runs as f64 * one)).sum();
        let step = stages.iter().find(|s| s.part == Part::Unet.name());
        let step = step.cloned().unwrap_or_else(|| Stage::new(Part::Unet, 0, &[]));
        Ok(Self {
            benchmark: "roofline",
            host: Host::now(),
            gpu,
            model: setting.model.name(),
            width: size,
            height: size,
            batch: setting.batch,
            steps: setting.steps,
            adapter: setting.adapter,
            pass_flops,
            step_flops: step.flops,
            step_bytes: step.bytes,
            floor_seconds: step.floor_seconds,
            predicted_seconds: step.predicted_seconds,
            measured_seconds: step.measured_seconds,
            modelled_seconds: step.modelled_seconds,
            assumptions: assumptions::of(gpu.name),
            picture_floor_seconds: floor,
            picture_predicted_seconds: predicted,
            image_modelled_seconds: modelled,
            stages,
            ops,
            worst,
        })
    }

    fn cells(&self, o: &Predicted) -> Vec<String> {
        let (kernel, full, wave) = match &o.cut {
            Some(c) => (
                c.kernel.clone(),
                format!("{:.1}", c.tile_efficiency * 100.0),
                format!("{:.1}", c.wave_efficiency * 100.0),
            ),
            None => Default::default(),
        };
        vec![
            self.gpu.name.into(),
            self.width.to_string(),
            self.batch.to_string(),
            o.label.part.into(),
            o.label.kind.into(),
            o.label.shape.clone(),
            o.label.with.clone(),
            o.label.count.to_string(),
            format!("{:.2}", o.flops / 1e9),
            format!("{:.2}", o.bytes / 1e6),
            format!("{:.1}", o.floor_seconds * 1e6),
            kernel,
            full,
            wave,
            format!("{:.1}", o.predicted_seconds * 1e6),
            o.measured_seconds.map_or(String::new(), |s| format!("{:.1}", s * 1e6)),
            o.modelled.map_or(String::new(), |m| format!("{:.1}", m.seconds * 1e6)),
            o.modelled.map_or(String::new(), |m| m.bound.into()),
        ]
    }

    /// The page for a terminal: the columns that matter most.
    fn markdown(&self) -> String {
        let row = |o: &Predicted| {
            let us = |s: f64| format!("{:.1}", s * 1e6);
            let cut = o.cut.as_ref();
            vec![
                o.label.part.into(),
                lists::brief(o.label.kind),
                o.label.shape.clone(),
                o.label.count.to_string(),
                us(o.floor_seconds),
                o.modelled.map_or(String::new(), |m| us(m.seconds)),
                o.measured_seconds.map_or(String::new(), us),
                o.modelled.map_or(String::new(), |m| m.bound.into()),
                cut.map_or(String::new(), |c| c.kernel.clone()),
                cut.map_or(String::new(), |c| format!("{:.1}", c.tile_efficiency * c.wave_efficiency * 100.0)),
            ]
        };
        let titles = ["part", "op", "shape", "n", "floor", "modelled", "measured", "bound by", "kernel", "full %"];
        let list = |ops: &[Predicted]| lists::markdown(&titles, &ops.iter().map(row).collect::<Vec<_>>(), 1);
        let ms = |s: f64| format!("{:.2}", s * 1e3);
        let stages: Vec<_> = self
            .stages
            .iter()
            .filter(|s| s.runs > 0)
            .map(|s| {
                let all = s.runs as f64;
                vec![
                    s.part.into(),
                    s.runs.to_string(),
                    format!("{:.3}", s.flops / 1e12),
                    format!("{:.2}", s.bytes / 1e9),
                    ms(s.floor_seconds),
                    s.modelled_seconds.map_or(String::new(), ms),
                    s.measured_seconds.map_or(String::new(), ms),
                    ms(all * s.modelled_seconds.unwrap_or(s.floor_seconds)),
                ]
            })
            .collect();
        let parts = ["part", "runs", "TFLOP", "GB", "floor ms", "modelled ms", "measured ms", "all runs ms"];
        let modelled = self.modelled_seconds.zip(self.image_modelled_seconds);
        let (step, image, about) = match (modelled, &self.assumptions) {
            (Some((step, image)), Some(assumed)) => {
                let about =
                    "modelled: the present kernels by their machine code, within a quarter at best; not measured\n";
                (
                    format!(", modelled {} ms", ms(step)),
                    format!(", modelled {image:.3} s"),
                    about.to_owned() + &assumed.text(),
                )
            }
            _ => (
                String::new(),
                String::new(),
                "the floor alone: this was built without NVRTC, so no kernel is modelled".into(),
            ),
        };
        format!(
            "{} at {}x{}, {} row(s): {:.2} TFLOP per UNet pass of one row\n\
             a step: {:.2} TFLOP, {:.2} GB, floor {} ms{step}{}\n\
             an image of {} steps: floor {:.3} s{image}\n\
             floor: us at the data sheet's full speed; full %: of tiles and waves of own kernels; -o csv has all columns\n\
             {about}\n\n{}\n{}\n\
             The {} worst by wave efficiency:\n\n{}",
            self.gpu.name,
            self.width,
            self.height,
            self.batch,
            self.pass_flops / 1e12,
            self.step_flops / 1e12,
            self.step_bytes / 1e9,
            ms(self.floor_seconds),
            self.measured_seconds.map_or(String::new(), |s| format!(", measured {} ms", ms(s))),
            self.steps,
            self.picture_floor_seconds,
            lists::markdown(&parts, &stages, 0),
            list(&self.ops),
            self.worst.len(),
            list(&self.worst)
        )
    }
}

#[cfg(test)]
#[path = "roofline_tests.rs"]
mod tests;
