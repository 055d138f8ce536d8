//! The files of `--preview`.

use super::flags::FlagNames;
use super::options::Options;
use super::terminal;
use crate::pipeline::Preview;
use std::path::PathBuf;

/// Writes previews, each over the one before it.
pub struct Previews {
    /// A file for each image.
    names: Vec<PathBuf>,
    every: usize,
    failed: bool,
}

impl Previews {
    /// Those that the options ask for.
    pub fn new(options: &Options) -> Option<Self> {
        let names = options.preview_names();
        (!names.is_empty()).then(|| Self { names, every: options.preview_every.unwrap_or(1), failed: false })
    }

    /// The model evaluations from one to the next.
    pub fn every(&self) -> usize {
        self.every
    }

    /// Writes one. A failure is told once and ends nothing: the image is worth more than its previews.
    pub fn write(&mut self, preview: &Preview) {
        let Some(name) = self.names.get(preview.image) else { return };
        if let Err(error) = preview.pixels.save(name)
            && !std::mem::replace(&mut self.failed, true)
        {
            terminal::line("warning: ", &error.message().describe(&FlagNames));
        }
    }
}
