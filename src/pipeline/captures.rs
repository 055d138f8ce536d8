//! The intermediate results that a request captures.

use super::request::HostTensor;
use std::collections::BTreeMap;

/// Captured tensors by their names; nothing where none are asked for.
pub(super) struct Captures {
    enabled: bool,
    tensors: BTreeMap<String, HostTensor>,
}

impl Captures {
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled, tensors: BTreeMap::new() }
    }

    /// Whether anything is captured.
    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    /// Captures a tensor; rows of one name follow one another. Adapters of different widths cannot: of their embeddings the first
    /// width is kept.
    pub(super) fn add(&mut self, name: &str, shape: &[usize], data: impl FnOnce() -> Vec<f32>) {
        if self.enabled {
            let mut data = data();
            let tensor = self.tensors.entry(name.to_owned()).or_insert_with(|| HostTensor {
                shape: std::iter::once(0).chain(shape[1..].iter().copied()).collect(),
                data: Vec::new(),
            });
            if tensor.shape[1..] == shape[1..] {
                tensor.shape[0] += shape[0];
                tensor.data.append(&mut data);
            }
        }
    }

    /// The tensors by their names.
    pub(super) fn into_tensors(self) -> BTreeMap<String, HostTensor> {
        self.tensors
    }
}
