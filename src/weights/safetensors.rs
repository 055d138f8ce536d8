//! Safetensors files: <https://github.com/huggingface/safetensors#format>.
//!
//! A file is a header length (u64, little-endian), a JSON header and the tensors' bytes. The `safetensors` crate gives
//! the element types; the header is read here, because an error has to name the tensor, the expected and the found, a
//! name that is there twice must not be hidden, and a hostile header must not cost more than a few times its size.

use super::contents::quoted;
pub use super::format::MAX_HEADER;
use super::format::foreign;
use super::fp8;
use super::mmap::MappedBytes;
use super::weight::{Weight, Weights};
use crate::error::{Error, Result};
use crate::tensor::{DType, elements};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

const MAX_RANK: usize = 8;

/// Reads the tensors of a safetensors file, as views into `storage`. F8_E4M3 and F8_E5M2 are widened to F16 in memory, times their
/// scales where there are any;
/// tensors of integers, booleans and other floats are [`Weights::skipped`].
///
/// `path` is what errors name.
///
/// # Errors
/// [`Error::Malformed`] where the file is not a sound one.
pub fn read(storage: Arc<MappedBytes>, path: &Path) -> Result<Weights> {
    let (Header { tensors, metadata }, start) = header(storage.bytes(), path)?;
    check(&tensors, storage.len() - start, path)?;
    let mut weights = Weights::new(path);
    weights.set_metadata(metadata);
    let scales = Scales::new(&storage, start, &tensors);
    for (name, info) in tensors.into_iter().filter(|(name, _)| !scales.read.contains(name)) {
        let weight = match (info.dtype, scales.values.get(&name)) {
            (Dtype::F32 | Dtype::F16 | Dtype::BF16, _) => info.floats(&storage, start, &name),
            (dtype, Some(scale)) => {
                let (begin, end) = info.data_offsets;
                let bytes = storage.bytes().get(start + begin..start + end).unwrap_or_default();
                let wide = Arc::new(MappedBytes::owned(fp8::widened(bytes, dtype, scale)));
                Weight::new(wide, 0, DType::F16, info.shape, name.as_str())
            }
            (other, None) => {
                weights.skip(name, other.to_string())?;
                continue;
            }
        };
        let weight = weight
            .ok_or_else(|| Error::malformed(path, format!("tensor {} does not lie inside the file", quoted(&name))))?;
        weights.insert(name, weight)?;
    }
    Ok(weights)
}

/// Reads the `__metadata__` of a safetensors file, such as the `modelspec.*` fields and training parameters; often
/// empty.
///
/// # Errors
/// Those of [`read`] that concern the header.
pub fn metadata(storage: &MappedBytes, path: &Path) -> Result<BTreeMap<String, String>> {
    Ok(header(storage.bytes(), path)?.0.metadata)
}

/// The scales of the file's floats of 8 bits, by the names of these, and the names of all scales that need no further reader.
struct Scales {
    values: BTreeMap<String, Vec<f32>>,
    read: BTreeSet<String>,
}

impl Scales {
    /// Finds a scale for each tensor of 8-bit floats: of one value, or of one for each row. A tensor is left out, and so cannot be
    /// read, where its scale has another form, or where others have scales and it has none; in ComfyUI's files, which say
    /// `scaled_fp8`, it has 1 then.
    fn new(storage: &Arc<MappedBytes>, start: usize, tensors: &BTreeMap<String, Info>) -> Self {
        let mut scales = Self { values: BTreeMap::new(), read: BTreeSet::new() };
        let plain = tensors.contains_key("scaled_fp8") || !tensors.keys().any(|name| fp8::is_scale(name));
        for (name, info) in tensors.iter().filter(|(_, info)| fp8::is_fp8(info.dtype)) {
            let beside = fp8::scale_names(name).into_iter().flatten().find(|scale| tensors.contains_key(scale));
            let values = match &beside {
                None => (plain || info.shape.len() < 2).then(|| vec![1.0]),
                Some(scale) => {
                    let read =
                        tensors.get(scale).and_then(|info| info.floats(storage, start, scale)).map(|w| w.to_f32());
                    read.filter(|values| values.len() == 1 || Some(&values.len()) == info.shape.first())
                }
            };
            if let Some(values) = values {
                scales.values.insert(name.clone(), values);
                scales.read.extend(beside);
                scales.read.extend(fp8::input_scale_names(name).into_iter().flatten());
            }
        }
        if !scales.read.is_empty() {
            scales.read.insert("scaled_fp8".into());
        }
        scales
    }
}

/// Parses the header; the offset is that of the first byte behind it.
fn header(bytes: &[u8], path: &Path) -> Result<(Header, usize)> {
    let fail = |what: String| Error::malformed(path, what);
    if let Some(what) = foreign(bytes) {
        return Err(fail(what.into()));
    }
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(fail(format!(
            "the file has {} bytes, fewer than the 8 with which a safetensors file begins; fetch it again",
            bytes.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER as u64 {
        return Err(fail(format!(
            "the header length is {length}, more than the {MAX_HEADER} bytes allowed; not a safetensors file or a damaged one"
        )));
    }
    let end = 8 + usize::try_from(length).unwrap_or(usize::MAX - 8);
    let Some(json) = bytes.get(8..end) else {
        return Err(fail(truncated(end - bytes.len(), end, bytes.len())));
    };
    let json = std::str::from_utf8(json)
        .map_err(|e| fail(format!("the header is not UTF-8 at byte {}; fetch the file again", 8 + e.valid_up_to())))?;
    let header = serde_json::from_str(json).map_err(|e| fail(format!("the header is not valid: {e}")))?;
    Ok((header, end))
}

fn truncated(missing: usize, expected: usize, found: usize) -> String {
    format!("truncated: {missing} bytes are missing (expected {expected}, found {found}); fetch the file again")
}

/// Checks that each tensor has the bytes which its shape needs, and that together they fill the `have` bytes exactly.
fn check(tensors: &BTreeMap<String, Info>, have: usize, path: &Path) -> Result<()> {
    let fail = |what: String| Err(Error::malformed(path, what));
    let mut order: Vec<(usize, usize, &str)> = Vec::with_capacity(tensors.len());
    for (name, Info { dtype, shape, data_offsets: (begin, end) }) in tensors {
        let shown = quoted(name);
        let Some(bits) = elements(shape).and_then(|n| n.checked_mul(dtype.bitsize())) else {
            return fail(format!("tensor {shown}: the number of elements overflows, shape {:?}", shape));
        };
        if begin > end {
            return fail(format!("tensor {shown} ends at byte {end}, before its begin at {begin}"));
        }
        if bits % 8 != 0 || end - begin != bits / 8 {
            return fail(format!(
                "tensor {shown}: {dtype} {:?} needs {} bytes, its offsets {begin}..{end} give {}",
                shape,
                bits.div_ceil(8),
                end - begin
            ));
        }
        order.push((*begin, *end, name));
    }
    order.sort_unstable();
    let (mut filled, mut before) = (0, "");
    for (begin, end, name) in order {
        if begin < filled {
            let (name, before) = (quoted(name), quoted(before));
            return fail(format!("tensor {name} begins at byte {begin} and overlaps {before}, which ends at {filled}"));
        }
        if begin > filled {
            let hole = begin - filled;
            return fail(format!("a hole of {hole} bytes before tensor {} at byte {begin}", quoted(name)));
        }
        (filled, before) = (end, name);
    }
    match filled.checked_sub(have) {
        Some(0) => Ok(()),
        Some(missing) => fail(truncated(missing, filled, have) + "; sizes are those of the data behind the header"),
        None => fail(format!("{} extra bytes after the last tensor; fetch the file again", have - filled)),
    }
}

#[derive(Deserialize)]
struct Info {
    dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Info {
    /// A view of the tensor, where it is of floats that need no widening and lies inside the file.
    fn floats(&self, storage: &Arc<MappedBytes>, start: usize, name: &str) -> Option<Weight> {
        let dtype = match self.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => return None,
        };
        Weight::new(storage.clone(), start + self.data_offsets.0, dtype, self.shape.clone(), name)
    }
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    deserializer.deserialize_seq(ShapeVisitor)
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an array of at most {MAX_RANK} sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(size) = seq.next_element()? {
            if shape.len() == MAX_RANK {
                return Err(A::Error::custom(format!("a shape of more than {MAX_RANK} dimensions")));
            }
            shape.push(size);
        }
        Ok(shape)
    }
}

#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Info>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A visitor that, unlike a map's own, refuses a name that is there twice and names the tensor of an error.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut described = false;
        while let Some(name) = map.next_key::<String>()? {
            let twice = if name == "__metadata__" {
                header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                std::mem::replace(&mut described, true)
            } else {
                let info = map.next_value().map_err(|e| A::Error::custom(format!("tensor {}: {e}", quoted(&name))))?;
                header.tensors.insert(name.clone(), info).is_some()
            };
            if twice {
                return Err(A::Error::custom(format!("the name {} is there twice", quoted(&name))));
            }
        }
        Ok(header)
    }
}
