//! Torch files (`.bin`, `.pt`, `.ckpt`) as `torch.save` writes them since torch 1.6.
//!
//! Such a file is a zip archive of stored entries: `NAME/data.pkl`, a pickle that describes the tensors, and
//! `NAME/data/KEY` with the bytes of each storage. A pickle is a program. The reader here knows the few
//! instructions and the few names that tensors need, refuses all else, and executes nothing.

mod names;
mod pickle;
mod zip;

use super::contents::quoted;
use super::format::{FileFormat, foreign, sniff};
use super::mmap::MappedBytes;
use super::weight::{Weight, Weights};
use crate::error::{Error, Result};
use crate::tensor::elements;
use names::ElementClass;
use pickle::PickledTensor;
use std::path::Path;
use std::sync::Arc;
use zip::Archive;

/// The greatest size of a `data.pkl` in bytes; that of a full SDXL checkpoint has less than one million.
const MAX_PICKLE: usize = 16 << 20;
/// The dictionary in which Lightning and others put the tensors.
const STATE_DICT: &str = "state_dict.";

/// Reads the float tensors of a torch file, as views into `storage`; tensors of other types are [`Weights::skipped`].
///
/// Nested dictionaries are joined by dots: `{"ip_adapter": {"1.to_k_ip.weight": ..}}` gives
/// `ip_adapter.1.to_k_ip.weight`. Where there is a dictionary `state_dict`, as Lightning writes it, its tensors are the
/// file's, as in diffusers. Values other than tensors and dictionaries are ignored. `path` is what errors name.
///
/// # Errors
/// [`Error::Malformed`] where the file is not a sound one or its pickle asks for anything but tensors.
pub fn read(storage: Arc<MappedBytes>, path: &Path) -> Result<Weights> {
    let fail = |what: String| Error::malformed(path, what);
    if let Some(what) = foreign(storage.bytes()) {
        return Err(fail(what.into()));
    }
    if sniff(&storage) != FileFormat::Torch {
        return Err(fail("not a zip archive, which is what torch.save writes; fetch the file again".into()));
    }
    let archive = Archive::parse(storage.bytes()).map_err(fail)?;
    let prefix = prefix(&archive).map_err(fail)?;
    let order = archive.get(&format!("{prefix}byteorder"));
    if order.is_some_and(|entry| archive.bytes(entry) != b"little") {
        return Err(fail("the tensors are not little-endian; save the file again on a little-endian machine".into()));
    }
    let name = format!("{prefix}data.pkl");
    let entry = archive.get(&name).ok_or_else(|| fail("no `data.pkl` in the archive; not a torch file".into()))?;
    if entry.size > MAX_PICKLE {
        return Err(fail(format!("`data.pkl` has {} bytes, more than the {MAX_PICKLE} allowed", entry.size)));
    }
    archive.verify(&name, entry).map_err(fail)?;
    let tensors = pickle::tensors(archive.bytes(entry)).map_err(|e| fail(format!("data.pkl: {e}")))?;

    let mut weights = Weights::new(path);
    for (name, tensor) in tensors {
        let start = place(&archive, prefix, &tensor).map_err(|e| fail(format!("tensor {}: {e}", quoted(&name))))?;
        let ElementClass::Float(dtype) = tensor.element.class else {
            weights.skip(name, tensor.element.name)?;
            continue;
        };
        let (shape, strides) = (tensor.shape.clone(), tensor.strides.clone());
        let weight = Weight::strided(storage.clone(), start, dtype, shape, strides, name.as_str());
        let weight = weight.ok_or_else(|| fail(format!("tensor {} lies outside the file", quoted(&name))))?;
        weights.insert(name, weight)?;
    }
    while weights.names().any(|name| name.starts_with(STATE_DICT)) {
        weights = weights.under(STATE_DICT);
    }
    Ok(weights)
}

/// Finds the part of the entries' names before `data.pkl`: the archive's name and a slash.
fn prefix<'a>(archive: &Archive<'a>) -> Result<&'a str, String> {
    let mut found =
        archive.names().filter_map(|n| n.strip_suffix("data.pkl")).filter(|p| p.is_empty() || p.ends_with('/'));
    match (found.next(), found.next()) {
        (Some(prefix), None) => Ok(prefix),
        (None, _) => Err("a zip archive without `data.pkl`; not a torch file".into()),
        (Some(a), Some(b)) => Err(format!("two data.pkl in the archive: in {} and {}", quoted(a), quoted(b))),
    }
}

/// Finds the offset in the file of the first element, after checking that all elements lie inside their storage.
fn place(archive: &Archive<'_>, prefix: &str, tensor: &PickledTensor<'_>) -> Result<usize, String> {
    let PickledTensor { element, key, count, offset, shape, strides } = tensor;
    let shown = quoted(key);
    let entry = archive
        .get(&format!("{prefix}data/{key}"))
        .ok_or_else(|| format!("its storage {shown} is not in the archive; fetch the file again"))?;
    if count.checked_mul(element.size) != Some(entry.size) {
        return Err(format!(
            "its storage {shown} should have {count} elements of {} ({} bytes each), the archive has {} bytes",
            element.name, element.size, entry.size
        ));
    }
    let empty = shape.contains(&0);
    // A stride of 0 repeats elements without end.
    if !empty && elements(shape).is_none_or(|elements| elements > *count) {
        return Err(format!(
            "shape {shape:?} has more elements than its storage, {count}; save the tensor as one that repeats none (`contiguous()`)"
        ));
    }
    let last =
        shape.iter().zip(strides).try_fold(*offset, |at, (&d, &s)| at.checked_add(d.checked_sub(1)?.checked_mul(s)?));
    if !empty && last.is_none_or(|last| last >= *count) {
        return Err(format!(
            "shape {shape:?} with strides {strides:?} from element {offset} reaches past its storage of {count} elements"
        ));
    }
    let skip = if empty { Some(0) } else { offset.checked_mul(element.size) };
    skip.and_then(|skip| entry.start.checked_add(skip)).ok_or_else(|| "its offset overflows".into())
}
