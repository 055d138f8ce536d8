//! Tensors in files, and sets of them by name.

use super::mmap::MappedBytes;
use crate::error::{Error, Result};
use crate::tensor::{DType, elements};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A read-only view of a tensor in a file: cheap to clone, slice and transpose.
///
/// The elements are little-endian and need **not** be aligned to their size.
#[derive(Debug, Clone)]
pub struct Weight {
    storage: Arc<MappedBytes>,
    offset: usize,
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<usize>,
    name: Arc<str>,
}

impl Weight {
    /// A contiguous tensor of `shape` that begins `offset` bytes into `storage`; `None` where it does not lie inside.
    pub fn new(
        storage: Arc<MappedBytes>,
        offset: usize,
        dtype: DType,
        shape: Vec<usize>,
        name: impl Into<Arc<str>>,
    ) -> Option<Self> {
        let mut strides = vec![1usize; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i].checked_mul(shape[i])?;
        }
        Self::strided(storage, offset, dtype, shape, strides, name)
    }

    /// A tensor as of [`Weight::new`], with strides counted in elements.
    pub fn strided(
        storage: Arc<MappedBytes>,
        offset: usize,
        dtype: DType,
        shape: Vec<usize>,
        strides: Vec<usize>,
        name: impl Into<Arc<str>>,
    ) -> Option<Self> {
        let weight = Self { storage, offset, dtype, shape, strides, name: name.into() };
        let end = weight.checked_span()?.checked_mul(dtype.size())?.checked_add(offset)?;
        (weight.shape.len() == weight.strides.len() && end <= weight.storage.len()).then_some(weight)
    }

    /// A tensor in memory.
    pub fn from_f32(values: &[f32], shape: &[usize], name: &str) -> Option<Self> {
        if elements(shape)? != values.len() {
            return None;
        }
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(Arc::new(MappedBytes::owned(bytes)), 0, DType::F32, shape.to_vec(), name)
    }

    /// A stand-in without data for a tensor that is missing; reading it gives no bytes.
    pub(crate) fn absent(shape: &[usize], name: impl Into<Arc<str>>) -> Self {
        let storage = Arc::new(MappedBytes::owned(Vec::new()));
        Self {
            storage,
            offset: 0,
            dtype: DType::F32,
            strides: vec![0; shape.len()],
            shape: shape.to_vec(),
            name: name.into(),
        }
    }

    /// The name under which the file stores it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The memory that its bytes are in, and where they begin there.
    pub(crate) fn location(&self) -> (&Arc<MappedBytes>, usize) {
        (&self.storage, self.offset)
    }

    /// The element type in the file.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The strides in elements, one for each dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes from the first element to the last, in the file's element type; element `[i, j, ..]` begins at byte
    /// `(i * strides[0] + j * strides[1] + ..) * dtype.size()`.
    pub fn bytes(&self) -> &[u8] {
        let span = self.checked_span().unwrap_or(0) * self.dtype.size();
        self.storage.bytes().get(self.offset..self.offset + span).unwrap_or_default()
    }

    /// Counts the elements from the first to the last one, holes included.
    fn checked_span(&self) -> Option<usize> {
        if elements(&self.shape)? == 0 {
            return Some(0);
        }
        self.shape.iter().zip(&self.strides).try_fold(1usize, |n, (&d, &s)| n.checked_add((d - 1).checked_mul(s)?))
    }

    /// Whether the elements lie in row-major order without holes.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&d, &s) in self.shape.iter().zip(&self.strides).rev() {
            if d != 1 && s != expected {
                return false;
            }
            expected *= d;
        }
        true
    }

    /// A view of the rows `start..start + count` of the first dimension; `None` where they do not exist.
    pub fn rows(&self, start: usize, count: usize) -> Option<Self> {
        if start.checked_add(count)? > *self.shape.first()? {
            return None;
        }
        let mut view = self.clone();
        view.shape[0] = count;
        view.offset += start * self.strides[0] * self.dtype.size();
        Some(view)
    }

    /// The transpose of a matrix; `None` for other ranks.
    pub fn transposed(&self) -> Option<Self> {
        let mut view = self.clone();
        view.shape.reverse();
        view.strides.reverse();
        (self.shape.len() == 2).then_some(view)
    }

    /// The same elements under another shape; `None` where the counts differ or the view is not contiguous.
    pub fn reshaped(&self, shape: &[usize]) -> Option<Self> {
        if !self.is_contiguous() || elements(shape)? != self.len() {
            return None;
        }
        Self::new(self.storage.clone(), self.offset, self.dtype, shape.to_vec(), self.name.clone())
    }

    /// The same view under another name.
    pub fn renamed(&self, name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), ..self.clone() }
    }

    /// Converts all elements to f32 in row-major order; for small tensors such as biases.
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = self.bytes();
        if bytes.is_empty() {
            return vec![0.0; self.len()];
        }
        let mut out = Vec::with_capacity(self.len());
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..self.len() {
            let at = index.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>() * self.dtype.size();
            out.push(match self.dtype {
                DType::F32 => f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]),
                DType::F16 => half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
                DType::BF16 => half::bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32(),
            });
            for d in (0..index.len()).rev() {
                index[d] += 1;
                if index[d] < self.shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        out
    }
}

/// The tensors of one model, by name.
#[derive(Debug, Clone, Default)]
pub struct Weights {
    path: PathBuf,
    tensors: BTreeMap<String, Weight>,
    /// The element types of tensors that no model can read, by name.
    skipped: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
}

impl Weights {
    /// An empty set; `path` is the file or folder that errors name.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// The file or folder that these tensors come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the name is taken.
    pub fn insert(&mut self, name: impl Into<String>, weight: Weight) -> Result<()> {
        let name = name.into();
        self.demand_new(&name)?;
        self.tensors.insert(name, weight);
        Ok(())
    }

    /// Notes that the file has a tensor of this name, of an element type that no model here reads.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub(crate) fn skip(&mut self, name: impl Into<String>, dtype: impl Into<String>) -> Result<()> {
        let name = name.into();
        self.demand_new(&name)?;
        self.skipped.insert(name, dtype.into());
        Ok(())
    }

    fn demand_new(&self, name: &str) -> Result<()> {
        if self.contains(name) {
            return Err(Error::malformed(&self.path, format!("tensor `{name}` is there twice")));
        }
        Ok(())
    }

    /// Whether the file has a tensor of this name, whatever its type.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.skipped.contains_key(name)
    }

    /// Iterates over the names of all tensors that the file has, whatever their type.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().chain(self.skipped.keys()).map(String::as_str)
    }

    /// Iterates over the tensors of element types that no model here reads: integers, booleans, F64 and its kin; name
    /// and type.
    pub fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.skipped.iter().map(|(n, dtype)| (n.as_str(), dtype.as_str()))
    }

    /// The type of a tensor that [`Self::skipped`] has.
    pub(crate) fn skipped_type(&self, name: &str) -> Option<&str> {
        self.skipped.get(name).map(String::as_str)
    }

    /// The `__metadata__` of a safetensors file, such as the `modelspec.*` fields; empty for other files.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    pub(crate) fn set_metadata(&mut self, metadata: BTreeMap<String, String>) {
        self.metadata = metadata;
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Weight> {
        self.tensors.get(name)
    }

    /// Iterates over all tensors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.tensors.iter().map(|(n, w)| (n.as_str(), w))
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensors whose names begin with `prefix`, with it removed.
    pub fn under(&self, prefix: &str) -> Self {
        Self {
            path: self.path.clone(),
            tensors: under(&self.tensors, prefix),
            skipped: under(&self.skipped, prefix),
            metadata: self.metadata.clone(),
        }
    }
}

#[cfg(test)]
impl Weights {
    /// Tensors of these names and shapes without data.
    pub(crate) fn absent(path: &str, tensors: &[(&str, &[usize])]) -> Self {
        let mut weights = Self::new(path);
        for (name, shape) in tensors {
            weights.insert(*name, Weight::absent(shape, *name)).unwrap();
        }
        weights
    }
}

fn under<T: Clone>(map: &BTreeMap<String, T>, prefix: &str) -> BTreeMap<String, T> {
    map.range(prefix.to_owned()..)
        .take_while(|(n, _)| n.starts_with(prefix))
        .map(|(n, value)| (n[prefix.len()..].to_owned(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> Weight {
        Weight::from_f32(&[0., 1., 2., 3., 4., 5.], &[2, 3], "m").unwrap()
    }

    #[test]
    fn views() {
        let m = matrix();
        assert_eq!(m.rows(1, 1).unwrap().to_f32(), [3., 4., 5.]);
        let t = m.transposed().unwrap();
        assert_eq!(t.to_f32(), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(t.bytes().len(), 24);
        assert!(!t.is_contiguous() && t.reshaped(&[6]).is_none());
        assert_eq!(m.reshaped(&[3, 2]).unwrap().strides(), [2, 1]);
        assert!(m.rows(1, 2).is_none() && m.reshaped(&[4]).is_none());
    }

    #[test]
    fn outside_the_storage() {
        let storage = Arc::new(MappedBytes::owned(vec![0; 10]));
        assert!(Weight::new(storage.clone(), 0, DType::F32, vec![3], "x").is_none());
        assert!(Weight::new(storage.clone(), 3, DType::F16, vec![3], "x").is_some());
        assert!(Weight::new(storage, 0, DType::F16, vec![usize::MAX, 2], "x").is_none());
    }
}
