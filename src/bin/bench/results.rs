//! Results that were written as JSON, read again.

use crate::work::Label;
use braid::Error;
use braid::cli::failure::Failure;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Results of `bench ops -o json` or `-o jsonl`, to stand beside a prediction.
pub struct Measurements(HashMap<String, f64>);

fn key(model: &str, size: usize, batch: usize, [part, kind, shape, with]: [&str; 4]) -> String {
    format!("{model}|{size}|{batch}|{part}|{kind}|{shape}|{with}")
}

impl Measurements {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let mut seconds = HashMap::new();
        for result in results(path)? {
            let number = |name: &str| result[name].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            let (size, batch) = (number("width"), number("batch"));
            for op in result["ops"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let text = |name: &str| op[name].as_str().unwrap_or_default();
                let names = ["part", "kind", "shape", "with"].map(text);
                if let Some(median) = op["median_seconds"].as_f64() {
                    seconds.insert(key(result["model"].as_str().unwrap_or_default(), size, batch, names), median);
                }
            }
        }
        if seconds.is_empty() {
            return Err(Failure::usage(format!(
                "--measured: {} holds no measured operation; `bench ops -o json` writes what is needed",
                path.display()
            )));
        }
        Ok(Self(seconds))
    }

    /// The median of an operation; `None` where it was not measured.
    pub fn seconds(&self, model: &str, size: usize, batch: usize, label: &Label) -> Option<f64> {
        self.0.get(&key(model, size, batch, [label.part, label.kind, &label.shape, &label.with])).copied()
    }
}

/// The results in a file that `bench` wrote as JSON or JSON lines.
pub fn results(path: &Path) -> Result<Vec<Value>, Failure> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut results = Vec::new();
    for value in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
        match value.map_err(|e| Error::malformed(path, format!("not a result in JSON: {e}")))? {
            Value::Array(list) => results.extend(list),
            one => results.push(one),
        }
    }
    match results.iter().all(|r| r["benchmark"].is_string()) && !results.is_empty() {
        true => Ok(results),
        false => Err(Error::malformed(path, "no results of `bench -o json` or `-o jsonl`".to_owned()).into()),
    }
}
