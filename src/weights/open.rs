//! Opening of weights: a file of either format, a set of shards or a component's folder.

use super::contents::quoted;
use super::format::{FileFormat, sniff};
use super::mmap::MappedBytes;
use super::weight::Weights;
use super::{safetensors, torch};
use crate::cancel;
use crate::error::{Error, Result};
use crate::presence::is_there;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use std::sync::Arc;

/// Options for opening weight files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOptions {
    /// Map files into memory (the default) instead of reading them whole. See [`MappedBytes`] for when not to.
    pub mmap: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { mmap: true }
    }
}

/// The files sought in a component's folder, best first.
const SOUGHT: [&str; 20] = [
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.fp16.safetensors.index.json",
    "model.fp16.safetensors.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "pytorch_model.fp16.bin",
    "diffusion_pytorch_model.fp16.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin.index.json",
    "pytorch_model.bin.index.fp16.json",
    "diffusion_pytorch_model.bin.index.fp16.json",
    "pytorch_model.fp16.bin.index.json",
    "diffusion_pytorch_model.fp16.bin.index.json",
];

/// Opens a safetensors or torch file (told apart by their first bytes, whatever the name), the shards of a
/// `*.safetensors.index.json`, or the weights in a component's folder of the diffusers or transformers layout.
///
/// # Errors
/// [`Error::Io`] where a file cannot be opened; [`Error::Malformed`] where one is damaged, or a shard or a tensor of an
/// index is missing; [`Error::Mismatch`] where a folder holds no weights or a tensor's type is not supported;
/// [`Error::Cancelled`].
pub fn open(path: &Path, options: &OpenOptions) -> Result<Weights> {
    let meta = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if meta.is_dir() {
        // A link whose target is missing counts as found, so that the error names it.
        for file in SOUGHT.iter().map(|name| path.join(name)) {
            if is_there(&file)? {
                return open_file(&file, options);
            }
        }
        return Err(no_weights(path));
    }
    open_file(path, options)
}

/// Makes the error for a folder without the files sought, which names a variant that is there instead.
fn no_weights(folder: &Path) -> Error {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut others: Vec<String> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| [".safetensors", ".bin"].iter().any(|end| name.ends_with(end)))
        .collect();
    others.sort();
    let sought = "sought diffusion_pytorch_model.safetensors, model.safetensors, their .fp16 variants and .index.json, \
                  then pytorch_model.bin, diffusion_pytorch_model.bin";
    let what = match others.first() {
        Some(other) => format!(
            "{} is there, which is none of the files sought; rename it or give the single file: {sought}",
            quoted(other)
        ),
        None => format!("no weights in this folder; {sought}"),
    };
    Error::mismatch(folder, what)
}

fn open_file(path: &Path, options: &OpenOptions) -> Result<Weights> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        return open_shards(path, options);
    }
    contents(path, options)
}

fn contents(path: &Path, options: &OpenOptions) -> Result<Weights> {
    cancel::check()?;
    let storage = Arc::new(if options.mmap { MappedBytes::map(path) } else { MappedBytes::read(path) }?);
    match sniff(&storage) {
        FileFormat::Safetensors => safetensors::read(storage, path),
        FileFormat::Torch => torch::read(storage, path),
        FileFormat::Foreign(what) => Err(Error::malformed(path, what)),
        FileFormat::Unknown if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) => {
            safetensors::read(storage, path)
        }
        FileFormat::Unknown => Err(Error::malformed(
            path,
            format!(
                "neither a safetensors nor a torch file: begins with bytes {:02x?}; fetch it again",
                &storage.bytes()[..storage.len().min(8)]
            ),
        )),
    }
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(path: &Path, options: &OpenOptions) -> Result<Weights> {
    let fail = |what: String| Error::malformed(path, what);
    let storage = MappedBytes::read(path)?;
    let index: Index =
        serde_json::from_slice(storage.bytes()).map_err(|e| fail(format!("not the index of a sharded model: {e}")))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut weights = Weights::new(path);
    for file in index.weight_map.values().collect::<BTreeSet<_>>() {
        let mut parts = Path::new(file).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(p)), None) if p == Path::new(file));
        if !plain || file.contains(['/', '\\', ':', '\0']) {
            return Err(fail(format!("the shard {} is not a plain file name; not opened", quoted(file))));
        }
        let shard = folder.join(file);
        if !is_there(&shard)? {
            let count = index.weight_map.values().filter(|f| *f == file).count();
            return Err(fail(format!("the shard {} with {count} tensors is missing; fetch it too", quoted(file))));
        }
        let contents = contents(&shard, options)?;
        if let Some((name, _)) = index.weight_map.iter().find(|(n, f)| *f == file && !contents.contains(n)) {
            let name = quoted(name);
            return Err(fail(format!("tensor {name} is listed in the shard {}, but is not there", quoted(file))));
        }
        for (name, weight) in contents.iter() {
            weights.insert(name, weight.clone())?;
        }
        contents.skipped().try_for_each(|(name, dtype)| weights.skip(name, dtype))?;
    }
    tracing::debug!(path = %path.display(), tensors = weights.len(), skipped = weights.skipped().count(), "opened shards");
    Ok(weights)
}
