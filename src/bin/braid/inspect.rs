//! `braid inspect`.

use crate::args::{Failure, unexpected, usage};
use crate::{Outcome, help, terminal};
use braid::error::{Result, escape};
use braid::inspect::{FileReport, inspect};
use braid::models::clip::ClipVisionConfig;
use braid::models::compatibility;
use braid::models::ip_adapter::AdapterConfig;
use braid::models::unet::UnetConfig;
use braid::weights::detect::{AdapterKind, ModelFamily, detect};
use braid::weights::{OpenOptions, Weights, adapter, open, single_file};
use std::path::{Path, PathBuf};

pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let (mut json, mut paths) = (false, Vec::<PathBuf>::new());
    while let Some(arg) = parser.next().map_err(usage)? {
        match arg {
            lexopt::Arg::Short('h') | lexopt::Arg::Long("help") => return help::print(help::INSPECT),
            lexopt::Arg::Long("json") => json = true,
            lexopt::Arg::Value(path) => paths.push(path.into()),
            other => return Err(unexpected(other, "inspect")),
        }
    }
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
                terminal::line("braid: ", &crate::flags::text(&error));
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
    if !path.join("model_index.json").is_file() {
        let weights = open(path, &options)?;
        return Ok((inspect(path, &weights)?, weights));
    }
    let mut models = Vec::new();
    for name in ["unet", "text_encoder", "text_encoder_2", "vae", "image_encoder"] {
        let part = path.join(name);
        if part.is_dir() {
            models.push((name, open(&part, &options)?));
        }
    }
    let borrowed: Vec<_> = models.iter().map(|(name, weights)| (*name, weights)).collect();
    let report = FileReport::folder(path, &borrowed);
    let unet = models.into_iter().find(|(name, _)| *name == "unet").map(|(_, weights)| weights);
    Ok((report, unet.unwrap_or_else(|| Weights::new(path))))
}

/// Which adapters go with which of the models and image encoders given.
fn together(opened: &[(&Path, Weights)]) -> String {
    let mut text = String::new();
    for (a, adapter) in opened {
        if !matches!(detect(adapter), ModelFamily::Adapter(AdapterKind::Base)) {
            continue;
        }
        let Ok(config) = adapter::base(adapter).and_then(|base| AdapterConfig::from_tensors(&base)) else { continue };
        for (b, other) in opened.iter().filter(|(b, _)| b != a) {
            let unet = |unet: &Weights| {
                UnetConfig::from_tensors(unet, None)
                    .map(|unet| compatibility::adapter_with_unet((a, &config), (b, &unet)))
            };
            let result = match detect(other) {
                ModelFamily::Sdxl => single_file::split(other).and_then(|parts| unet(&parts.unet)),
                ModelFamily::DiffusersSdxlUnet => unet(other),
                ModelFamily::VisionEncoder => ClipVisionConfig::from_tensors(other)
                    .map(|encoder| compatibility::adapter_with_image_encoder((a, &config), (b, &encoder))),
                _ => continue,
            };
            let (a, b) = (escape(&a.to_string_lossy()), escape(&b.to_string_lossy()));
            match result {
                Ok(Ok(())) => text.push_str(&format!("{a} fits {b}\n")),
                Ok(Err(why)) | Err(why) => text.push_str(&format!("{a} does not fit {b}: {why}\n")),
            }
        }
    }
    text
}
