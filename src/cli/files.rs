//! Files that a command writes or reads besides the models.

use super::failure::Failure;
use crate::atomic_file::write_atomic;
use crate::error::{Error, Result, escape};
use crate::output::ImageFormat;
use crate::pipeline::HostTensor;
use crate::tensor::DType;
use crate::weights::{OpenOptions, open};
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

pub use crate::atomic_file::check_writable;

/// The extensions of the files in a model's folder; images may lie there, too.
const PARTS: [&str; 4] = ["safetensors", "bin", "json", "txt"];

/// The names of `count` images: the one asked for, or with its number before the extension.
pub fn numbered(output: &Path, count: usize) -> Vec<PathBuf> {
    if count == 1 {
        return vec![output.to_owned()];
    }
    let stem = output.file_stem().unwrap_or_default();
    let extension = output.extension().unwrap_or_default();
    let name = |i: usize| {
        let mut name = stem.to_owned();
        name.push(format!("-{i}."));
        name.push(extension);
        output.with_file_name(name)
    };
    (0..count).map(name).collect()
}

/// Checks, before any work is done, that an image can be written.
pub fn check_image(path: &Path) -> Result<(), Failure> {
    ImageFormat::of(path)?;
    check_writable(path)?;
    Ok(())
}

/// Checks that nothing that is written, under a flag, takes the place of a file that is read or of one in a folder that is read, by the
/// file itself and not by its name.
pub fn check_inputs_stay<'a, 'b>(
    written: impl IntoIterator<Item = (&'static str, &'a Path)>,
    read: impl IntoIterator<Item = &'b Path>,
) -> Result<(), Failure> {
    // Most often nothing is there yet, and the folders of the models need not be walked.
    let there = written.into_iter().filter_map(|(flag, output)| Some((flag, output, identity(output)?)));
    let there: Vec<_> = there.collect();
    if there.is_empty() {
        return Ok(());
    }
    let inputs: Vec<_> = read.into_iter().flat_map(|path| files_of(path, 2)).collect();
    for (flag, output, place) in there {
        if let Some((_, input)) = inputs.iter().find(|(input, _)| *input == place) {
            let (output, input) = (escape(&output.to_string_lossy()), escape(&input.to_string_lossy()));
            return Err(Failure::usage(format!("{flag}: {output} is read as {input}; name another file")));
        }
    }
    Ok(())
}

/// A regular file with its identity; of a folder those of a model's parts, folders so deep.
fn files_of(path: &Path, depth: usize) -> Vec<(Identity, PathBuf)> {
    let is_part =
        |path: &Path| path.is_dir() || path.extension().is_some_and(|end| PARTS.iter().any(|part| end == *part));
    match fs::read_dir(path) {
        Ok(entries) => {
            let parts = entries.flatten().map(|entry| entry.path()).filter(|path| depth > 0 && is_part(path));
            parts.flat_map(|path| files_of(&path, depth - 1)).collect()
        }
        _ => identity(path).map(|identity| (identity, path.to_owned())).into_iter().collect(),
    }
}

#[cfg(unix)]
type Identity = (u64, u64);

/// The device and the number of a regular file, which all of its names share.
#[cfg(unix)]
fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(not(unix))]
type Identity = PathBuf;

#[cfg(not(unix))]
fn identity(path: &Path) -> Option<Identity> {
    fs::canonicalize(path).ok().filter(|path| path.is_file())
}

/// The noise of a `--latents-in` file: `noise`, `[count, 4, H / f, W / f]` f32 for images of `width` by `height`.
pub fn read_noise(path: &Path, count: usize, (width, height): (usize, usize)) -> Result<Vec<f32>> {
    let weights = open(path, &OpenOptions { mmap: false })?;
    let fail = |what: String| Err(Error::mismatch(path, what));
    let Some(noise) = weights.get("noise") else {
        if let Some((_, dtype)) = weights.skipped().find(|(name, _)| *name == "noise") {
            return fail(format!("`noise` is of type {dtype}, --latents-in needs f32"));
        }
        let names: Vec<_> = weights.iter().take(4).map(|(n, _)| format!("`{n}`")).collect();
        return fail(format!("there is no tensor `noise`, which --latents-in needs; there are {}", names.join(", ")));
    };
    if noise.dtype() != DType::F32 {
        return fail(format!("`noise` is of type {}, --latents-in needs f32", noise.dtype()));
    }
    // How many pixels make a latent is the model's affair and checked there; here, that it is one number on both sides.
    let fits = match *noise.shape() {
        [n, 4, h, w] if h > 0 && w > 0 => {
            n == count && height % h == 0 && width % w == 0 && height / h == width / w && (height / h).is_power_of_two()
        }
        _ => false,
    };
    if !fits {
        let (h, w) = (height / 8, width / 8);
        return fail(format!("`noise` is {:?}, --latents-in needs [{count}, 4, {h}, {w}]", noise.shape()));
    }
    let values = noise.to_f32();
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => fail(format!("`noise` holds {} at element {at}; finite numbers are needed", values[at])),
        None => Ok(values),
    }
}

/// Writes every stage as f32 safetensors.
pub fn write_stages(path: &Path, stages: &BTreeMap<String, HostTensor>) -> Result<()> {
    let wrong = |e: safetensors::SafeTensorError| Error::malformed(path, e.to_string());
    let mut views = Vec::new();
    for (name, tensor) in stages {
        let bytes = bytemuck::cast_slice(&tensor.data);
        let view = TensorView::new(safetensors::Dtype::F32, tensor.shape.clone(), bytes).map_err(wrong)?;
        views.push((name.as_str(), view));
    }
    let bytes = safetensors::serialize(views, None).map_err(wrong)?;
    write_atomic(path, |file| file.write_all(&bytes))
}
