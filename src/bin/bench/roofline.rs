//! `bench roofline`: predicts the work of SDXL on a GPU, which need not be present.
//!
//! Every operation is lowered as for the GPU, so that kernels, tiles and grids are those that would run. Bytes are those that must
//! move if nothing is read twice. The floor is the longer of computing and moving at the data sheet's rates; the prediction
//! divides the computing by the tiles' and waves' efficiency of Braid's own kernels. Beside these bounds stands what the present
//! kernels should take, with the library's products where it takes part: [`crate::model`], by [`crate::assumptions`].

use crate::arguments;
use crate::assumptions::{self, Assumptions};
use crate::frames::{Frames, Stream};
use crate::gpus::{self, GPUS, Gpu};
use crate::host::Host;
use crate::lists;
use crate::prediction::{Predicted, Stage};
use crate::results::Measurements;
use crate::throughput::Throughput;
use crate::work::{Operation, Part, Setting, hollow};
use crate::work_options::{self, FACTOR, WorkOptions};
use braid::cli::failure::Failure;
use braid::cli::flag::{self, Flag};
use braid::cli::terminal;
use braid::cli::value::{Value, any_of};
use serde::Serialize;
use std::collections::BTreeMap;

/// The length of the list of the worst.
const WORST: usize = 10;

/// The predictions that were asked for.
pub struct Options {
    work: WorkOptions,
    gpus: Vec<Gpu>,
    measured: Option<Measurements>,
    stream: Option<Stream>,
}

impl Options {
    /// The number of times that an image, or a frame of a stream, runs a part.
    fn runs(&self, part: Part, steps: usize) -> usize {
        match (part, self.stream) {
            (Part::Unet, _) => steps,
            (_, Some(stream)) => usize::from(stream.parts().contains(&part)),
            (_, None) => usize::from(Part::REQUEST.contains(&part)),
        }
    }

    /// Whether a part is in the table of parts: it is run, a new reference of a stream runs it, or its operations are asked for.
    fn shows(&self, part: Part) -> bool {
        let reference = self.stream.is_some() && Frames::REFERENCE.contains(&part);
        self.runs(part, 1) > 0 || reference || self.work.parts.contains(&part)
    }
}

/// The flags beside those of [`WorkOptions`].
pub const FLAGS: &[Flag<Options>] = &[
    Flag { long: "--gpu", value: Some("LIST"), help: "a100, h100, h200, rtx4090, l40s", set: gpus, ..Flag::NEW },
    Flag {
        long: "--quantize",
        value: Some("T"),
        help: "fp8: the UNet's layers as `braid generate --quantize fp8` computes them",
        set: |o, v| v.choice(&[("fp8", true)]).map(|fp8| o.work.setting.fp8 = fp8),
        ..Flag::NEW
    },
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
    Flag {
        long: "--stream",
        value: Some("KIND"),
        help: "txt2img or img2img: frames through TAESD in place of one request; with -b 1 -n 1, as SDXL-Turbo's",
        set: |o, v| Stream::read(v).map(|stream| o.stream = Some(stream)),
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
    let work = WorkOptions::new(vec![Part::Unet]);
    let mut options = Options { work, gpus: Vec::new(), measured: None, stream: None };
    let work = |options: &mut Options, argument: &flag::Argument, p: &mut lexopt::Parser| {
        flag::take(work_options::FLAGS, argument, &mut options.work, p)
    };
    if !arguments::read(&mut parser, FLAGS, &mut options, work)? {
        return Ok(false);
    }
    if options.gpus.is_empty() {
        return Err(Failure::usage(format!("--gpu: missing; give {}", known())));
    }
    if let (true, Some(gpu)) = (options.work.setting.fp8, options.gpus.iter().find(|gpu| gpu.capability != (9, 0))) {
        return Err(Failure::usage(format!("--quantize: fp8 is for GPUs of compute capability 9.0, not {}", gpu.name)));
    }
    let mut rows = Vec::new();
    for setting in options.work.settings()? {
        let pass_flops = setting.pass_flops()?;
        let parts = Part::ALL.into_iter().filter(|part| options.shows(*part));
        let work = parts.map(|part| setting.operations(part, &hollow()).map(|list| (part, list)));
        let work = work.collect::<Result<Vec<_>, _>>()?;
        for gpu in &options.gpus {
            rows.push(Roofline::new(*gpu, &setting, pass_flops, &work, &options)?);
        }
    }
    let cells = |row: &Roofline| row.ops.iter().map(|op| row.cells(op)).collect();
    terminal::print(&lists::pages(&rows, options.work.format, &TITLES, Roofline::markdown, cells))?;
    Ok(true)
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
    fp8: bool,
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
    /// A whole request: every part as often as it runs.
    picture_floor_seconds: f64,
    picture_predicted_seconds: f64,
    image_modelled_seconds: Option<f64>,
    /// The images that share evaluations; nothing of a stream's frames.
    throughput: Option<Throughput>,
    /// The frames of a stream, where they were asked for: an image is a frame then.
    frames: Option<Frames>,
    /// The modelled seconds of an image by what bounds its operations.
    bounds: BTreeMap<&'static str, f64>,
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
        let (mut stages, mut ops, mut bounds) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (part, list) in work {
            let seconds = |label| measured.and_then(|m| m.seconds(setting.model.name(), size, setting.batch, label));
            let list = list.iter().map(|o| Predicted::of(o, &gpu, seconds(&o.label))).collect::<Result<Vec<_>, _>>()?;
            let together = if options.stream.is_some() { 1 } else { setting.runs(*part) };
            let runs = if list.is_empty() { 0 } else { together * options.runs(*part, setting.steps) };
            stages.push(Stage::new(*part, runs, &list));
            for op in &list {
                let Some(modelled) = op.modelled else { continue };
                *bounds.entry(modelled.bound).or_default() += runs as f64 * op.all(modelled.seconds);
            }
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
        let modelled: Option<f64> = stages.iter().map(|s| s.modelled_seconds.map(|one| s.runs as f64 * one)).sum();
        let throughput = match options.stream {
            None => Some(Throughput::new(setting, &gpu, modelled)?),
            Some(_) => None,
        };
        let frames = options.stream.map(|stream| Frames::new(stream, setting, &gpu, &stages)).transpose()?;
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
            fp8: setting.fp8,
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
            throughput,
            frames,
            bounds,
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

    /// The modelled milliseconds of an image by what bounds its operations, the most first.
    fn bounds_text(&self) -> String {
        let mut bounds: Vec<_> = self.bounds.iter().collect();
        bounds.sort_by(|a, b| b.1.total_cmp(a.1));
        let texts: Vec<_> = bounds.iter().map(|(bound, seconds)| format!("{bound} {:.2}", *seconds * 1e3)).collect();
        if texts.is_empty() { String::new() } else { format!("of it, ms by bound: {}\n", texts.join(", ")) }
    }

    /// The table of parts.
    fn parts_table(&self) -> String {
        let ms = |s: f64| format!("{:.2}", s * 1e3);
        let stages: Vec<_> = self
            .stages
            .iter()
            .filter(|s| s.flops > 0.0)
            .map(|s| {
                let all = s.runs as f64;
                vec![
                    s.part.into(),
                    s.runs.to_string(),
                    format!("{:.3}", s.flops / 1e12),
                    format!("{:.2}", s.bytes / 1e9),
                    s.nodes.to_string(),
                    ms(s.floor_seconds),
                    s.modelled_seconds.map_or(String::new(), ms),
                    s.measured_seconds.map_or(String::new(), ms),
                    ms(all * s.modelled_seconds.unwrap_or(s.floor_seconds)),
                ]
            })
            .collect();
        let parts = ["part", "runs", "TFLOP", "GB", "nodes", "floor ms", "modelled ms", "measured ms", "all runs ms"];
        lists::markdown(&parts, &stages, 0)
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
            "{} at {}x{}, {} row(s){}: {:.2} TFLOP per UNet pass of one row\n\
             a step: {:.2} TFLOP, {:.2} GB, floor {} ms{step}{}\n\
             {} of {} steps: floor {:.3} s{image}{}\n{}{}\
             floor: us at the data sheet's full speed; full %: of tiles and waves of own kernels; -o csv has all columns\n\
             {about}\n\n{}\n{}\n\
             The {} worst by wave efficiency:\n\n{}",
            self.gpu.name,
            self.width,
            self.height,
            self.batch,
            if self.fp8 { ", fp8" } else { "" },
            self.pass_flops / 1e12,
            self.step_flops / 1e12,
            self.step_bytes / 1e9,
            ms(self.floor_seconds),
            self.measured_seconds.map_or(String::new(), |s| format!(", measured {} ms", ms(s))),
            self.throughput.as_ref().map_or("an image".into(), Throughput::name),
            self.steps,
            self.picture_floor_seconds,
            self.throughput.as_ref().map_or(String::new(), Throughput::text),
            self.bounds_text(),
            self.frames.as_ref().map_or(String::new(), Frames::text),
            self.parts_table(),
            list(&self.ops),
            self.worst.len(),
            list(&self.worst)
        )
    }
}
