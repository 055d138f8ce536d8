//! Throughput: times whole requests.

#[allow(dead_code)]
#[path = "braid/args.rs"]
mod args;
#[allow(dead_code)]
#[path = "braid/terminal.rs"]
mod terminal;

use args::Failure;
use braid::device::cpu::Cpu;
use braid::inputs::picture;
use braid::pipeline::{ImagePrompt, MAX_COUNT, MAX_SIDE, MAX_THREADS, Stage, Watch};
use braid::{Pipeline, PipelineOptions, Request};
use lexopt::Arg;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const HELP: &str = "\
Measures Braid.

Usage: bench e2e --model PATH [OPTIONS]

Times one request from prompt to picture, again and again: one run to warm up, which is not
counted, then -r runs. Models stay loaded; what is kept between requests is kept.

      --model PATH              SDXL checkpoint or diffusers folder
      --config DIR              configurations for a single-file checkpoint
      --clip-vision PATH        image encoder
      --ip-adapter PATH         IP-Adapter
      --ip-adapter-image PATH   its reference picture
  -p, --prompt TEXT             [default: a red fox in the snow]
      --steps N                 [default: 50]
      --cfg-scale F             [default: 5]
  -W, --width N  -H, --height N [default: the model's own size]
  -b, --batch-count N           pictures of a request [default: 1]
  -t, --threads N               [default: all cores]
  -r, --repetitions N           [default: 5]
  -o, --output FORMAT           md, csv, json or jsonl [default: md]
";

fn main() -> ExitCode {
    terminal::install();
    match std::panic::catch_unwind(run).unwrap_or(Err(Failure::Told(1))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text() {
                terminal::line("bench: ", &text);
            }
            ExitCode::from(failure.status())
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut parser = args::parser();
    match parser.next().map_err(args::usage)? {
        None => {
            terminal::print(HELP)?;
            Err(Failure::usage("a benchmark is needed: e2e"))
        }
        Some(Arg::Short('h') | Arg::Long("help")) => terminal::print(HELP),
        Some(Arg::Value(name)) if name == "e2e" => end_to_end(parser),
        Some(other) => Err(args::unexpected_of(other, "bench --help")),
    }
}

/// One measurement with every sample.
#[derive(Serialize)]
struct Measured {
    benchmark: &'static str,
    version: &'static str,
    build: &'static str,
    device: String,
    threads: usize,
    instructions: &'static str,
    model: String,
    adapters: usize,
    width: usize,
    height: usize,
    steps: usize,
    cfg_scale: f32,
    pictures: usize,
    repetitions: usize,
    /// Reading and checking the files.
    load_seconds: f64,
    /// The first request, which also builds the programs.
    first_seconds: f64,
    mean_seconds: f64,
    /// Of the samples, with n - 1; absent for one sample.
    sd_seconds: Option<f64>,
    step_mean_seconds: f64,
    /// Wall-clock seconds of each request.
    seconds: Vec<f64>,
    /// Each stage's seconds in each request.
    stages: BTreeMap<&'static str, Vec<f64>>,
}

fn end_to_end(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let p = &mut parser;
    let mut model: Option<PathBuf> = None;
    let (mut config, mut encoder, mut adapter, mut image) = (None, None, None, None);
    let mut request = Request::new("a red fox in the snow");
    let (mut threads, mut repetitions, mut format) = (None, 5, "md".to_owned());
    while let Some(arg) = p.next().map_err(args::usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return terminal::print(HELP),
            Arg::Short('m') | Arg::Long("model") => model = Some(args::value(p, "--model")?.into()),
            Arg::Long("config") => config = Some(PathBuf::from(args::value(p, "--config")?)),
            Arg::Long("clip-vision") => encoder = Some(PathBuf::from(args::value(p, "--clip-vision")?)),
            Arg::Long("ip-adapter") => adapter = Some(PathBuf::from(args::value(p, "--ip-adapter")?)),
            Arg::Long("ip-adapter-image") => image = Some(PathBuf::from(args::value(p, "--ip-adapter-image")?)),
            Arg::Short('p') | Arg::Long("prompt") => request.prompt = args::text(p, "--prompt")?,
            Arg::Long("steps") => request.steps = args::count(p, "--steps", 1, 1000)?,
            Arg::Long("cfg-scale") => request.guidance = args::number(p, "--cfg-scale")?,
            Arg::Short('W') | Arg::Long("width") => request.width = Some(args::count(p, "--width", 1, MAX_SIDE)?),
            Arg::Short('H') | Arg::Long("height") => request.height = Some(args::count(p, "--height", 1, MAX_SIDE)?),
            Arg::Short('b') | Arg::Long("batch-count") => {
                request.count = args::count(p, "--batch-count", 1, MAX_COUNT)?
            }
            Arg::Short('t') | Arg::Long("threads") => threads = Some(args::count(p, "--threads", 1, MAX_THREADS)?),
            Arg::Short('r') | Arg::Long("repetitions") => repetitions = args::count(p, "--repetitions", 1, 10_000)?,
            Arg::Short('o') | Arg::Long("output") => format = args::text(p, "--output")?,
            other => return Err(args::unexpected_of(other, "bench --help")),
        }
    }
    if !["md", "csv", "json", "jsonl"].contains(&format.as_str()) {
        return Err(Failure::usage(format!("--output: `{format}` is not known; one of md, csv, json, jsonl is")));
    }
    let model =
        model.ok_or_else(|| Failure::usage("--model: missing; give an SDXL checkpoint or a diffusers folder"))?;
    if adapter.is_some() != image.is_some() {
        return Err(Failure::usage("--ip-adapter: it and --ip-adapter-image need each other"));
    }
    let mut options = PipelineOptions::new(&model);
    (options.config, options.clip_vision, options.threads) = (config, encoder, threads);
    if let (Some(adapter), Some(image)) = (adapter, image) {
        options = options.adapter(adapter);
        request.images = vec![ImagePrompt::new(picture::load(image, options.compat.alpha)?)];
    }

    let begin = Instant::now();
    let pipeline = Pipeline::load(&options)?;
    let load_seconds = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let first = pipeline.generate(&request, &mut Watch::default())?;
    let first_seconds = begin.elapsed().as_secs_f64();
    let (mut seconds, mut steps) = (Vec::new(), Vec::new());
    let mut stages: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for _ in 0..repetitions {
        let begin = Instant::now();
        let output = pipeline.generate(&request, &mut Watch::default())?;
        seconds.push(begin.elapsed().as_secs_f64());
        // A measurement of wrong pictures is worth nothing.
        if output.pictures != first.pictures {
            terminal::line("bench: ", "two runs of the same request gave different pictures; nothing is reported");
            return Err(Failure::Told(1));
        }
        output.seconds.iter().for_each(|(stage, s)| stages.entry(Stage::name(*stage)).or_default().push(*s));
        steps.extend(output.step_seconds);
    }
    let (width, height) = first.pictures.first().map_or((0, 0), |p| (p.width(), p.height()));
    let measured = Measured {
        benchmark: "e2e",
        version: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        device: pipeline.device(),
        threads: pipeline.threads(),
        instructions: Cpu::instructions(),
        model: model.to_string_lossy().into_owned(),
        adapters: pipeline.adapters(),
        width,
        height,
        steps: request.steps,
        cfg_scale: request.guidance,
        pictures: request.count,
        repetitions,
        load_seconds,
        first_seconds,
        mean_seconds: mean(&seconds),
        sd_seconds: deviation(&seconds),
        step_mean_seconds: mean(&steps),
        seconds,
        stages,
    };
    terminal::print(&match format.as_str() {
        "md" => table(&measured, true),
        "csv" => table(&measured, false),
        "json" => format!("[{}]\n", terminal::json(&measured).trim_end()),
        _ => terminal::json(&measured),
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn deviation(values: &[f64]) -> Option<f64> {
    let middle = mean(values);
    let squares: f64 = values.iter().map(|v| (v - middle).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// The main figures as a Markdown or CSV table.
fn table(m: &Measured, markdown: bool) -> String {
    let sd = m.sd_seconds.map_or(String::new(), |sd| format!("{sd:.4}"));
    let cells = [
        ("device", format!("{} {} x{}", m.device, m.instructions, m.threads)),
        ("build", format!("{} {}", m.version, m.build)),
        ("size", format!("{}x{}", m.width, m.height)),
        ("steps", m.steps.to_string()),
        ("pictures", m.pictures.to_string()),
        ("adapters", m.adapters.to_string()),
        ("runs", m.repetitions.to_string()),
        ("mean s", format!("{:.4}", m.mean_seconds)),
        ("sd s", sd),
        ("step s", format!("{:.4}", m.step_mean_seconds)),
        ("first s", format!("{:.4}", m.first_seconds)),
        ("load s", format!("{:.4}", m.load_seconds)),
    ];
    let row = |cells: Vec<&str>| if markdown { format!("| {} |\n", cells.join(" | ")) } else { cells.join(",") + "\n" };
    let mut text = row(cells.iter().map(|c| c.0).collect());
    if markdown {
        text.push_str(&row(vec!["---"; cells.len()]));
    }
    text + &row(cells.iter().map(|c| c.1.as_str()).collect())
}
