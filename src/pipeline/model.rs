//! A model with its tensors, checked.

use crate::error::{Error, Result};
use crate::weights::{Scope, TensorTable, Weights, detect};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A model's sizes with its tensors.
pub(super) struct Model<C> {
    pub(super) config: C,
    pub(super) weights: Arc<Weights>,
    hash: OnceLock<u128>,
}

impl<C> Model<C> {
    /// Checks that every tensor is there with its shape. Tensors that nothing reads are dropped with a warning, a bias where
    /// the model declares none among them.
    pub(super) fn new(config: C, weights: Weights, name: &str, table: TensorTable, ignored: &[&str]) -> Result<Self> {
        let scope = Scope::new(weights.clone());
        for (name, shape) in &table {
            scope.get(name, shape);
        }
        let taken = scope.finish(name).map_err(|error| match detect::quantised(&weights) {
            Some(tool) => {
                let what = format!("the {name}'s weights are quantised ({tool}); F32, F16, BF16 or F8 is needed");
                Error::mismatch(weights.path(), what)
            }
            None => error,
        });
        let rest: Vec<String> = taken?.into_iter().filter(|n| !ignored.iter().any(|i| n.contains(i))).collect();
        if let Some(first) = rest.first() {
            let path = weights.path().display();
            tracing::warn!("{path}: {} tensor(s) are no part of the {name} and were not used: {first}, ..", rest.len());
        }
        let mut used = Weights::new(weights.path());
        for (name, _) in &table {
            if let Some(weight) = weights.get(name) {
                used.insert(name.as_str(), weight.clone())?;
            }
        }
        let weights = Arc::new(used);
        Ok(Self { config, weights, hash: OnceLock::new() })
    }

    /// The number of its parameters.
    pub(super) fn parameters(&self) -> u64 {
        self.weights.iter().map(|(_, weight)| weight.shape().iter().product::<usize>() as u64).sum()
    }

    /// [`Weights::hash`] of its weights, computed once.
    pub(super) fn hash(&self) -> u128 {
        *self.hash.get_or_init(|| self.weights.hash())
    }

    pub(super) fn path(&self) -> &Path {
        self.weights.path()
    }
}
