//! A place within a checkpoint's dotted names, from which a model takes its tensors.

use super::lora::{LoraSet, LowRank};
use super::weight::{Weight, Weights};
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

/// Names and shapes of tensors.
pub type TensorTable = Vec<(String, Vec<usize>)>;

/// A prefix of dotted names over a set of [`Weights`], or over none.
///
/// Scopes made from one another by [`Scope::pp`] share one record of what was taken and of what did not fit. A model
/// takes all it needs and then asks [`Scope::finish`] once, so that an error lists every tensor in one go.
///
/// A [`Scope::recording`] has no weights behind it: a model that is built over it tells the tensors that it needs.
#[derive(Debug, Clone)]
pub struct Scope {
    /// None while recording.
    weights: Option<Arc<Weights>>,
    prefix: String,
    record: Arc<Mutex<Record>>,
    /// The low-rank updates of the weights.
    loras: Option<Arc<LoraSet>>,
    /// Says of a layer's path whether its weights may be quantized.
    quantizable: fn(&str) -> bool,
}

#[derive(Debug, Default)]
struct Record {
    taken: BTreeSet<String>,
    /// Filled while recording, in the order of the takings.
    declared: TensorTable,
    problems: Vec<String>,
}

impl Scope {
    /// The root of `weights`.
    pub fn new(weights: impl Into<Arc<Weights>>) -> Self {
        Self {
            weights: Some(weights.into()),
            prefix: String::new(),
            record: Arc::default(),
            loras: None,
            quantizable: |_| false,
        }
    }

    /// A root without weights: it hands out stand-ins without data and records their names and shapes.
    pub fn recording() -> Self {
        Self { weights: None, prefix: String::new(), record: Arc::default(), loras: None, quantizable: |_| false }
    }

    /// The same with low-rank updates of the weights.
    #[must_use]
    pub fn with_loras(self, loras: Arc<LoraSet>) -> Self {
        Self { loras: Some(loras), ..self }
    }

    /// The same with layers whose weights may be quantized: those of whose paths this says so. Before, none may.
    #[must_use]
    pub fn with_quantizable(self, quantizable: fn(&str) -> bool) -> Self {
        Self { quantizable, ..self }
    }

    /// Whether the weights of the layer here may be quantized.
    pub fn is_quantizable(&self) -> bool {
        (self.quantizable)(&self.prefix)
    }

    /// The low-rank updates of the `weight` here, where there are any.
    pub fn low_rank(&self) -> Option<LowRank> {
        self.loras.as_ref()?.get(&self.prefix).cloned()
    }

    /// The scope `part` below this one.
    pub fn pp(&self, part: impl Display) -> Self {
        Self { prefix: self.path(&part.to_string()), ..self.clone() }
    }

    /// The full name of `name` here.
    pub fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// The dotted path of this scope, empty at the root.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Takes a tensor, which must have `shape` (dimensions of 1 at the end count as absent, so that a 1x1 convolution
    /// serves as a matrix). One that is missing or has another shape is noted for [`Scope::finish`] and replaced by
    /// an empty stand-in of that shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Weight {
        self.get_as(name, shape, shape)
    }

    /// Takes a tensor that a file stores with `shape` under a shape of its own, `view`, that differs only in dimensions
    /// of 1 at the end. Otherwise as [`Scope::get`].
    pub fn get_as(&self, name: &str, shape: &[usize], view: &[usize]) -> Weight {
        let path = self.path(name);
        let mut record = self.lock();
        let first = record.taken.insert(path.clone());
        let Some(weights) = &self.weights else {
            if first {
                record.declared.push((path.clone(), shape.to_vec()));
            }
            return Weight::absent(view, path);
        };
        let problem = match weights.get(&path) {
            None => match weights.skipped_type(&path) {
                Some(dtype) => format!("{path} is of type {dtype}; supported are F32, F16, BF16, F8_E4M3, F8_E5M2"),
                None => format!("{path} missing, expected {shape:?}"),
            },
            Some(weight) => {
                let fits = squeezed(weight.shape()) == squeezed(view);
                let viewed = if weight.shape() == view { Some(weight.clone()) } else { weight.reshaped(view) };
                match viewed {
                    Some(viewed) if fits => return viewed,
                    _ => format!("{path} is {:?}, expected {shape:?}", weight.shape()),
                }
            }
        };
        record.problems.push(problem);
        Weight::absent(view, path)
    }

    /// The tensors that were taken while recording, in order; each once.
    pub fn declared(&self) -> TensorTable {
        self.lock().declared.clone()
    }

    /// Ends the taking and returns the names that were not taken; none while recording.
    ///
    /// # Errors
    /// [`Error::Tensors`] that lists every tensor which was missing or had another shape.
    pub fn finish(&self, model: &str) -> Result<Vec<String>> {
        let record = self.lock();
        let Some(weights) = &self.weights else { return Ok(Vec::new()) };
        if !record.problems.is_empty() {
            return Err(Error::Tensors {
                path: weights.path().to_owned(),
                model: model.to_owned(),
                problems: record.problems.clone(),
            });
        }
        Ok(weights.iter().filter(|(n, _)| !record.taken.contains(*n)).map(|(n, _)| n.to_owned()).collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn squeezed(shape: &[usize]) -> &[usize] {
    let keep = shape.iter().rposition(|&d| d != 1).map_or(0, |i| i + 1);
    &shape[..keep]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_names_and_shapes() {
        let scope = Scope::recording();
        assert_eq!(scope.pp("b").get_as("weight", &[2, 3, 1, 1], &[2, 3]).shape(), [2, 3]);
        scope.get("a", &[4]);
        scope.pp("b").get("weight", &[2, 3]);
        assert_eq!(scope.declared(), [("b.weight".to_owned(), vec![2, 3, 1, 1]), ("a".to_owned(), vec![4])]);
        assert!(scope.finish("M").unwrap().is_empty());
    }

    #[test]
    fn every_problem_listed() {
        let mut weights = Weights::new("f");
        weights.insert("a.w", Weight::from_f32(&[0.0; 6], &[2, 3, 1, 1], "a.w").unwrap()).unwrap();
        weights.insert("b", Weight::from_f32(&[0.0; 2], &[2], "b").unwrap()).unwrap();
        let scope = Scope::new(weights);
        assert_eq!(scope.pp("a").get("w", &[2, 3]).shape(), [2, 3]);
        assert_eq!(scope.finish("M").unwrap(), ["b"]);
        scope.get("b", &[3]);
        scope.pp("c").pp(0).get("d", &[1]);
        let text = scope.finish("M").unwrap_err().to_string();
        assert!(text.contains("b is [2], expected [3]") && text.contains("c.0.d missing"), "{text}");
    }
}
