//! `bench ops`: every distinct operation of SDXL by itself, on the device that is there.
//!
//! Each becomes a graph of one operation with random operands, is checked, and is timed with cold caches, as it meets its
//! weights in a model of gigabytes. The best that the device can do is measured in the same run, by a copy and a product.

use crate::arguments;
use crate::host::Host;
use crate::lists;
use crate::timing::{Bench, Ceilings, Timing, random};
use crate::work::{Label, Operation, Part, Setting};
use crate::work_options::{self, FACTOR, WorkOptions};
use braid::Error;
use braid::cli::failure::Failure;
use braid::cli::flag::{self, Flag};
use braid::cli::flags::FlagNames;
use braid::cli::terminal;
use braid::pipeline::{DeviceChoice, MAX_THREADS};
use braid::tensor::DType;
use braid::weights::MappedBytes;
use serde::Serialize;
use std::sync::Arc;

/// The operations to measure, and how.
pub struct Options {
    work: WorkOptions,
    /// Lower-case text of the operations that are measured.
    only: String,
    timing: Timing,
}

/// The flags beside those of [`WorkOptions`].
pub const FLAGS: &[Flag<Options>] = &[
    Flag {
        long: "--only",
        value: Some("TEXT"),
        help: "operations with this text in their row, e.g. attention or conv_in",
        set: |o, v| v.text().map(|text| o.only = text.to_lowercase()),
        ..Flag::NEW
    },
    Flag {
        long: "--device",
        value: Some("NAME"),
        help: "auto, cpu, cuda or cuda:N [default: cpu]",
        set: |o, v| v.named().map(|device| o.timing.device = device),
        ..Flag::NEW
    },
    Flag {
        long: "--dtype",
        value: Some("TYPE"),
        help: "f16 or bf16 [default: f16 on a GPU, f32 on the CPU, which computes in f32 with f16, too]",
        set: |o, v| v.choice(&[("f16", DType::F16), ("bf16", DType::BF16)]).map(|dtype| o.timing.dtype = Some(dtype)),
        ..Flag::NEW
    },
    Flag {
        long: "--quantize",
        value: Some("T"),
        help: "int8 or fp8: the UNet's layers as `braid generate --quantize` computes them, on the CPU or on a GPU",
        set: |o, v| v.named().map(|quantize| o.timing.quantize = Some(quantize)),
        ..Flag::NEW
    },
    Flag {
        long: "--threads",
        short: Some('t'),
        value: Some("N"),
        help: "[default: all cores]",
        set: |o, v| v.count(1, MAX_THREADS).map(|threads| o.timing.threads = Some(threads)),
        ..Flag::NEW
    },
    Flag {
        long: "--repetitions",
        short: Some('r'),
        value: Some("N"),
        help: "[default: 5]",
        set: |o, v| v.count(1, 10_000).map(|n| o.timing.repetitions = n),
        ..Flag::NEW
    },
    Flag {
        long: "--warmup",
        value: Some("N"),
        help: "[default: 1]",
        set: |o, v| v.count(1, 10_000).map(|n| o.timing.warmup = n),
        ..Flag::NEW
    },
];

/// Runs it; `false` where help was asked for.
pub fn run(mut parser: lexopt::Parser) -> Result<bool, Failure> {
    let mut options = Options {
        work: WorkOptions::new(vec![Part::Unet, Part::Vae]),
        only: String::new(),
        timing: Timing {
            device: DeviceChoice::Cpu,
            dtype: None,
            quantize: None,
            threads: None,
            repetitions: 5,
            warmup: 1,
        },
    };
    let work = |options: &mut Options, argument: &flag::Argument, p: &mut lexopt::Parser| {
        flag::take(work_options::FLAGS, argument, &mut options.work, p)
    };
    if !arguments::read(&mut parser, FLAGS, &mut options, work)? {
        return Ok(false);
    }
    let WorkOptions { parts, format, .. } = &options.work;
    let settings = options.work.settings()?;
    let mut bench = Bench::open(&options.timing)?;
    let largest = settings.iter().map(|setting| setting.largest(parts)).max();
    let storage = random(largest.unwrap_or(0).max(bench.square * bench.square));
    let ceilings = bench.ceilings(&storage)?;
    let mut rows = Vec::new();
    for setting in &settings {
        let operations = operations(setting, parts, &options.only, &storage)?;
        rows.push(Ops::new(&mut bench, setting, operations, ceilings)?);
    }
    if rows.iter().all(|row| row.ops.is_empty()) {
        let only = &options.only;
        return Err(Failure::usage(format!("--only: no operation of these parts has `{only}` in its row")));
    }
    terminal::wipe();
    let cells = |row: &Ops| row.ops.iter().map(|op| row.cells(op)).collect();
    terminal::print(&lists::pages(&rows, *format, &TITLES, Ops::markdown, cells))?;
    Ok(true)
}

/// The distinct operations with a text in their row.
fn operations(
    setting: &Setting,
    parts: &[Part],
    only: &str,
    storage: &Arc<MappedBytes>,
) -> Result<Vec<Operation>, Failure> {
    let mut operations = Vec::new();
    for part in parts {
        operations.extend(setting.operations(*part, storage)?);
    }
    let text = |l: &Label| [l.part, l.kind, &l.shape, &l.with, &l.layer].join(" ").to_lowercase();
    operations.retain(|o| text(&o.label).contains(only));
    Ok(operations)
}

/// An operation with every sample.
#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    label: Label,
    flops: f64,
    bytes: f64,
    median_seconds: f64,
    mean_seconds: f64,
    /// With n - 1; absent for one sample.
    sd_seconds: Option<f64>,
    flops_per_second: f64,
    bytes_per_second: f64,
    /// The share of the ceilings that is reached.
    compute_share: f64,
    memory_share: f64,
    /// As often as it occurs.
    all_seconds: f64,
    seconds: Vec<f64>,
}

impl Measured {
    fn new(operation: &Operation, seconds: Vec<f64>, size: usize, ceilings: &Ceilings) -> Self {
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        let mean = seconds.iter().sum::<f64>() / n as f64;
        let squares: f64 = seconds.iter().map(|s| (s - mean).powi(2)).sum();
        let bytes = operation.cost.bytes(size, 2);
        let (flops, moved) = (operation.cost.flops() / median.max(1e-9), bytes / median.max(1e-9));
        Self {
            label: operation.label.clone(),
            flops: operation.cost.flops(),
            bytes,
            median_seconds: median,
            mean_seconds: mean,
            sd_seconds: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
            flops_per_second: flops,
            bytes_per_second: moved,
            compute_share: flops / ceilings.flops_per_second,
            memory_share: moved / ceilings.bytes_per_second,
            all_seconds: operation.label.count as f64 * median,
            seconds,
        }
    }
}

/// All operations of a setting.
#[derive(Debug, Serialize)]
struct Ops {
    benchmark: &'static str,
    #[serde(flatten)]
    host: Host,
    device: String,
    threads: usize,
    model: &'static str,
    width: usize,
    height: usize,
    batch: usize,
    adapter: bool,
    repetitions: usize,
    warmup: usize,
    /// Bytes that go through the caches before each run.
    flush_bytes: usize,
    ceilings: Ceilings,
    /// Sum over the operations, each as often as it occurs.
    seconds: f64,
    /// Operations that this device could not run.
    left_out: Vec<String>,
    /// The longest altogether first.
    ops: Vec<Measured>,
}

/// Characters of an operation's attributes in the page.
const WITH: usize = 16;

const TITLES: [&str; 15] = [
    "device",
    "size",
    "batch",
    "part",
    "op",
    "shape",
    "with",
    "count",
    "ms",
    "sd ms",
    "TFLOP/s",
    "GB/s",
    "compute %",
    "memory %",
    "all ms",
];

impl Ops {
    fn new(
        bench: &mut Bench,
        setting: &Setting,
        operations: Vec<Operation>,
        ceilings: Ceilings,
    ) -> Result<Self, Failure> {
        let (mut ops, mut left_out, count) = (Vec::new(), Vec::new(), operations.len());
        for (i, operation) in operations.into_iter().enumerate() {
            let name = format!("{} {}", operation.label.kind, operation.label.shape);
            if terminal::is_terminal() {
                terminal::status(&format!("{} of {count}: {name}", i + 1));
            }
            match bench.time(operation.graph.clone(), &name) {
                Ok(seconds) => ops.push(Measured::new(&operation, seconds, bench.size, &ceilings)),
                // Too large for this device, or without a kernel there: no reason to lose the others.
                Err(Failure::Library(error @ (Error::Memory { .. } | Error::Graph(_)))) => {
                    terminal::line("bench: ", &format!("{name} is left out: {}", error.message().describe(&FlagNames)));
                    left_out.push(format!("{} {name}", operation.label.part));
                }
                Err(other) => return Err(other),
            }
        }
        ops.sort_by(|a, b| b.all_seconds.total_cmp(&a.all_seconds));
        Ok(Self {
            benchmark: "ops",
            host: Host::now(),
            device: bench.name.clone(),
            threads: bench.threads,
            model: setting.model.name(),
            width: setting.side * FACTOR,
            height: setting.side * FACTOR,
            batch: setting.batch,
            adapter: setting.adapter,
            repetitions: bench.timing.repetitions,
            warmup: bench.timing.warmup,
            flush_bytes: bench.flush.bytes,
            ceilings,
            seconds: ops.iter().map(|o| o.all_seconds).sum(),
            left_out,
            ops,
        })
    }

    fn cells(&self, o: &Measured) -> Vec<String> {
        vec![
            self.device.clone(),
            self.width.to_string(),
            self.batch.to_string(),
            o.label.part.into(),
            o.label.kind.into(),
            o.label.shape.clone(),
            o.label.with.clone(),
            o.label.count.to_string(),
            format!("{:.4}", o.median_seconds * 1e3),
            o.sd_seconds.map_or(String::new(), |sd| format!("{:.4}", sd * 1e3)),
            format!("{:.4}", o.flops_per_second / 1e12),
            format!("{:.2}", o.bytes_per_second / 1e9),
            format!("{:.1}", o.compute_share * 100.0),
            format!("{:.1}", o.memory_share * 100.0),
            format!("{:.3}", o.all_seconds * 1e3),
        ]
    }

    /// The page for a terminal: the columns that matter most.
    fn markdown(&self) -> String {
        let row = |o: &Measured| {
            let peak = 100.0 * o.compute_share.max(o.memory_share);
            let [ms, all] = [o.median_seconds, o.all_seconds].map(|s| format!("{:.3}", s * 1e3));
            vec![
                o.label.part.into(),
                lists::brief(o.label.kind),
                o.label.shape.clone(),
                lists::cut(&o.label.with, WITH),
                o.label.count.to_string(),
                ms,
                all,
                format!("{peak:.1}"),
            ]
        };
        let rows: Vec<_> = self.ops.iter().map(row).collect();
        let titles = ["part", "op", "shape", "with", "n", "ms", "all ms", "peak %"];
        let threads = if self.threads > 0 { format!(" x{}", self.threads) } else { String::new() };
        let n = self.ceilings.product_side;
        format!(
            "{}{threads}, {} {}: {} at {}x{}, {} row(s), medians of {} runs with cold caches\n\
             ceilings: {:.4} TFLOP/s (a product of {n}x{n}x{n}), {:.2} GB/s (a copy, {} MB read and written)\n\
             {} distinct operations, all together {:.3} s; peak %: of the nearer ceiling; -o csv has all columns\n\n{}",
            self.device,
            self.host.version,
            self.host.build,
            self.model,
            self.width,
            self.height,
            self.batch,
            self.repetitions,
            self.ceilings.flops_per_second / 1e12,
            self.ceilings.bytes_per_second / 1e9,
            self.ceilings.copy_bytes / 1_000_000,
            self.ops.len(),
            self.seconds,
            lists::markdown(&titles, &rows, 1)
        )
    }
}
