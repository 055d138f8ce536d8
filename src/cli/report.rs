//! The report of a run: the line of `--json`, lines for people, notes.

use super::flags::FlagNames;
use super::system::{self, MemoryMonitor};
use crate::pipeline::{Output, Pipeline, Stage};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The report of a run.
#[derive(Serialize)]
pub struct Report {
    files: Vec<String>,
    dump: Option<String>,
    /// The sheets of `--attribution`.
    attribution: Vec<String>,
    /// The seed of the first image.
    seed: u64,
    seeds: Vec<u64>,
    /// The images, from 0, whose VAE ran in f32 after all; left out where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    upcast_vae: Vec<usize>,
    width: usize,
    height: usize,
    steps: usize,
    sampling_method: String,
    device: String,
    /// By stage, and `load`, `save`, `total`.
    seconds: BTreeMap<&'static str, f64>,
    step_seconds: Vec<f64>,
    /// The greatest resident size, mapped files included.
    peak_bytes: Option<u64>,
    /// The same without memory that files back.
    peak_anonymous_bytes: Option<u64>,
    cut_tokens: usize,
    version: &'static str,
}

impl Report {
    /// The report of a finished request.
    pub fn new(
        pipeline: &Pipeline,
        output: &Output,
        files: &[PathBuf],
        method: String,
        memory: &MemoryMonitor,
    ) -> Self {
        let mut seconds: BTreeMap<_, _> = output.seconds.iter().map(|(s, t)| (Stage::name(*s), *t)).collect();
        let total = seconds.values().sum();
        seconds.insert("total", total);
        let first = output.images.first();
        Self {
            files: files.iter().map(name).collect(),
            dump: None,
            attribution: Vec::new(),
            seed: output.seeds.first().copied().unwrap_or_default(),
            seeds: output.seeds.clone(),
            upcast_vae: (0..output.images.len()).filter(|image| output.upcast_vae[*image]).collect(),
            width: first.map_or(0, |p| p.width()),
            height: first.map_or(0, |p| p.height()),
            steps: output.step_seconds.len() / output.images.len().max(1),
            sampling_method: method,
            device: pipeline.device(),
            seconds,
            step_seconds: output.step_seconds.clone(),
            peak_bytes: system::peak_bytes(),
            peak_anonymous_bytes: memory.anonymous_peak(),
            cut_tokens: output.truncated_tokens,
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Adds the seconds of work outside the stages.
    pub fn took(&mut self, name: &'static str, seconds: f64) {
        self.seconds.insert(name, seconds);
        *self.seconds.entry("total").or_default() += seconds;
    }

    /// Names the files beside the images: that of `--dump` and the sheets of `--attribution`.
    pub fn wrote(&mut self, dump: Option<&PathBuf>, sheets: &[PathBuf]) {
        self.dump = dump.map(name);
        self.attribution = sheets.iter().map(name).collect();
    }
}

fn name(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

/// Notes about the device and the data types.
pub fn notes(pipeline: &Pipeline) -> Vec<String> {
    pipeline.notes().map(|note| note.describe(&FlagNames)).collect()
}
