//! The safetensors format: eight bytes of header length, a JSON header, the data in one piece.

use super::{Stored, TensorSpec, file};
use crate::error::{Error, Result};
use crate::tensor::DType;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

/// Writes synthetic tensors as one safetensors file, in the order given; the data begin at a multiple of 8 bytes. The
/// file appears under its name when it is complete.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written; [`Error::Malformed`] where a name occurs twice or a size overflows.
pub fn write_safetensors(path: &Path, tensors: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Result<()> {
    let header = header(path, tensors, metadata)?;
    file::write(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io("write", path))?;
        out.write_all(&header).map_err(Error::io("write", path))?;
        let mut buffer = Vec::new();
        tensors.iter().try_for_each(|t| t.write(out, path, &mut buffer))
    })
}

/// The JSON header, padded to a multiple of 8 bytes.
pub(super) fn header(path: &Path, tensors: &[TensorSpec], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut map = Map::new();
    if !metadata.is_empty() {
        map.insert("__metadata__".into(), json!(metadata));
    }
    let (mut at, mut seen) = (0u64, BTreeSet::new());
    for tensor in tensors {
        if !seen.insert(&tensor.name) || tensor.name == "__metadata__" {
            return Err(Error::malformed(
                path,
                format!("tensor `{}` cannot be stored twice or under that name", tensor.name),
            ));
        }
        tensor.checked_len(path)?;
        let end = at + tensor.bytes().unwrap_or_default() as u64;
        let dtype = match tensor.dtype {
            Stored::Float(DType::F32) => "F32",
            Stored::Float(DType::F16) => "F16",
            Stored::Float(DType::BF16) => "BF16",
            Stored::Positions => "I64",
        };
        map.insert(tensor.name.clone(), json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let spec = |name: &str, shape: &[usize], dtype| TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            dtype,
            scale: 1.0,
            offset: 0.0,
            seed: 7,
        };
        let f32s = Stored::Float(DType::F32);
        // The second is above one parallel batch's block; the marker is empty.
        let tensors = [
            spec("z", &[3], Stored::Float(DType::F16)),
            spec("b", &[600, 1000], f32s),
            spec("v_pred", &[0], f32s),
            spec("ids", &[1, 77], Stored::Positions),
        ];
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_safetensors(&path, &tensors, &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (len, meta) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(len % 8, 0);
        assert_eq!(meta.metadata().as_ref().unwrap()["format"], "pt");
        let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let b = read.tensor("b").unwrap();
        assert_eq!(b.shape(), [600, 1000]);
        for i in [0, 1, 262_143, 262_144, 599_999] {
            let value = f32::from_le_bytes(b.data()[4 * i..4 * i + 4].try_into().unwrap());
            assert_eq!(value, tensors[1].value(i), "{i}");
        }
        assert_eq!(read.tensor("ids").unwrap().data()[76 * 8], 76);
        assert_eq!(read.len(), 4);
        write_safetensors(&path, &[tensors[0].clone(), tensors[0].clone()], &metadata).unwrap_err();
        let huge = spec("h", &[usize::MAX, 2], f32s);
        write_safetensors(&path, &[huge], &metadata).unwrap_err();
    }
}
