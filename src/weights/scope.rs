//! A place within a checkpoint's dotted names, from which a model takes its tensors.

use super::weight::{Weight, Weights};
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

/// A prefix of dotted names over a set of [`Weights`].
///
/// Scopes made from one another by [`Scope::pp`] share one record of what was taken and of what did not fit. A model
/// takes all it needs and then asks [`Scope::finish`] once, so that an error lists every tensor in one go.
#[derive(Debug, Clone)]
pub struct Scope {
    weights: Arc<Weights>,
    prefix: String,
    record: Arc<Mutex<Record>>,
}

#[derive(Debug, Default)]
struct Record {
    taken: BTreeSet<String>,
    problems: Vec<String>,
}

impl Scope {
    /// The root of `weights`.
    pub fn new(weights: impl Into<Arc<Weights>>) -> Self {
        Self { weights: weights.into(), prefix: String::new(), record: Arc::default() }
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

    /// Whether a tensor of that name is here.
    pub fn has(&self, name: &str) -> bool {
        self.weights.get(&self.path(name)).is_some()
    }

    /// The shape of a tensor, without taking it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.weights.get(&self.path(name)).map(Weight::shape)
    }

    /// Takes a tensor, which must have `shape` (dimensions of 1 at the end count as absent, so that a 1x1 convolution
    /// serves as a matrix). One that is missing or has another shape is noted for [`Scope::finish`] and replaced by
    /// an empty stand-in of that shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Weight {
        let path = self.path(name);
        let problem = match self.weights.get(&path) {
            None => format!("{path} missing, expected {shape:?}"),
            Some(weight) => {
                let fits = squeezed(weight.shape()) == squeezed(shape);
                let view = if weight.shape() == shape { Some(weight.clone()) } else { weight.reshaped(shape) };
                match view {
                    Some(view) if fits => {
                        self.lock().taken.insert(path);
                        return view;
                    }
                    _ => format!("{path} is {:?}, expected {shape:?}", weight.shape()),
                }
            }
        };
        let mut record = self.lock();
        record.taken.insert(path.clone());
        record.problems.push(problem);
        Weight::absent(shape, path)
    }

    /// Ends the taking: the names that no one took.
    ///
    /// # Errors
    /// [`Error::Tensors`] that lists every tensor which was missing or had another shape.
    pub fn finish(&self, model: &str) -> Result<Vec<String>> {
        let record = self.lock();
        if !record.problems.is_empty() {
            return Err(Error::Tensors {
                path: self.weights.path().to_owned(),
                model: model.to_owned(),
                problems: record.problems.clone(),
            });
        }
        Ok(self.weights.iter().filter(|(n, _)| !record.taken.contains(*n)).map(|(n, _)| n.to_owned()).collect())
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
    fn lists_every_problem_at_once() {
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
