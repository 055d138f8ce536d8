//! `bench ops`: every distinct operation of SDXL by itself, on the device that is there.
//!
//! Each becomes a graph of one operation with random operands, is checked, and is timed with cold caches, as it meets its
//! weights in a model of gigabytes. What the device can do at best is measured in the same run, by a copy and a product.

use crate::args::{self, Failure};
use crate::host::Host;
use crate::lists::{self, Format, table};
use crate::roofline::{FACTOR, side};
use crate::terminal;
use crate::work::{Label, Model, Operation, Part, Setting};
use braid::Error;
use braid::device::Device;
use braid::device::cpu::Cpu;
use braid::device::cuda::CudaDevice;
use braid::graph::{Builder, Graph, LinearWeights, Op};
use braid::pipeline::{DeviceChoice, MAX_SIDE, MAX_THREADS};
use braid::tensor::DType;
use braid::weights::{MappedBytes, Weight};
use lexopt::Arg;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Bytes that go through a GPU's caches between two runs: more than the largest L2 of [`crate::gpus`].
const GPU_FLUSH: usize = 128 << 20;
/// The same of a processor that does not say how large its last cache is.
const CPU_FLUSH: usize = 128 << 20;
/// Runs that a GPU times in one go.
const TIMES: usize = 10;

pub fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let p = &mut parser;
    let (mut sizes, mut batches, mut format) = (vec![1024], vec![2], Format::Markdown);
    let (mut parts, mut only) = (vec![Part::Unet, Part::Vae], String::new());
    let (mut threads, mut choice, mut dtype) = (None, DeviceChoice::Cpu, DType::F16);
    let (mut repetitions, mut warmup) = (5, 1);
    let mut setting = Setting { model: Model::Sdxl, side: 0, batch: 0, steps: 50, adapter: false };
    while let Some(arg) = p.next().map_err(args::usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return terminal::print(crate::HELP),
            Arg::Long("size") => sizes = lists::numbers(p, "--size", 64, MAX_SIDE)?,
            Arg::Short('b') | Arg::Long("batch") => batches = lists::numbers(p, "--batch", 1, 64)?,
            Arg::Short('n') | Arg::Long("steps") => setting.steps = args::count(p, "--steps", 1, 1000)?,
            Arg::Long("adapter") => setting.adapter = true,
            Arg::Long("parts") => parts = Part::read(p)?,
            Arg::Long("model") => setting.model = Model::read(p)?,
            Arg::Long("only") => only = args::text(p, "--only")?.to_lowercase(),
            Arg::Long("device") => choice = args::named(p, "--device")?,
            Arg::Long("dtype") => {
                dtype = match args::text(p, "--dtype")?.as_str() {
                    "f16" => DType::F16,
                    "bf16" => DType::BF16,
                    other => return Err(Failure::usage(format!("--dtype: `{other}` is not known; f16 and bf16 are"))),
                }
            }
            Arg::Short('t') | Arg::Long("threads") => threads = Some(args::count(p, "--threads", 1, MAX_THREADS)?),
            Arg::Short('r') | Arg::Long("repetitions") => repetitions = args::count(p, "--repetitions", 1, 10_000)?,
            Arg::Long("warmup") => warmup = args::count(p, "--warmup", 1, 10_000)?,
            Arg::Short('o') | Arg::Long("output") => format = Format::read(p)?,
            other => return Err(args::unexpected_of(other, "bench --help")),
        }
    }
    let sides = sizes.iter().map(|size| side(*size)).collect::<Result<Vec<_>, _>>()?;
    let mut bench = Bench::open(choice, dtype, threads, repetitions, warmup)?;
    let largest = sides.iter().map(|side| Setting { side: *side, ..setting }.largest(&parts)).max();
    let storage = random(largest.unwrap_or(0).max(bench.square * bench.square));
    let ceilings = bench.ceilings(&storage)?;
    let mut rows = Vec::new();
    for &side in &sides {
        for &batch in &batches {
            let setting = Setting { side, batch, ..setting };
            rows.push(Ops::new(&mut bench, &setting, &parts, &only, ceilings, &storage)?);
        }
    }
    if rows.iter().all(|row| row.ops.is_empty()) {
        return Err(Failure::usage(format!("--only: no operation of these parts has `{only}` in its row")));
    }
    terminal::wipe();
    let cells = |row: &Ops| row.ops.iter().map(|op| row.cells(op)).collect();
    terminal::print(&lists::pages(&rows, format, &TITLES, Ops::markdown, cells))
}

/// That many f16 of either sign between 2^-7 and 2^-6, so that sums of thousands of products stay small.
fn random(count: usize) -> Arc<MappedBytes> {
    let mut x = 1u32;
    let next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        ((x & 0x83ff) as u16 | 0x2000).to_le_bytes()
    };
    Arc::new(MappedBytes::owned(std::iter::repeat_with(next).take(count).flatten().collect()))
}

/// A device and how it is timed.
struct Bench {
    device: Box<dyn Device>,
    name: String,
    threads: usize,
    /// Bytes of an activation.
    size: usize,
    /// Side of the product that shows what can be computed, and elements of the copy.
    square: usize,
    copied: usize,
    flush: Flush,
    repetitions: usize,
    warmup: usize,
}

/// What is written to between two runs, so that nothing stays in the caches.
struct Flush {
    bytes: usize,
    buffer: Vec<u64>,
}

impl Flush {
    /// Twice the last cache of the first core.
    fn of_cpu() -> Self {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or_default();
        let kib = text.trim().strip_suffix('K').and_then(|n| n.parse::<usize>().ok());
        let bytes = kib.map_or(CPU_FLUSH, |k| (2 * k) << 10).min(1 << 30);
        Self { bytes, buffer: vec![0; bytes / 8] }
    }

    /// On every core, as each has caches of its own.
    fn walk(&mut self) {
        self.buffer.par_chunks_mut(1 << 13).for_each(|chunk| {
            chunk.iter_mut().step_by(8).for_each(|word| *word = word.wrapping_add(1));
        });
        std::hint::black_box(&self.buffer);
    }
}

impl Bench {
    fn open(
        choice: DeviceChoice,
        dtype: DType,
        threads: Option<usize>,
        repetitions: usize,
        warmup: usize,
    ) -> Result<Self, Error> {
        let cuda = match choice {
            DeviceChoice::Cpu => None,
            DeviceChoice::Cuda(number) => Some(CudaDevice::open(number, dtype, dtype)?),
            DeviceChoice::Auto => CudaDevice::open(0, dtype, dtype).ok(),
        };
        Ok(match cuda {
            Some(device) => Self {
                name: format!("{}, {dtype}", device.driver().properties().name),
                device: Box::new(device),
                threads: 0,
                size: 2,
                square: 8192,
                copied: 64 << 20,
                flush: Flush { bytes: GPU_FLUSH, buffer: Vec::new() },
                repetitions,
                warmup,
            },
            None => {
                let cpu = Cpu::new(threads);
                Self {
                    name: format!("cpu {}", Cpu::instructions()),
                    threads: cpu.threads(),
                    device: Box::new(cpu),
                    size: 4,
                    square: 2048,
                    copied: 16 << 20,
                    flush: Flush::of_cpu(),
                    repetitions,
                    warmup,
                }
            }
        })
    }

    /// The seconds of each run of a graph of one operation, after two runs that must agree and be finite.
    fn time(&mut self, graph: Graph, what: &str) -> Result<Vec<f64>, Failure> {
        let inputs = operands(&graph);
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        let len: usize = graph.outputs.iter().map(|(_, id)| graph.node(*id).len()).sum();
        let (mut result, mut again) = (vec![f32::NAN; len], vec![f32::NAN; len]);
        let mut program = self.device.compile(graph)?;
        program.run(&inputs, &mut [&mut result])?;
        program.run(&inputs, &mut [&mut again])?;
        if result != again || !result.iter().all(|v| v.is_finite()) {
            let wrong = if result == again { "its result is not finite" } else { "two runs gave different results" };
            terminal::line("bench: ", &format!("{what}: {wrong}; nothing is reported"));
            return Err(Failure::Told(1));
        }
        let mut seconds = Vec::new();
        for run in 0..self.warmup + self.repetitions {
            let taken = match program.benchmark(self.flush.bytes, TIMES)? {
                Some(taken) => taken,
                None => {
                    self.flush.walk();
                    let begin = Instant::now();
                    program.run(&inputs, &mut [&mut result])?;
                    begin.elapsed().as_secs_f64()
                }
            };
            if run >= self.warmup {
                seconds.push(taken);
            }
        }
        Ok(seconds)
    }

    /// What the device does at best, by the shortest run of each.
    fn ceilings(&mut self, storage: &Arc<MappedBytes>) -> Result<Ceilings, Failure> {
        let best = |seconds: Vec<f64>| seconds.into_iter().fold(f64::INFINITY, f64::min).max(1e-9);
        let mut b = Builder::new();
        let x = b.input("x", &[1, self.copied / 1024, 1024]);
        let y = b.scale_shift(x, 1.0, 0.0);
        b.output("y", y);
        let copy = best(self.time(b.finish()?, "the copy")?);
        let n = self.square;
        let mut b = Builder::new();
        let x = b.input("x", &[1, n, n]);
        let weight = Weight::new(storage.clone(), 0, DType::F16, vec![n, n], "w");
        let weight = weight.ok_or_else(|| Error::Graph("the product's weights do not fit their storage".into()))?;
        let y = b.linear_parts(x, vec![LinearWeights { weight, bias: None }]);
        b.output("y", y);
        let product = best(self.time(b.finish()?, "the product")?);
        Ok(Ceilings {
            copy_bytes: 2 * self.copied * self.size,
            bytes_per_second: (2 * self.copied * self.size) as f64 / copy,
            product_side: n,
            flops_per_second: 2.0 * (n * n * n) as f64 / product,
        })
    }
}

/// Values for the inputs of a graph of one operation: ids, places and counts that exist, weights of 1, else random numbers.
fn operands(graph: &Graph) -> Vec<Vec<f32>> {
    let Some(node) = graph.nodes.last() else { return Vec::new() };
    let mut x = 12_345u32;
    let mut random = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let operand = |k: usize| graph.node(node.inputs[k]);
    let mut values = |k: usize, len: usize| -> Vec<f32> {
        match &node.op {
            Op::Embedding { table, .. } => (0..len).map(|i| ((i * 7919) % table.shape()[0]) as f32).collect(),
            Op::Gather if k == 1 => vec![(operand(0).tokens() / 2) as f32; len],
            Op::TimestepEmbedding { .. } => (0..len).map(|i| (i * 20 % 1000) as f32).collect(),
            Op::Attention(a) => {
                let counted = a.branches.iter().find(|s| s.length == Some(k));
                if let Some(branch) = counted {
                    return vec![operand(branch.keys.operand).tokens() as f32; len];
                }
                let weight = a.branches.iter().any(|s| s.scale.is_some_and(|(at, _)| at == k));
                if weight { vec![1.0; len] } else { (0..len).map(|_| random()).collect() }
            }
            _ => (0..len).map(|_| random()).collect(),
        }
    };
    let place = |id| node.inputs.iter().position(|operand| *operand == id).unwrap_or(0);
    graph.inputs.iter().map(|(_, id)| values(place(*id), graph.node(*id).len())).collect()
}

/// What was measured of the device itself.
#[derive(Debug, Clone, Copy, Serialize)]
struct Ceilings {
    /// Bytes read and written by the copy.
    copy_bytes: usize,
    bytes_per_second: f64,
    /// Rows, columns and sum of the product.
    product_side: usize,
    flops_per_second: f64,
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
    /// Of the ceilings.
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
    /// What this device could not run.
    left_out: Vec<String>,
    /// The longest altogether first.
    ops: Vec<Measured>,
}

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
        parts: &[Part],
        only: &str,
        ceilings: Ceilings,
        storage: &Arc<MappedBytes>,
    ) -> Result<Self, Failure> {
        let mut operations = Vec::new();
        for part in parts {
            operations.extend(setting.operations(*part, storage)?);
        }
        let text = |l: &Label| [l.part, l.kind, &l.shape, &l.with, &l.layer].join(" ").to_lowercase();
        operations.retain(|o| text(&o.label).contains(only));
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
                    terminal::line("bench: ", &format!("{name} is left out: {}", crate::flags::text(&error)));
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
            repetitions: bench.repetitions,
            warmup: bench.warmup,
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

    fn markdown(&self) -> String {
        let rows: Vec<_> = self.ops.iter().map(|o| self.cells(o).split_off(3)).collect();
        let threads = if self.threads > 0 { format!(" x{}", self.threads) } else { String::new() };
        let n = self.ceilings.product_side;
        format!(
            "{}{threads}, {} {}: {} at {}x{}, {} row(s), medians of {} runs with cold caches\n\
             ceilings: {:.4} TFLOP/s (a product of {n}x{n}x{n}), {:.2} GB/s (a copy, {} MB read and written)\n\
             {} distinct operations, all together {:.3} s\n\n{}",
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
            table(&TITLES[3..], &rows, true)
        )
    }
}

/// Results of `bench ops -o json` or `-o jsonl`, to stand beside a prediction.
pub struct Measurements(HashMap<String, f64>);

fn key(model: &str, size: usize, batch: usize, [part, kind, shape, with]: [&str; 4]) -> String {
    format!("{model}|{size}|{batch}|{part}|{kind}|{shape}|{with}")
}

impl Measurements {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let mut seconds = HashMap::new();
        for result in results(path)? {
            let number = |name: &str| result[name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            let (size, batch) = (number("width"), number("batch"));
            for op in result["ops"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let text = |name: &str| op[name].as_str().unwrap_or_default();
                let names = ["part", "kind", "shape", "with"].map(text);
                if let Some(median) = op["median_seconds"].as_f64() {
                    seconds.insert(key(result["model"].as_str().unwrap_or_default(), size, batch, names), median);
                }
            }
        }
        if seconds.is_empty() {
            return Err(Failure::usage(format!(
                "--measured: {} holds no measured operation; `bench ops -o json` writes what is needed",
                path.display()
            )));
        }
        Ok(Self(seconds))
    }

    /// The median of an operation; `None` where it was not measured.
    pub fn seconds(&self, model: &str, size: usize, batch: usize, label: &Label) -> Option<f64> {
        self.0.get(&key(model, size, batch, [label.part, label.kind, &label.shape, &label.with])).copied()
    }
}

/// The results in a file that this program wrote as JSON or JSON lines.
pub fn results(path: &Path) -> Result<Vec<Value>, Failure> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut results = Vec::new();
    for value in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
        match value.map_err(|e| Error::malformed(path, format!("not a result in JSON: {e}")))? {
            Value::Array(list) => results.extend(list),
            one => results.push(one),
        }
    }
    match results.iter().all(|r| r["benchmark"].is_string()) && !results.is_empty() {
        true => Ok(results),
        false => Err(Error::malformed(path, "no results of `bench -o json` or `-o jsonl`".to_owned()).into()),
    }
}
