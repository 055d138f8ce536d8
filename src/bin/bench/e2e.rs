//! `bench e2e`: whole requests.

use crate::args::{self, Failure};
use crate::host::Host;
use crate::lists::{self, Format, table};
use crate::terminal;
use braid::device::cpu::Cpu;
use braid::inputs::picture;
use braid::pipeline::{ImagePrompt, MAX_COUNT, MAX_SIDE, MAX_THREADS, Stage, Watch};
use braid::{Pipeline, PipelineOptions, Request};
use lexopt::Arg;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One measurement with every sample.
#[derive(Serialize)]
struct Measured {
    benchmark: &'static str,
    #[serde(flatten)]
    host: Host,
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
    /// Requests before the samples; the first of them is `first_seconds`.
    warmup: usize,
    /// Reading and checking the files.
    load_seconds: f64,
    /// The first request, which also builds the programs.
    first_seconds: f64,
    mean_seconds: f64,
    /// Of the samples, with n - 1; absent for one sample.
    sd_seconds: Option<f64>,
    p50_seconds: f64,
    p90_seconds: f64,
    p99_seconds: f64,
    pictures_per_second: f64,
    step_mean_seconds: f64,
    /// Each stage's share of the mean.
    stage_share: BTreeMap<&'static str, f64>,
    /// Wall-clock seconds of each request.
    seconds: Vec<f64>,
    /// Each stage's seconds in each request.
    stages: BTreeMap<&'static str, Vec<f64>>,
}

pub fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let p = &mut parser;
    let mut model: Option<PathBuf> = None;
    let (mut config, mut encoder, mut adapter, mut image) = (None, None, None, None);
    let mut request = Request::new("a red fox in the snow");
    let (mut threads, mut repetitions, mut warmup, mut format) = (None, 5, 1, Format::Markdown);
    let (mut steps, mut sizes, mut counts) = (vec![50], Vec::new(), vec![1]);
    while let Some(arg) = p.next().map_err(args::usage)? {
        match arg {
            Arg::Short('h') | Arg::Long("help") => return terminal::print(crate::HELP),
            Arg::Short('m') | Arg::Long("model") => model = Some(args::value(p, "--model")?.into()),
            Arg::Long("config") => config = Some(PathBuf::from(args::value(p, "--config")?)),
            Arg::Long("clip-vision") => encoder = Some(PathBuf::from(args::value(p, "--clip-vision")?)),
            Arg::Long("ip-adapter") => adapter = Some(PathBuf::from(args::value(p, "--ip-adapter")?)),
            Arg::Long("ip-adapter-image") => image = Some(PathBuf::from(args::value(p, "--ip-adapter-image")?)),
            Arg::Short('p') | Arg::Long("prompt") => request.prompt = args::text(p, "--prompt")?,
            Arg::Short('n') | Arg::Long("steps") => steps = lists::numbers(p, "--steps", 1, 1000)?,
            Arg::Long("cfg-scale") => request.guidance = args::number(p, "--cfg-scale")?,
            Arg::Long("size") => sizes = lists::numbers(p, "--size", 1, MAX_SIDE)?,
            Arg::Short('W') | Arg::Long("width") => request.width = Some(args::count(p, "--width", 1, MAX_SIDE)?),
            Arg::Short('H') | Arg::Long("height") => request.height = Some(args::count(p, "--height", 1, MAX_SIDE)?),
            Arg::Short('b') | Arg::Long("batch-count") => counts = lists::numbers(p, "--batch-count", 1, MAX_COUNT)?,
            Arg::Short('t') | Arg::Long("threads") => threads = Some(args::count(p, "--threads", 1, MAX_THREADS)?),
            Arg::Short('r') | Arg::Long("repetitions") => repetitions = args::count(p, "--repetitions", 1, 10_000)?,
            Arg::Long("preset") => match args::text(p, "--preset")?.as_str() {
                // The settings of MLPerf Inference's SDXL.
                "mlperf" => {
                    (steps, sizes, request.guidance) = (vec![20], vec![1024], 8.0);
                    request.method = Some("euler".parse()?);
                }
                other => return Err(Failure::usage(format!("--preset: `{other}` is not known; mlperf is"))),
            },
            Arg::Long("warmup") => warmup = args::count(p, "--warmup", 1, 10_000)?,
            Arg::Short('o') | Arg::Long("output") => format = Format::read(p)?,
            other => return Err(args::unexpected_of(other, "bench --help")),
        }
    }
    let model =
        model.ok_or_else(|| Failure::usage("--model: missing; give an SDXL checkpoint or a diffusers folder"))?;
    if adapter.is_some() != image.is_some() {
        return Err(Failure::usage("--ip-adapter: it and --ip-adapter-image need each other"));
    }
    if !sizes.is_empty() && (request.width.is_some() || request.height.is_some()) {
        return Err(Failure::usage("--size: it and --width or --height exclude each other"));
    }
    let mut options = PipelineOptions::new(&model);
    if model == Path::new("demo") && !model.exists() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
        options = PipelineOptions::new(demo.join("sdxl.safetensors"));
        config = config.or_else(|| Some(demo.join("config")));
        encoder = encoder.or_else(|| adapter.is_some().then(|| demo.join("image_encoder")));
    }
    (options.config, options.clip_vision, options.threads) = (config, encoder, threads);
    if let (Some(adapter), Some(image)) = (adapter, image) {
        options = options.adapter(adapter);
        request.images = vec![ImagePrompt::new(picture::load(image, options.compat.alpha)?)];
    }

    let begin = Instant::now();
    let pipeline = Pipeline::load(&options)?;
    let load_seconds = begin.elapsed().as_secs_f64();
    let name = model.to_string_lossy();
    let sizes: Vec<_> = if sizes.is_empty() { vec![None] } else { sizes.into_iter().map(Some).collect() };
    let mut rows = Vec::new();
    for size in sizes {
        for &count in &counts {
            for &steps in &steps {
                let mut request = request.clone();
                (request.steps, request.count) = (steps, count);
                if size.is_some() {
                    (request.width, request.height) = (size, size);
                }
                rows.push(Measured::new(&pipeline, &request, &name, load_seconds, (warmup, repetitions))?);
            }
        }
    }
    terminal::print(&match format {
        Format::Markdown | Format::Csv => {
            let cells: Vec<_> = rows.iter().map(Measured::cells).collect();
            table(&TITLES, &cells, format == Format::Markdown)
        }
        Format::Json => terminal::json(&rows),
        Format::JsonLines => rows.iter().map(terminal::json).collect(),
    })
}

impl Measured {
    fn new(
        pipeline: &Pipeline,
        request: &Request,
        model: &str,
        load_seconds: f64,
        (warmup, repetitions): (usize, usize),
    ) -> Result<Self, Failure> {
        // The library itself refuses results that are not finite.
        let begin = Instant::now();
        let first = pipeline.generate(request, &mut Watch::default())?;
        let first_seconds = begin.elapsed().as_secs_f64();
        let (mut seconds, mut steps) = (Vec::new(), Vec::new());
        let mut stages: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        for run in 1..warmup + repetitions {
            let begin = Instant::now();
            let output = pipeline.generate(request, &mut Watch::default())?;
            let taken = begin.elapsed().as_secs_f64();
            // A measurement of wrong pictures is worth nothing.
            if output.pictures != first.pictures {
                terminal::line("bench: ", "two runs of the same request gave different pictures; nothing is reported");
                return Err(Failure::Told(1));
            }
            if run < warmup {
                continue;
            }
            seconds.push(taken);
            output.seconds.iter().for_each(|(stage, s)| stages.entry(Stage::name(*stage)).or_default().push(*s));
            steps.extend(output.step_seconds);
        }
        let (width, height) = first.pictures.first().map_or((0, 0), |p| (p.width(), p.height()));
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        Ok(Self {
            benchmark: "e2e",
            host: Host::now(),
            device: pipeline.device(),
            threads: pipeline.threads(),
            instructions: Cpu::instructions(),
            model: model.to_owned(),
            adapters: pipeline.adapters(),
            width,
            height,
            steps: request.steps,
            cfg_scale: request.guidance,
            pictures: request.count,
            repetitions,
            warmup,
            load_seconds,
            first_seconds,
            mean_seconds: mean(&seconds),
            sd_seconds: deviation(&seconds),
            p50_seconds: percentile(&sorted, 50),
            p90_seconds: percentile(&sorted, 90),
            p99_seconds: percentile(&sorted, 99),
            pictures_per_second: request.count as f64 / mean(&seconds),
            step_mean_seconds: mean(&steps),
            stage_share: stages.iter().map(|(name, s)| (*name, mean(s) / mean(&seconds))).collect(),
            seconds,
            stages,
        })
    }

    fn cells(&self) -> Vec<String> {
        vec![
            format!("{} {} x{}", self.device, self.instructions, self.threads),
            format!("{} {}", self.host.version, self.host.build),
            format!("{}x{}", self.width, self.height),
            self.steps.to_string(),
            self.pictures.to_string(),
            self.adapters.to_string(),
            self.repetitions.to_string(),
            format!("{:.4}", self.mean_seconds),
            self.sd_seconds.map_or(String::new(), |sd| format!("{sd:.4}")),
            format!("{:.4}", self.p50_seconds),
            format!("{:.4}", self.p90_seconds),
            format!("{:.4}", self.p99_seconds),
            format!("{:.4}", self.pictures_per_second),
            format!("{:.4}", self.step_mean_seconds),
            format!("{:.4}", self.first_seconds),
            format!("{:.4}", self.load_seconds),
        ]
    }
}

const TITLES: [&str; 16] = [
    "device",
    "build",
    "size",
    "steps",
    "pictures",
    "adapters",
    "runs",
    "mean s",
    "sd s",
    "p50 s",
    "p90 s",
    "p99 s",
    "pictures/s",
    "step s",
    "first s",
    "load s",
];

/// The nearest rank of sorted samples: the smallest that at least that many percent do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn deviation(values: &[f64]) -> Option<f64> {
    let middle = mean(values);
    let squares: f64 = values.iter().map(|v| (v - middle).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles() {
        let samples: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!([50, 90, 99].map(|p| percentile(&samples, p)), [5.0, 9.0, 10.0]);
        assert_eq!(percentile(&[3.0], 50), 3.0);
    }
}
