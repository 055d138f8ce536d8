//! `bench e2e`: whole requests.

use crate::arguments;
use crate::check;
use crate::child;
use crate::host::Host;
use crate::lists::{self, Format};
use crate::machine::{Machine, Place};
use crate::row::{Case, MEASURED, Measured, Row, TITLES};
use crate::setup::{self, BenchModel, Loaded, Setup};
use crate::stats::{self, deviation, mean, percentile, sorted};
use braid::cli::failure::Failure;
use braid::cli::flag::Flag;
use braid::cli::terminal;
use braid::cli::value::Value;
use braid::pipeline::{MAX_NUM_IMAGES, MAX_SIDE, Output, Stage};
use braid::{Pipeline, Request};
use std::collections::BTreeMap;
use std::time::Instant;

/// The measurements that were asked for.
pub struct Options {
    setup: Setup,
    format: Format,
    steps: Vec<usize>,
    sizes: Vec<usize>,
    counts: Vec<usize>,
    repetitions: usize,
    warmup: usize,
    /// With the adapter, without it, or both alternately; with it where the model has one if empty.
    adapter: Vec<bool>,
    /// Whether both of MLPerf's scenarios are measured.
    mlperf: bool,
}

/// Images of a request in MLPerf's offline scenario, where nothing else is said.
const OFFLINE: usize = 4;

/// A request with MLPerf's name for it.
type Named = (Option<&'static str>, Request);

impl Options {
    /// Every combination of the lists.
    fn requests(&self, request: &Request) -> Vec<Named> {
        let sizes: Vec<_> = match self.sizes.as_slice() {
            [] => vec![(request.width, request.height)],
            sizes => sizes.iter().map(|size| (Some(*size), Some(*size))).collect(),
        };
        // One stream of single images for the latency; as many at once as there are for the throughput.
        let single = self.mlperf.then_some((Some("single-stream"), 1));
        let offline = self.mlperf.then_some("offline");
        let counts: Vec<_> = single.into_iter().chain(self.counts.iter().map(|count| (offline, *count))).collect();
        let mut all = Vec::new();
        for size in sizes {
            for &(name, count) in &counts {
                for &steps in &self.steps {
                    let mut request = request.clone();
                    ((request.width, request.height), request.num_images, request.steps) = (size, count, steps);
                    all.push((name, request));
                }
            }
        }
        all
    }
}

const STEPS: Flag<Options> = Flag {
    long: "--steps",
    short: Some('n'),
    value: Some("LIST"),
    help: "[default: 50]",
    set: |o, v| lists::numbers(v, 1, 1000).map(|steps| o.steps = steps),
    ..Flag::NEW
};

const SIZE: Flag<Options> = Flag {
    long: "--size",
    value: Some("LIST"),
    help: "width and height [default: the model's own size]",
    set: |o, v| lists::numbers(v, 1, MAX_SIDE).map(|sizes| o.sizes = sizes),
    ..Flag::NEW
};

const BATCH_COUNT: Flag<Options> = Flag {
    long: "--batch-count",
    short: Some('b'),
    value: Some("LIST"),
    help: "images of a request, which share evaluations of the UNet [default: 1]",
    set: |o, v| lists::numbers(v, 1, MAX_NUM_IMAGES).map(|counts| o.counts = counts),
    ..Flag::NEW
};

const ADAPTER: Flag<Options> = Flag {
    long: "--adapter",
    value: Some("LIST"),
    help: "on, off; both are measured alternately, and the overhead in percent is the median over the pairs [default: on \
           where there is one]",
    set: |o, v| setup::on_or_off(v).map(|adapter| o.adapter = adapter),
    ..Flag::NEW
};

const PRESET: Flag<Options> = Flag {
    long: "--preset",
    value: Some("NAME"),
    help: "mlperf: 20 steps of Euler, guidance 8, 1024x1024, in both scenarios: a row single-stream (one image, its \
           percentiles) and a row offline (4 images together or -b, images/s); flags after it win",
    set: preset,
    ..Flag::NEW
};

const REPETITIONS: Flag<Options> = Flag {
    long: "--repetitions",
    short: Some('r'),
    value: Some("N"),
    help: "[default: 5]",
    set: |o, v| v.count(1, 10_000).map(|n| o.repetitions = n),
    ..Flag::NEW
};

const WARMUP: Flag<Options> = Flag {
    long: "--warmup",
    value: Some("N"),
    help: "runs after the first [default: 1]",
    set: |o, v| v.count(1, 10_000).map(|n| o.warmup = n),
    ..Flag::NEW
};

const OUTPUT: Flag<Options> = Flag {
    long: "--output",
    short: Some('o'),
    value: Some("FORMAT"),
    help: "md, csv, json or jsonl [default: md]",
    set: |o, v| Format::read(v).map(|format| o.format = format),
    ..Flag::NEW
};

/// The flags beside those of [`Setup`].
pub const FLAGS: &[Flag<Options>] = &[STEPS, SIZE, BATCH_COUNT, ADAPTER, PRESET, REPETITIONS, WARMUP, OUTPUT];

/// Takes the settings of MLPerf Inference's SDXL.
fn preset(o: &mut Options, value: &mut Value<'_>) -> Result<(), Failure> {
    value.choice(&[("mlperf", ())])?;
    (o.steps, o.sizes, o.mlperf, o.counts) = (vec![20], vec![1024], true, vec![OFFLINE]);
    let request = &mut o.setup.generate.request;
    (request.guidance_scale, request.scheduler) = (8.0, Some("euler".parse()?));
    Ok(())
}

/// Runs it; `false` where help was asked for.
pub fn run(mut parser: lexopt::Parser) -> Result<bool, Failure> {
    let mut options = Options {
        setup: Setup::new(),
        format: Format::Markdown,
        steps: vec![50],
        sizes: Vec::new(),
        counts: vec![1],
        repetitions: 5,
        warmup: 1,
        adapter: Vec::new(),
        mlperf: false,
    };
    if !arguments::read(&mut parser, FLAGS, &mut options, |options, argument, p| options.setup.take(argument, p))? {
        return Ok(false);
    }
    let mut request = options.setup.request();
    if !options.sizes.is_empty() && (request.width.is_some() || request.height.is_some()) {
        return Err(Failure::usage("--size: it and --width or --height exclude each other"));
    }
    let model = options.setup.model()?;
    if options.sizes.is_empty() && request.width.is_none() && request.height.is_none() {
        (request.width, request.height) = (model.side, model.side);
    }
    if options.adapter.is_empty() {
        options.adapter.push(model.has_adapter());
    }
    if options.adapter.contains(&true) && !model.has_adapter() {
        return Err(setup::no_adapter());
    }
    // A pair is one measurement; more than that would be the same again.
    options.adapter.dedup();
    options.adapter.truncate(2);
    let mut rows = Vec::new();
    let mut bench = Bench { model: &model, options: &options, rows: &mut rows, on_cpu: Vec::new() };
    for place in options.setup.places() {
        bench.place(&place, &request)?;
    }
    let titles = [&Machine::TITLES[..], &Host::TITLES, &TITLES].concat();
    terminal::print(&lists::one_table(&rows, options.format, (&titles, titles.len() - MEASURED), |row| {
        vec![row.cells()]
    }))?;
    child::something_measured(rows.iter().map(|row| row.skipped.as_deref()))?;
    Ok(true)
}

/// A benchmark under way.
struct Bench<'a> {
    model: &'a BenchModel,
    options: &'a Options,
    rows: &'a mut Vec<Row>,
    /// The types in which the CPU has been measured.
    on_cpu: Vec<String>,
}

impl Bench<'_> {
    /// Measures everything on one device and in one type, or says why not.
    fn place(&mut self, place: &Place, request: &Request) -> Result<(), Failure> {
        let requests = self.options.requests(request);
        let gpu = match place.open() {
            Ok(gpu) => gpu,
            Err(error) => return self.skip(place.machine(None), &requests, &setup::skipped(error)?),
        };
        if gpu.is_none() {
            let machine = place.machine(None);
            if self.on_cpu.contains(&machine.dtype) {
                let why = format!("the CPU computes in {} with this type, and its rows are above", machine.dtype);
                return self.skip(Machine { dtype: place.asked(), ..machine }, &requests, &why);
            }
            self.on_cpu.push(machine.dtype);
        }
        let loaded = match self.model.load(place, gpu, self.options.adapter.contains(&true)) {
            Ok(loaded) => loaded,
            Err(error) => return self.skip(place.machine(None), &requests, &setup::skipped(error)?),
        };
        for (scenario, mut request) in requests {
            request.noise_dtype = loaded.pipeline.dtype();
            self.request(&loaded, (scenario, request))?;
        }
        Ok(())
    }

    /// Measures one request, with the adapter and without it, as asked for.
    fn request(&mut self, loaded: &Loaded, (scenario, request): Named) -> Result<(), Failure> {
        let (width, height) = loaded.pipeline.image_size(&request)?;
        let with = |adapter: &bool| {
            let mut request = request.clone();
            request.image_prompts = if *adapter { self.model.images.clone() } else { Vec::new() };
            (request.width, request.height) = (Some(width), Some(height));
            request
        };
        let variants: Vec<_> = self.options.adapter.iter().map(with).collect();
        let samples = measure(&loaded.pipeline, &variants, self.options)?;
        let percent = match &samples {
            Ok(samples) => overhead(&variants, samples),
            Err(_) => None,
        };
        for (i, variant) in variants.iter().enumerate() {
            let mut row = self.row(loaded.machine.clone(), scenario, variant, variant.image_prompts.len());
            match &samples {
                Ok(samples) => {
                    let percent = percent.filter(|_| !variant.image_prompts.is_empty());
                    row.measured = Some(samples[i].summary(variant, loaded.load_seconds, percent));
                }
                Err(why) => row.skipped = Some(why.clone()),
            }
            self.rows.push(row);
        }
        Ok(())
    }

    fn skip(&mut self, machine: Machine, requests: &[Named], why: &str) -> Result<(), Failure> {
        for (scenario, request) in requests {
            for &adapter in &self.options.adapter {
                let mut row = self.row(machine.clone(), *scenario, request, usize::from(adapter));
                row.skipped = Some(why.to_owned());
                self.rows.push(row);
            }
        }
        Ok(())
    }

    fn row(&self, machine: Machine, scenario: Option<&'static str>, request: &Request, adapters: usize) -> Row {
        Row {
            benchmark: "e2e",
            host: Host::now(),
            machine,
            model: self.model.name.clone(),
            scenario,
            case: Case {
                adapters,
                width: request.width,
                height: request.height,
                steps: request.steps,
                cfg_scale: request.guidance_scale,
                pictures: request.num_images,
                repetitions: self.options.repetitions,
                warmup: self.options.warmup,
            },
            measured: None,
            skipped: None,
        }
    }
}

/// The measurements of one request.
#[derive(Default)]
struct Samples {
    first: f64,
    checksum: u32,
    seconds: Vec<f64>,
    steps: Vec<f64>,
    stages: BTreeMap<&'static str, Vec<f64>>,
}

/// The percentage by which the adapter slows a request and its denoising.
fn overhead(variants: &[Request], samples: &[Samples]) -> Option<[f64; 2]> {
    let find = |adapter: bool| samples.iter().zip(variants).find(|(_, v)| v.image_prompts.is_empty() != adapter);
    let ((with, _), (without, _)) = (find(true)?, find(false)?);
    let denoise = |samples: &Samples| samples.stages.get("denoise").cloned().unwrap_or_default();
    Some([stats::overhead(&with.seconds, &without.seconds), stats::overhead(&denoise(with), &denoise(without))])
}

/// Times requests alternately, so that a slow moment of the machine slows them all; the inner error says why they cannot run
/// here.
fn measure(
    pipeline: &Pipeline,
    requests: &[Request],
    options: &Options,
) -> Result<Result<Vec<Samples>, String>, Failure> {
    let mut samples: Vec<Samples> = requests.iter().map(|_| Samples::default()).collect();
    for run in 0..=options.warmup + options.repetitions {
        let mut pairs: Vec<_> = samples.iter_mut().zip(requests).collect();
        // The first of a pair is the second of the next one.
        if run % 2 == 1 {
            pairs.reverse();
        }
        for (samples, request) in pairs {
            // The second run of each is checked closely, before anything is timed.
            let mut request = request.clone();
            request.capture_intermediates = run == 1;
            let begin = Instant::now();
            let output = match pipeline.generate(&request) {
                Err(error) if run == 0 => return setup::skipped(error).map(Err),
                output => output?,
            };
            samples.add(run, options.warmup, begin.elapsed().as_secs_f64(), output)?;
        }
    }
    Ok(Ok(samples))
}

impl Samples {
    fn add(&mut self, run: usize, warmup: usize, seconds: f64, output: Output) -> Result<(), Failure> {
        if run == 0 {
            (self.first, self.checksum) = (seconds, check::checksum(&output.images));
            return Ok(());
        }
        // A measurement of wrong images is worth nothing.
        if let Err(why) = check::verify(self.checksum, &output.images, &output.intermediates) {
            terminal::line("bench: ", &why);
            return Err(Failure::Told(1));
        }
        if run > warmup {
            self.seconds.push(seconds);
            output.seconds.iter().for_each(|(stage, s)| self.stages.entry(Stage::name(*stage)).or_default().push(*s));
            self.steps.extend(output.step_seconds);
        }
        Ok(())
    }

    fn summary(&self, request: &Request, load_seconds: f64, overhead: Option<[f64; 2]>) -> Measured {
        let (mean_seconds, rising) = (mean(&self.seconds), sorted(&self.seconds));
        Measured {
            checksum: format!("{:08x}", self.checksum),
            load_seconds,
            first_seconds: self.first,
            mean_seconds,
            sd_seconds: deviation(&self.seconds),
            p50_seconds: percentile(&rising, 50),
            p90_seconds: percentile(&rising, 90),
            p99_seconds: percentile(&rising, 99),
            pictures_per_second: request.num_images as f64 / mean_seconds,
            step_mean_seconds: mean(&self.steps),
            stage_share: self.stages.iter().map(|(name, s)| (*name, mean(s) / mean_seconds)).collect(),
            adapter_overhead_percent: overhead.map(|[whole, _]| whole),
            adapter_denoise_overhead_percent: overhead.map(|[_, denoise]| denoise),
            seconds: self.seconds.clone(),
            stages: self.stages.clone(),
        }
    }
}
