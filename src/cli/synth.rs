//! `braid synth`.

use super::failure::{Failure, Outcome};
use super::flag::{self, Flag, Group};
use super::{system, terminal};
use crate::Error;
use crate::error::escape;
use crate::synthetic::{TensorSpec, WriteProgress, adapter_tensors, checkpoint_tensors, sdxl, vision_tensors};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The files that are written.
const FILES: [&str; 4] =
    ["sdxl.safetensors", "image_encoder/model.safetensors", "image_encoder/config.json", "ip-adapter_sdxl.bin"];

/// The options of the command.
#[derive(Default)]
pub struct Options {
    force: bool,
    words: Vec<OsString>,
}

const FORCE: Flag<Options> = Flag {
    long: "--force",
    help: "replace files that are there",
    set: |o, _| {
        o.force = true;
        Ok(())
    },
    ..Flag::NEW
};

const FLAGS: &[Group<Options>] = &[Group { title: None, flags: &[FORCE], note: None }];

const ABOUT: &str = "\
Writes a full-size SDXL of random weights in the published formats: sdxl.safetensors,
image_encoder/ and ip-adapter_sdxl.bin, 11.3 GB in all. Its images are noise; its speed
and memory are those of the real one.

Usage: braid synth sdxl DIR [--force]
";

/// `braid help synth`.
pub fn help() -> String {
    format!("{ABOUT}\n{}", flag::help(FLAGS))
}

/// Runs the command.
pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let mut options = Options::default();
    let word = |options: &mut Options, word| {
        options.words.push(word);
        Ok(())
    };
    if !flag::parse(&mut parser, FLAGS, "synth", &mut options, word)? {
        return terminal::print(&help());
    }
    let Options { force, words } = options;
    let [model, dir] = words.as_slice() else {
        return Err(Failure::usage("synth: a model and a folder are needed, as in `braid synth sdxl DIR`"));
    };
    if model != "sdxl" {
        let model = model.to_string_lossy();
        return Err(Failure::usage(format!("synth: unknown model `{model}` (expected sdxl)")));
    }
    let dir = PathBuf::from(dir);
    if let Some(old) = FILES.iter().map(|f| dir.join(f)).find(|f| f.exists()).filter(|_| !force) {
        let source = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "the file is there; --force replaces it");
        return Err(Error::io("write", old)(source).into());
    }
    room(&dir)?;
    let cancel = system::cancel_on_signal();
    let tell = |progress: &WriteProgress| {
        let text = format!("{}  {:.2} GB", escape(&progress.path.to_string_lossy()), progress.bytes as f64 / 1e9);
        terminal::line("writing ", &text);
    };
    let written = cancel.scope(|| sdxl(&dir, tell));
    system::stop(&cancel)?;
    let lines: String = written?.iter().map(|p| format!("{}\n", escape(&p.to_string_lossy()))).collect();
    terminal::print(&lines)
}

/// An error where the disk has too little left.
fn room(dir: &Path) -> Result<(), Failure> {
    let bytes = |tensors: Vec<TensorSpec>| tensors.iter().filter_map(TensorSpec::bytes).sum::<usize>() as u64;
    // Headers and the zip's directory take less than the last part.
    let need = bytes(checkpoint_tensors()) + bytes(vision_tensors()) + bytes(adapter_tensors()) + (8 << 20);
    let there = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let Some(free) = there.ancestors().find(|p| p.is_dir()).and_then(system::free_bytes) else { return Ok(()) };
    if free < need {
        let what = format!("{need} bytes are needed and {free} are free; give a folder on another disk");
        return Err(Error::io("write", dir)(std::io::Error::new(std::io::ErrorKind::StorageFull, what)).into());
    }
    Ok(())
}
