//! Sizes read off the tensors of a model, for files that come without a `config.json`.
//!
//! Names are those of diffusers and transformers. What no tensor tells is taken from the published models: group norms
//! of 32 groups, 64 channels to an attention head, CLIP-L's and bigG's activations.

use crate::config_json::MAX_SIZE;
use crate::error::{Error, Result};
use crate::weights::Weights;
use std::collections::BTreeSet;

/// The tensors of one model, looked at for sizes.
pub(super) struct Probe<'a> {
    weights: &'a Weights,
    pub(super) names: BTreeSet<&'a str>,
    model: &'static str,
}

impl<'a> Probe<'a> {
    pub(super) fn new(weights: &'a Weights, model: &'static str) -> Self {
        Self { weights, names: weights.iter().map(|(n, _)| n).collect(), model }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The size of dimension `axis` of the tensor `name`, which must have `rank` dimensions.
    pub(super) fn dim(&self, name: &str, rank: usize, axis: usize) -> Result<usize> {
        let problem = match self.weights.get(name) {
            None => format!("{name} missing"),
            Some(weight) => match weight.shape().get(axis) {
                Some(&d) if weight.shape().len() == rank && (1..=MAX_SIZE).contains(&d) => return Ok(d),
                _ => format!("{name} is {:?}, expected {rank} dimensions", weight.shape()),
            },
        };
        Err(Error::Tensors {
            path: self.weights.path().to_owned(),
            model: self.model.to_owned(),
            problems: vec![problem],
        })
    }

    /// Counts `{prefix}0.`, `{prefix}1.`, ... up to the first that is missing.
    pub(super) fn count(&self, prefix: &str) -> usize {
        let any = |i: usize| {
            let start = format!("{prefix}{i}.");
            self.names.range(start.as_str()..).next().is_some_and(|n| n.starts_with(&start))
        };
        (0..).take_while(|&i| any(i)).count()
    }

    pub(super) fn mismatch<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Error::mismatch(self.weights.path(), what))
    }
}
