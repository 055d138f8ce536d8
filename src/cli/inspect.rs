//! `braid inspect`.

use super::failure::{Failure, Outcome};
use super::flag::{self, Flag, Group};
use super::flags::FlagNames;
use super::terminal;
use crate::error::{Result, escape};
use crate::inspect::{FileReport, inspect};
use crate::models::clip::ClipVisionConfig;
use crate::models::compatibility;
use crate::models::ip_adapter::AdapterConfig;
use crate::models::unet::UnetConfig;
use crate::presence::is_there;
use crate::weights::detect::{AdapterKind, ModelFamily, detect};
use crate::weights::lora::{Lora, LoraTargets};
use crate::weights::{OpenOptions, TensorTable, Weights, adapter, open, single_file};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The options of the command.
#[derive(Default)]
pub struct Options {
    json: bool,
    paths: Vec<PathBuf>,
}

const JSON: Flag<Options> = Flag {
    long: "--json",
    help: "one line of JSON for each file",
    set: |o, _| {
        o.json = true;
        Ok(())
    },
    ..Flag::NEW
};

const FLAGS: &[Group<Options>] = &[Group { title: None, flags: &[JSON], note: None }];

const ABOUT: &str = "\
Says what weight files are, what they hold, and what they go with.

Usage: braid inspect [--json] FILE...

  FILE is a .safetensors or .bin file, the index of a sharded one, a folder with weights
  or a diffusers folder. Of several files it also says which fit together.
";

/// `braid help inspect`.
pub fn help() -> String {
    format!("{ABOUT}\n{}", flag::help(FLAGS))
}

/// Runs the command.
pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let mut options = Options::default();
    let path = |options: &mut Options, path: OsString| {
        options.paths.push(path.into());
        Ok(())
    };
    if !flag::parse(&mut parser, FLAGS, "inspect", &mut options, path)? {
        return terminal::print(&help());
    }
    let Options { json, paths } = options;
    if paths.is_empty() {
        return Err(Failure::usage("inspect: a file or folder is needed"));
    }
    let (mut failed, mut opened) = (false, Vec::new());
    for path in &paths {
        match describe(path) {
            Ok((report, weights)) => {
                terminal::print(&if json { terminal::json(&report) } else { report.to_string() })?;
                opened.push((path.as_path(), weights));
            }
            Err(error) => {
                failed = true;
                terminal::line("braid: ", &error.message().describe(&FlagNames));
            }
        }
    }
    if !json {
        terminal::print(&together(&opened))?;
    }
    if failed { Err(Failure::Told(1)) } else { Ok(()) }
}

/// The report of a file or folder, with the tensors by which it is compared to others.
fn describe(path: &Path) -> Result<(FileReport, Weights)> {
    let options = OpenOptions::default();
    if !path.is_dir() || !is_there(&path.join("model_index.json"))? {
        let weights = open(path, &options)?;
        return Ok((inspect(path, &weights)?, weights));
    }
    let mut models = Vec::new();
    for name in ["unet", "text_encoder", "text_encoder_2", "vae", "image_encoder"] {
        let part = path.join(name);
        if is_there(&part)? {
            models.push((name, open(&part, &options)?));
        }
    }
    let borrowed: Vec<_> = models.iter().map(|(name, weights)| (*name, weights)).collect();
    let report = FileReport::folder(path, &borrowed);
    let unet = models.into_iter().find(|(name, _)| *name == "unet").map(|(_, weights)| weights);
    Ok((report, unet.unwrap_or_else(|| Weights::new(path))))
}

/// Lists which of the given adapters and LoRAs fit which models and image encoders.
fn together(opened: &[(&Path, Weights)]) -> String {
    let mut text = String::new();
    for (a, file) in opened {
        for (b, other) in opened.iter().filter(|(b, _)| b != a) {
            let fits = match detect(file) {
                ModelFamily::Adapter(AdapterKind::Base | AdapterKind::Plus) => adapter_fits((a, file), (b, other)),
                ModelFamily::Lora => lora_fits(file, other),
                _ => None,
            };
            let (a, b) = (escape(&a.to_string_lossy()), escape(&b.to_string_lossy()));
            match fits {
                None => {}
                Some(Ok(())) => text.push_str(&format!("{a} fits {b}\n")),
                Some(Err(why)) => text.push_str(&format!("{a} does not fit {b}: {why}\n")),
            }
        }
    }
    text
}

/// Whether an adapter fits a model or an image encoder; none for other files.
fn adapter_fits((a, file): (&Path, &Weights), (b, other): (&Path, &Weights)) -> Option<Result<()>> {
    let config = adapter::published(file).and_then(|found| AdapterConfig::from_tensors(&found)).ok()?;
    let unet = |unet: &Weights| {
        UnetConfig::from_tensors(unet, None).and_then(|unet| compatibility::adapter_with_unet((a, &config), (b, &unet)))
    };
    match detect(other) {
        ModelFamily::Sdxl | ModelFamily::SdxlInpaint => {
            Some(single_file::split(other).and_then(|parts| unet(&parts.unet)))
        }
        ModelFamily::DiffusersSdxlUnet => Some(unet(other)),
        ModelFamily::VisionEncoder => Some(
            ClipVisionConfig::from_tensors(other)
                .and_then(|encoder| compatibility::adapter_with_image_encoder((a, &config), (b, &encoder))),
        ),
        _ => None,
    }
}

/// Whether a LoRA fits a model; none for other files, and where it changes nothing but text encoders that are not in the file.
fn lora_fits(file: &Weights, other: &Weights) -> Option<Result<()>> {
    let table = |weights: &Weights| -> TensorTable {
        weights.iter().map(|(name, weight)| (name.to_owned(), weight.shape().to_vec())).collect()
    };
    let (tables, whole) = match detect(other) {
        ModelFamily::Sdxl | ModelFamily::SdxlInpaint => match single_file::split(other) {
            Ok(parts) => ([parts.unet, parts.text_encoder, parts.text_encoder_2].map(|part| table(&part)), true),
            Err(error) => return Some(Err(error)),
        },
        ModelFamily::DiffusersSdxlUnet => ([table(other), TensorTable::new(), TensorTable::new()], false),
        _ => return None,
    };
    let [unet, text, text_2] = &tables;
    match Lora::examine(file, &LoraTargets::new(unet, [text, text_2])) {
        Ok(found) if !whole && found.is_elsewhere() => None,
        found => Some(found.and_then(|found| found.fitting(file.path())).map(drop)),
    }
}
