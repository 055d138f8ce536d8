//! A row of `bench e2e`.

use crate::host::Host;
use crate::machine::Machine;
use serde::Serialize;
use std::collections::BTreeMap;

/// One measurement, or why there is none.
#[derive(Serialize)]
pub struct Row {
    pub benchmark: &'static str,
    #[serde(flatten)]
    pub host: Host,
    #[serde(flatten)]
    pub machine: Machine,
    pub model: String,
    /// MLPerf's name for it, with its preset.
    pub scenario: Option<&'static str>,
    #[serde(flatten)]
    pub case: Case,
    #[serde(flatten)]
    pub measured: Option<Measured>,
    /// Why nothing was measured.
    pub skipped: Option<String>,
}

/// The request and the number of runs.
#[derive(Clone, Serialize)]
pub struct Case {
    pub adapters: usize,
    /// Absent where nothing was loaded that could tell the model's own size.
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub steps: usize,
    pub cfg_scale: f32,
    pub pictures: usize,
    pub repetitions: usize,
    /// Requests after the first one and before the samples.
    pub warmup: usize,
}

/// One measurement with every sample.
#[derive(Serialize)]
pub struct Measured {
    /// CRC-32 of the images, the same in every run.
    pub checksum: String,
    /// Seconds to read and check the files.
    pub load_seconds: f64,
    /// Seconds of the first request, which also compiles the executables.
    pub first_seconds: f64,
    pub mean_seconds: f64,
    /// The standard deviation of the samples, with n - 1; absent for one sample.
    pub sd_seconds: Option<f64>,
    pub p50_seconds: f64,
    pub p90_seconds: f64,
    pub p99_seconds: f64,
    pub pictures_per_second: f64,
    pub step_mean_seconds: f64,
    /// Each stage's share of the mean.
    pub stage_share: BTreeMap<&'static str, f64>,
    /// The percentage by which the adapter slows a request, image encoder included, where both were asked for: the median over
    /// the pairs.
    pub adapter_overhead_percent: Option<f64>,
    /// The same of the denoising alone.
    pub adapter_denoise_overhead_percent: Option<f64>,
    /// Wall-clock seconds of each request.
    pub seconds: Vec<f64>,
    /// Each stage's seconds in each request.
    pub stages: BTreeMap<&'static str, Vec<f64>>,
}

impl Row {
    /// The row of a table; see [`TITLES`].
    pub fn cells(&self) -> Vec<String> {
        let case = &self.case;
        let size = case.width.zip(case.height).map_or(String::new(), |(w, h)| format!("{w}x{h}"));
        let mut cells = self.machine.cells();
        cells.extend(self.host.cells());
        cells.extend([
            self.model.clone(),
            self.scenario.unwrap_or_default().to_owned(),
            size,
            case.steps.to_string(),
            case.pictures.to_string(),
            case.adapters.to_string(),
            case.repetitions.to_string(),
        ]);
        let measured: Vec<Option<f64>> = match &self.measured {
            Some(m) => vec![
                Some(m.mean_seconds),
                m.sd_seconds,
                Some(m.p50_seconds),
                Some(m.p90_seconds),
                Some(m.p99_seconds),
                Some(m.pictures_per_second),
                Some(m.step_mean_seconds),
                Some(m.first_seconds),
                Some(m.load_seconds),
                m.adapter_overhead_percent,
            ],
            None => vec![None; 10],
        };
        cells.extend(measured.into_iter().map(|value| value.map_or(String::new(), |v| format!("{v:.4}"))));
        cells.push(self.skipped.clone().unwrap_or_default());
        cells
    }
}

/// The number of the last columns, which hold what was measured or why nothing was.
pub const MEASURED: usize = 11;

/// The titles of the cells after the machine's and the host's.
pub const TITLES: [&str; 18] = [
    "model",
    "scenario",
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
    "adapter %",
    "skipped",
];
