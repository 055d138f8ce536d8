//! Synthetic weights that no file holds.

use super::{Stored, TensorSpec};
use crate::error::Result;
use crate::memory;
use crate::parallel;
use crate::weights::{MappedBytes, Weight, Weights};
use std::path::Path;
use std::sync::Arc;

/// Elements that a thread makes at a time.
const BLOCK: usize = 1 << 18;

/// The float tensors with the very values that [`super::write_safetensors`] would write, each in memory of its own;
/// integers are left out, as the readers leave them out. `name` is what errors give instead of a file's path.
///
/// # Errors
/// [`crate::Error::Memory`] where they do not fit; [`crate::Error::Malformed`] where a name occurs twice or a size
/// overflows.
pub fn in_memory(name: &str, tensors: &[TensorSpec]) -> Result<Weights> {
    let path = Path::new(name);
    let mut weights = Weights::new(path);
    for tensor in tensors {
        tensor.checked_len(path)?;
    }
    let bytes = tensors.iter().filter_map(TensorSpec::bytes).fold(0u64, |sum, n| sum.saturating_add(n as u64));
    memory::require("making weights", bytes, || "take a smaller model, or write one to disk and map it".into())?;
    for tensor in tensors {
        let (Stored::Float(dtype), size) = (tensor.dtype, tensor.dtype.size()) else { continue };
        let mut bytes = vec![0; tensor.bytes().unwrap_or_default()];
        let blocks = bytes.chunks_mut(BLOCK * size).enumerate();
        parallel::for_each(usize::MAX, blocks, |(i, block)| tensor.fill(i * BLOCK, block));
        let storage = Arc::new(MappedBytes::owned(bytes));
        if let Some(weight) = Weight::new(storage, 0, dtype, tensor.shape.clone(), tensor.name.as_str()) {
            weights.insert(tensor.name.as_str(), weight)?;
        }
    }
    Ok(weights)
}

#[cfg(test)]
mod tests {
    use super::super::{Sizes, write_safetensors};
    use super::*;
    use crate::tensor::DType;
    use crate::weights::{OpenOptions, open};
    use std::collections::BTreeMap;

    #[test]
    fn parity_with_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        // Markers, integers and a tensor of several blocks are among them.
        let tensors = Sizes::small().checkpoint();
        write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
        let (file, made) = (open(&path, &OpenOptions::default()).unwrap(), in_memory("m", &tensors).unwrap());
        assert_eq!((file.len(), made.len()), (tensors.len() - 1, tensors.len() - 1));
        for ((name, a), (other, b)) in file.iter().zip(made.iter()) {
            assert!(name == other && a.shape() == b.shape() && a.dtype() == b.dtype(), "{name}");
            assert!(a.bytes() == b.bytes(), "{name}");
        }
        assert_eq!(made.path(), Path::new("m"));
    }

    #[test]
    fn impossible_models() {
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            dtype: Stored::Float(DType::F16),
            scale: 1.0,
            offset: 0.0,
            seed: 1,
        };
        let text = in_memory("synthetic:x", &[spec("a", &[2]), spec("a", &[2])]).unwrap_err().to_string();
        assert!(text.contains("synthetic:x") && text.contains("twice"), "{text}");
        in_memory("m", &[spec("a", &[usize::MAX, 2])]).unwrap_err();
        if memory::available().is_some() {
            let large = [spec("a", &[1 << 39]), spec("b", &[1 << 39])];
            let text = in_memory("m", &large).unwrap_err().to_string();
            assert!(text.contains("making weights"), "{text}");
        }
        assert_eq!(in_memory("m", &[spec("a", &[0])]).unwrap().len(), 1);
    }
}
