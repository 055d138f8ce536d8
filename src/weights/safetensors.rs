//! Safetensors files: <https://github.com/huggingface/safetensors#format>.
//!
//! A file is a header length (u64, little-endian), a JSON header and the tensors' bytes. The `safetensors` crate gives
//! the element types; the header is read here, because an error has to name the tensor, the expected and the found, a
//! name that is there twice must not be hidden, and a hostile header must not cost more than a few times its size.

use super::contents::quoted;
use super::detect::is_fp8_scale;
pub use super::format::MAX_HEADER;
use super::format::foreign;
use super::mmap::MappedBytes;
use super::weight::{Weight, Weights};
use crate::error::{Error, Result};
use crate::tensor::{DType, elements};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const MAX_RANK: usize = 8;

/// Reads the tensors of a safetensors file, as views into `storage`. F8_E4M3 is widened to F16 in memory, without loss;
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
    // Values beside a scale are no values yet.
    let scaled = tensors.keys().any(|name| is_fp8_scale(name));
    for (name, info) in tensors {
        let at = start + info.data_offsets.0;
        let weight = match info.dtype {
            Dtype::F32 => Weight::new(storage.clone(), at, DType::F32, info.shape, name.as_str()),
            Dtype::F16 => Weight::new(storage.clone(), at, DType::F16, info.shape, name.as_str()),
            Dtype::BF16 => Weight::new(storage.clone(), at, DType::BF16, info.shape, name.as_str()),
            Dtype::F8_E4M3 if !scaled => {
                let bytes = storage.bytes().get(at..start + info.data_offsets.1).unwrap_or_default();
                let wide = Arc::new(MappedBytes::owned(widened(bytes)));
                Weight::new(wide, 0, DType::F16, info.shape, name.as_str())
            }
            other => {
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

/// Widens F8_E4M3 (the finite kind, OCP E4M3FN) to the bytes of F16, which has every one of its values.
fn widened(bytes: &[u8]) -> Vec<u8> {
    let table: Vec<[u8; 2]> = (0..=255).map(|byte| half::f16::from_f32(e4m3(byte)).to_le_bytes()).collect();
    bytes.iter().flat_map(|&byte| table[usize::from(byte)]).collect()
}

fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
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
