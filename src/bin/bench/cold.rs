//! `bench cold`: from the start of a process to its first image.

use crate::check;
use crate::child::{self, Options, Order};
use crate::host::Host;
use crate::listener::Shared;
use crate::lists;
use crate::machine::{Machine, Place};
use crate::stats::{deviation, mean, median};
use braid::cli::failure::Failure;
use braid::cli::terminal;
use braid::pipeline::{Callbacks, Progress, Stage};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The parts of that time in order; they add up to the whole.
const PARTS: [&str; 13] = [
    "start",
    "arguments",
    "device",
    "map",
    "programs",
    "upload",
    "text",
    "image",
    "condition",
    "first_step",
    "other_steps",
    "decode",
    "rest",
];

/// The sample of one process.
#[derive(Clone, Serialize, Deserialize)]
struct Sample {
    machine: Machine,
    /// Why it could not run.
    skipped: Option<String>,
    /// Absent where no image was generated.
    width: Option<usize>,
    height: Option<usize>,
    adapters: usize,
    checksum: String,
    /// From the start of the process to the image, without the making of synthetic weights.
    total: f64,
    /// The same to the end of the first step.
    first_step: f64,
    /// The excess of the first step over the median of the others; absent where there are none.
    warm_up: Option<f64>,
    /// Seconds to make synthetic weights; no part of the other figures.
    make: f64,
    /// The image's seconds in parts; see [`PARTS`].
    parts: BTreeMap<String, f64>,
}

/// A device's samples.
#[derive(Serialize)]
struct ColdRow {
    benchmark: &'static str,
    #[serde(flatten)]
    host: Host,
    #[serde(flatten)]
    machine: Machine,
    model: String,
    adapters: usize,
    /// Absent where no image was generated.
    width: Option<usize>,
    height: Option<usize>,
    steps: usize,
    cfg_scale: f32,
    repetitions: usize,
    #[serde(flatten)]
    measured: Option<Measured>,
    skipped: Option<String>,
}

/// Seconds, from the start of a process.
#[derive(Serialize)]
struct Measured {
    checksum: String,
    /// To the first image.
    median_seconds: f64,
    mean_seconds: f64,
    sd_seconds: Option<f64>,
    /// To the end of the first step.
    first_step_median_seconds: f64,
    warm_up_median_seconds: Option<f64>,
    make_median_seconds: f64,
    /// The median of each part.
    parts_median: BTreeMap<String, f64>,
    /// To the first image, of every process.
    seconds: Vec<f64>,
    /// To the first step, of every process.
    first_step_seconds: Vec<f64>,
    /// Each part, of every process.
    parts: BTreeMap<String, Vec<f64>>,
}

/// Runs it; `false` where help was asked for.
pub fn run(mut parser: lexopt::Parser) -> Result<bool, Failure> {
    let Some(options) = Options::read(&mut parser, 4, 5)? else { return Ok(false) };
    let samples = options.each(|order, place| sample(&options, order, place))?;
    let model = options.setup.model()?.name;
    let mut rows = Vec::new();
    for (_, samples) in samples {
        rows.extend(ColdRow::new(&options, &model, &samples)?);
    }
    let titles = [&Machine::TITLES[..], &Host::TITLES, &TITLES, &PARTS, &["skipped"]].concat();
    terminal::print(&lists::one_table(&rows, options.format, (&titles, titles.len() - MEASURED), |row| {
        vec![row.cells()]
    }))?;
    child::something_measured(rows.iter().map(|row| row.skipped.as_deref()))?;
    Ok(true)
}

/// The child's part.
fn sample(options: &Options, order: &Order, place: &Place) -> Result<Sample, Failure> {
    let (start, model) = (order.start_seconds(), options.setup.model()?);
    let mut request = options.request(&model)?;
    let (arguments, log) = (child::seconds(), Shared::default());
    let mut device = 0.0;
    let loaded = child::load(&model, place, !request.image_prompts.is_empty(), |_| device = child::seconds())?;
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(why) => return Ok(Sample::skipped(place.machine(None), why)),
    };
    request.noise_dtype = loaded.pipeline.dtype();
    let progress = |progress: Progress| {
        log.progress(progress.stage, progress.done);
    };
    let output = match log.listen(|| loaded.pipeline.generate_with(&request, Callbacks::new().with_progress(progress)))
    {
        Ok(output) => output,
        Err(error) => return Ok(Sample::skipped(loaded.machine, crate::setup::skipped(error)?)),
    };
    let total = start + child::seconds() - loaded.make_seconds;
    let log = log.lock();
    let made = |stage| log.making.get(&stage).copied().unwrap_or(0.0);
    let stage = |stage: Stage| (output.seconds.get(&stage).copied().unwrap_or(0.0) - made(Some(stage))).max(0.0);
    // The denoiser may be compiled within the first step or before it.
    let both = log.denoise.zip(log.first_step);
    let first = both.map_or(0.0, |(begun, done)| (done - begun).as_secs_f64() - made(Some(Stage::Denoise))).max(0.0);
    let others = output.step_seconds.get(1..).unwrap_or_default();
    let mut parts = BTreeMap::from([
        ("start", start),
        ("arguments", arguments),
        ("device", device - arguments),
        ("map", loaded.load_seconds),
        ("programs", log.making.values().sum::<f64>() - log.uploading),
        ("upload", log.uploading),
        ("text", stage(Stage::Text)),
        ("image", stage(Stage::Image)),
        ("condition", stage(Stage::Condition)),
        ("first_step", first),
        ("other_steps", (stage(Stage::Denoise) - first).max(0.0)),
        ("decode", stage(Stage::Decode)),
    ]);
    parts.insert("rest", total - parts.values().sum::<f64>());
    let image = output.images.first();
    Ok(Sample {
        machine: loaded.machine.clone(),
        skipped: None,
        width: image.map(|p| p.width()),
        height: image.map(|p| p.height()),
        adapters: request.image_prompts.len(),
        checksum: format!("{:08x}", check::checksum(&output.images)),
        total,
        first_step: start + log.first_step.map_or(0.0, child::seconds_at) - loaded.make_seconds,
        warm_up: (!others.is_empty()).then(|| first - median(others)),
        make: loaded.make_seconds,
        parts: parts.into_iter().map(|(name, seconds)| (name.to_owned(), seconds)).collect(),
    })
}

impl Sample {
    fn skipped(machine: Machine, why: String) -> Self {
        Self {
            machine,
            skipped: Some(why),
            width: None,
            height: None,
            adapters: 0,
            checksum: String::new(),
            total: 0.0,
            first_step: 0.0,
            warm_up: None,
            make: 0.0,
            parts: BTreeMap::new(),
        }
    }
}

impl ColdRow {
    /// The row of one device's samples; `None` where there are none.
    fn new(options: &Options, model: &str, samples: &[Sample]) -> Result<Option<Self>, Failure> {
        let Some(first) = samples.first() else { return Ok(None) };
        let skipped = samples.iter().find_map(|sample| sample.skipped.clone());
        if skipped.is_none() && samples.iter().any(|sample| sample.checksum != first.checksum) {
            terminal::line("bench: ", "two processes gave different images for the same request; nothing is reported");
            return Err(Failure::Told(1));
        }
        let all = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).collect::<Vec<f64>>();
        let seconds = all(&|sample| sample.total);
        let first_step_seconds = all(&|sample| sample.first_step);
        let part = |name: &str| all(&|sample| sample.parts.get(name).copied().unwrap_or(0.0));
        let parts: BTreeMap<String, Vec<f64>> = PARTS.iter().map(|name| ((*name).to_owned(), part(name))).collect();
        let measured = skipped.is_none().then(|| Measured {
            checksum: first.checksum.clone(),
            median_seconds: median(&seconds),
            mean_seconds: mean(&seconds),
            sd_seconds: deviation(&seconds),
            first_step_median_seconds: median(&first_step_seconds),
            warm_up_median_seconds: first.warm_up.map(|_| median(&all(&|sample| sample.warm_up.unwrap_or(0.0)))),
            make_median_seconds: median(&all(&|sample| sample.make)),
            parts_median: parts.iter().map(|(name, seconds)| (name.clone(), median(seconds))).collect(),
            seconds,
            first_step_seconds,
            parts,
        });
        Ok(Some(Self {
            benchmark: "cold",
            host: Host::now(),
            machine: first.machine.clone(),
            model: model.to_owned(),
            adapters: first.adapters,
            width: first.width,
            height: first.height,
            steps: options.steps,
            cfg_scale: options.setup.generate.request.guidance_scale,
            repetitions: options.repetitions,
            measured,
            skipped,
        }))
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = self.machine.cells();
        cells.extend(self.host.cells());
        cells.extend([
            self.model.clone(),
            self.width.zip(self.height).map_or(String::new(), |(w, h)| format!("{w}x{h}")),
            self.steps.to_string(),
            self.adapters.to_string(),
            self.repetitions.to_string(),
        ]);
        let number = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.4}"));
        let m = self.measured.as_ref();
        cells.extend([
            number(m.map(|m| m.median_seconds)),
            number(m.and_then(|m| m.sd_seconds)),
            number(m.map(|m| m.first_step_median_seconds)),
            number(m.and_then(|m| m.warm_up_median_seconds)),
        ]);
        cells.extend(PARTS.iter().map(|name| number(m.and_then(|m| m.parts_median.get(*name).copied()))));
        cells.push(self.skipped.clone().unwrap_or_default());
        cells
    }
}

/// The number of the last columns, which hold what was measured or why nothing was.
const MEASURED: usize = 4 + PARTS.len() + 1;

/// The titles between the host's and the parts'.
const TITLES: [&str; 9] =
    ["model", "size", "steps", "adapters", "runs", "picture s", "sd s", "to first step s", "warm-up s"];
