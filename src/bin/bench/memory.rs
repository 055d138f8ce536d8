//! `bench memory`: the memory of each stage of a request, predicted and measured.

use crate::child::{self, Options, Order};
use crate::gauge::{self, Gauge};
use crate::host::Host;
use crate::listener::Shared;
use crate::lists;
use crate::machine::{Machine, Place};
use crate::setup;
use braid::cli::failure::Failure;
use braid::cli::terminal;
use braid::device::cuda::CudaDevice;
use braid::pipeline::{Callbacks, MemoryEstimate, Progress, Stage};
use serde::{Deserialize, Serialize};

/// Memory of a stage, in bytes.
#[derive(Clone, Serialize, Deserialize)]
struct StageMemory {
    /// `load`, `build` for the compilation before the first stage, then the stages.
    stage: String,
    /// The most bytes of executables, as planned before they are compiled: on a GPU with their weights, on the CPU without.
    predicted_bytes: Option<u64>,
    /// Memory beyond that in use after loading: of the device's memory on a GPU, of anonymous memory on the CPU.
    measured_bytes: Option<u64>,
    /// The peak of anonymous memory.
    anonymous_bytes: Option<u64>,
    /// The peak of resident memory, mapped files included.
    resident_bytes: Option<u64>,
    /// The most of the device's memory in use, by anyone.
    device_bytes: Option<u64>,
}

/// The estimate for a GPU before anything is loaded there.
#[derive(Clone, Serialize, Deserialize)]
struct Estimated {
    text_bytes: u64,
    image_bytes: u64,
    condition_bytes: u64,
    denoise_bytes: u64,
    decode_bytes: u64,
    /// The peak with everything resident.
    kept_bytes: u64,
    /// The peak where encoders are freed after use.
    freed_bytes: u64,
}

impl From<MemoryEstimate> for Estimated {
    fn from(e: MemoryEstimate) -> Self {
        Self {
            text_bytes: e.text,
            image_bytes: e.image,
            condition_bytes: e.condition,
            denoise_bytes: e.denoise,
            decode_bytes: e.decode,
            kept_bytes: e.peak_resident(),
            freed_bytes: e.peak_offloaded(),
        }
    }
}

/// The sample of one process.
#[derive(Clone, Serialize, Deserialize)]
struct Sample {
    #[serde(flatten)]
    machine: Machine,
    skipped: Option<String>,
    /// Absent where no image was generated.
    width: Option<usize>,
    height: Option<usize>,
    adapters: usize,
    estimate: Option<Estimated>,
    stages: Vec<StageMemory>,
}

#[derive(Serialize)]
struct MemoryRow<'a> {
    benchmark: &'static str,
    #[serde(flatten)]
    host: Host,
    model: &'a str,
    steps: usize,
    cfg_scale: f32,
    #[serde(flatten)]
    sample: &'a Sample,
}

/// Runs it; `false` where help was asked for.
pub fn run(mut parser: lexopt::Parser) -> Result<bool, Failure> {
    let Some(options) = Options::read(&mut parser, 2, 0)? else { return Ok(false) };
    let samples = options.each(|order, place| sample(&options, order, place))?;
    let model = options.setup.model()?.name;
    let rows: Vec<_> = samples
        .iter()
        .flat_map(|(_, samples)| samples)
        .map(|sample| MemoryRow {
            benchmark: "memory",
            host: Host::now(),
            model: &model,
            steps: options.steps,
            cfg_scale: options.setup.generate.request.guidance_scale,
            sample,
        })
        .collect();
    let titles = [&Machine::TITLES[..], &Host::TITLES, &TITLES].concat();
    terminal::print(&lists::one_table(&rows, options.format, (&titles, titles.len() - MEASURED), MemoryRow::cells))?;
    child::something_measured(rows.iter().map(|row| row.sample.skipped.as_deref()))?;
    Ok(true)
}

/// Records the memory of each stage when the next one begins.
struct Notes {
    gauge: Gauge,
    log: Shared,
    gpu: Option<CudaDevice>,
    /// Memory before the request: anonymous, and of the device before anything was loaded.
    anonymous: Option<u64>,
    device: Option<u64>,
    /// The most of the device's memory in use since the last stage.
    most: u64,
    stages: Vec<StageMemory>,
}

impl Notes {
    /// Bytes of the device that are in use.
    fn used(&self) -> Option<u64> {
        let memory = self.gpu.as_ref()?.driver().memory_info().ok()?;
        Some(memory.total - memory.free)
    }

    fn look(&mut self) {
        self.most = self.most.max(self.used().unwrap_or(0));
    }

    fn close(&mut self, stage: &str) {
        self.look();
        let peaks = self.gauge.take();
        let predicted = self.log.take_peak();
        let device = self.gpu.is_some().then_some(self.most);
        let over = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?));
        let measured = match device {
            Some(_) => over(device, self.device),
            None => over(peaks.anonymous, self.anonymous),
        };
        let loading = stage == LOAD;
        self.stages.push(StageMemory {
            stage: stage.to_owned(),
            predicted_bytes: (!loading).then_some(predicted),
            measured_bytes: measured.filter(|_| !loading),
            anonymous_bytes: peaks.anonymous,
            resident_bytes: peaks.resident,
            device_bytes: device,
        });
        self.most = self.used().unwrap_or(0);
    }
}

/// The part before the request.
const LOAD: &str = "load";
/// The part of a request before its first stage.
const BUILD: &str = "build";

/// The child's part.
fn sample(options: &Options, _: &Order, place: &Place) -> Result<Sample, Failure> {
    let model = options.setup.model()?;
    let mut request = options.request(&model)?;
    let log = Shared::default();
    let mut notes = Notes {
        gauge: Gauge::new(),
        log: log.clone(),
        gpu: None,
        anonymous: None,
        device: None,
        most: 0,
        stages: Vec::new(),
    };
    let loaded = child::load(&model, place, !request.image_prompts.is_empty(), |gpu| notes.gpu = gpu.cloned())?;
    let mut sample = Sample {
        machine: place.machine(notes.gpu.as_ref()),
        skipped: None,
        width: None,
        height: None,
        adapters: request.image_prompts.len(),
        estimate: None,
        stages: Vec::new(),
    };
    let pipeline = match loaded {
        Ok(loaded) => loaded.pipeline,
        Err(why) => return Ok(Sample { skipped: Some(why), ..sample }),
    };
    request.noise_dtype = pipeline.dtype();
    let (width, height) = pipeline.image_size(&request)?;
    (sample.width, sample.height) = (Some(width), Some(height));
    sample.estimate =
        pipeline.workload_shape(&request).and_then(|shape| pipeline.estimate(&shape))?.map(Estimated::from);
    notes.device = notes.used();
    notes.close(LOAD);
    notes.anonymous = gauge::anonymous();
    let mut name = BUILD;
    let mut progress = |progress: Progress| {
        if log.progress(progress.stage, progress.done) {
            notes.close(name);
            name = Stage::name(progress.stage);
        }
        notes.look();
    };
    let drawn = log.listen(|| pipeline.generate_with(&request, Callbacks::new().with_progress(&mut progress)));
    match drawn {
        Ok(_) => notes.close(name),
        Err(error) => sample.skipped = Some(setup::skipped(error)?),
    }
    sample.stages = notes.stages;
    Ok(sample)
}

impl MemoryRow<'_> {
    /// A line for each stage.
    fn cells(&self) -> Vec<Vec<String>> {
        let sample = self.sample;
        let line = |part: Option<&StageMemory>| {
            let mut cells = sample.machine.cells();
            cells.extend(self.host.cells());
            cells.extend([
                self.model.to_owned(),
                sample.width.zip(sample.height).map_or(String::new(), |(w, h)| format!("{w}x{h}")),
                self.steps.to_string(),
                sample.adapters.to_string(),
                part.map_or(String::new(), |part| part.stage.clone()),
            ]);
            let number = |of: fn(&StageMemory) -> Option<u64>| {
                part.and_then(of).map_or(String::new(), |bytes| format!("{:.1}", bytes as f64 / 1e6))
            };
            cells.extend([
                number(|p| p.predicted_bytes),
                number(|p| p.measured_bytes),
                number(|p| p.anonymous_bytes),
                number(|p| p.resident_bytes),
                number(|p| p.device_bytes),
            ]);
            cells.push(sample.skipped.clone().unwrap_or_default());
            cells
        };
        if sample.stages.is_empty() { vec![line(None)] } else { sample.stages.iter().map(|p| line(Some(p))).collect() }
    }
}

/// The number of the last columns, which hold what was measured or why nothing was.
const MEASURED: usize = 6;

const TITLES: [&str; 11] = [
    "model",
    "size",
    "steps",
    "adapters",
    "stage",
    "predicted MB",
    "measured MB",
    "anonymous MB",
    "resident MB",
    "device MB",
    "skipped",
];
