//! `braid synth`.

use crate::args::{Failure, unexpected, usage};
use crate::{Outcome, help, system, terminal};
use braid::Error;
use braid::error::escape;
use braid::synthetic::{TensorSpec, adapter_tensors, checkpoint_tensors, sdxl, vision_tensors};
use std::path::{Path, PathBuf};

/// The files that are written.
const FILES: [&str; 4] =
    ["sdxl.safetensors", "image_encoder/model.safetensors", "image_encoder/config.json", "ip-adapter_sdxl.bin"];

pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let (mut force, mut words) = (false, Vec::new());
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return help::print(help::SYNTH),
            lexopt::Arg::Long("force") => force = true,
            lexopt::Arg::Value(word) => words.push(word),
            other => return Err(unexpected(other, "synth")),
        }
    }
    let [model, dir] = words.as_slice() else {
        return Err(Failure::usage("synth: a model and a folder are needed, as in `braid synth sdxl DIR`"));
    };
    if model != "sdxl" {
        let model = model.to_string_lossy();
        return Err(Failure::usage(format!("synth: `{model}` is not known; sdxl is")));
    }
    let dir = PathBuf::from(dir);
    if let Some(old) = FILES.iter().map(|f| dir.join(f)).find(|f| f.exists()).filter(|_| !force) {
        let source = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "the file is there; --force replaces it");
        return Err(Error::io("write", old)(source).into());
    }
    room(&dir)?;
    let cancel = system::cancel_on_signal();
    std::thread::spawn(move || {
        // The writer cannot be interrupted between files; what it leaves has a name of its own.
        while !cancel.is_cancelled() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let signal = system::signalled().unwrap_or(2);
        terminal::line("braid: ", &format!("stopped by signal {signal}; an unfinished .part file may be left"));
        std::process::exit(128 + signal);
    });
    let paths = sdxl(&dir, |progress| {
        let text = format!("{}  {:.2} GB", escape(&progress.path.to_string_lossy()), progress.bytes as f64 / 1e9);
        terminal::line("writing ", &text);
    })?;
    let lines: String = paths.iter().map(|p| format!("{}\n", escape(&p.to_string_lossy()))).collect();
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
