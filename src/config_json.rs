//! Typed access to the fields of a JSON configuration, with errors that name file, field and value.
//!
//! The configurations are those of diffusers and transformers: `config.json` of a model, `scheduler_config.json`.

use crate::error::{Error, Message, Result, escape};
use serde_json::{Map, Value};
use std::path::Path;

/// The largest size of a dimension. No real model comes near it; it keeps products of a few sizes from overflowing.
pub(crate) const MAX_SIZE: usize = 1 << 20;

/// The most entries of a list.
const MAX_LIST: usize = 16;

/// The fields of one configuration file.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
    /// Fields that count as absent: the file's `_use_default_values`.
    defaulted: Option<&'a Vec<Value>>,
}

impl<'a> Fields<'a> {
    /// Reads the fields of an object as they stand.
    pub fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, map, defaulted: None }
    }

    /// Reads the fields of an object as diffusers' `from_config` does: one that `_use_default_values` lists was only a
    /// default of the class that wrote the file, so it counts as absent.
    pub fn without_defaults(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, map, defaulted: map.get("_use_default_values").and_then(Value::as_array) }
    }

    /// Reads the fields of a value as they stand.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a value that is no object.
    pub fn of_value(path: &'a Path, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::malformed(path, "not a JSON object"))?;
        Ok(Self::new(path, map))
    }

    /// A field's value as the file has it.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        if self.defaulted.is_some_and(|names| names.iter().any(|n| n == name)) {
            return None;
        }
        self.map.get(name)
    }

    /// A field's value; null counts as absent.
    pub fn present(&self, name: &str) -> Option<&'a Value> {
        self.get(name).filter(|value| !value.is_null())
    }

    /// An [`Error::Config`] about a field.
    pub fn refuse(&self, name: &str, expected: impl Into<Message>) -> Error {
        let value = self.map.get(name).map_or_else(|| "absent".to_owned(), Value::to_string);
        let (field, value) = (escape(name), escape(&value));
        Error::Config { path: self.path.to_owned(), field, value, expected: expected.into().escaped() }
    }

    /// A switch; null counts as false, as in Python.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(_) => Err(self.refuse(name, "true or false is needed")),
        }
    }

    /// A switch, or `None` where it is absent or null.
    pub fn optional_flag(&self, name: &str) -> Result<Option<bool>> {
        if self.present(name).is_some() { self.flag(name, false).map(Some) } else { Ok(None) }
    }

    /// Refuses a switch that is on.
    pub fn off(&self, name: &str, instead: &str) -> Result<()> {
        if self.flag(name, false)? { Err(self.refuse(name, instead)) } else { Ok(()) }
    }

    /// Refuses a value that is not null, absent or one of `allowed`; numbers compare by value.
    pub fn only(&self, name: &str, allowed: &[Value]) -> Result<()> {
        let same = |a: &Value, b: &Value| a == b || (a.is_number() && a.as_f64() == b.as_f64());
        match self.present(name) {
            Some(value) if !allowed.iter().any(|a| same(a, value)) => {
                let names: Vec<_> = allowed.iter().map(Value::to_string).chain(["null".into()]).collect();
                Err(self.refuse(name, format!("only {} is supported", names.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    /// A finite number, or `None` where it is absent or null.
    pub fn optional(&self, name: &str) -> Result<Option<f64>> {
        match self.present(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|v| v.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.refuse(name, "a number is needed")),
            },
        }
    }

    /// A finite number above 0, or `None` where it is absent or null.
    pub fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.optional(name)? {
            Some(number) if number <= 0.0 => Err(self.refuse(name, "a number above 0 is needed")),
            number => Ok(number),
        }
    }

    /// A number below a million in magnitude, by default `default`.
    pub fn float(&self, name: &str, default: f32) -> Result<f32> {
        match self.optional(name)? {
            None => Ok(default),
            Some(number) if number.abs() < 1e6 => Ok(number as f32),
            Some(_) => Err(self.refuse(name, "a number is needed")),
        }
    }

    /// A number above 0 and below a million, by default `default`.
    pub fn positive_float(&self, name: &str, default: f32) -> Result<f32> {
        let number = self.float(name, default)?;
        if number > 0.0 { Ok(number) } else { Err(self.refuse(name, "a number above 0 is needed")) }
    }

    /// A whole number within bounds.
    pub fn count(&self, name: &str, default: usize, min: usize, max: usize) -> Result<usize> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let number = value.as_u64().and_then(|v| usize::try_from(v).ok());
        number
            .filter(|n| (min..=max).contains(n))
            .ok_or_else(|| self.refuse(name, format!("a whole number of {min} to {max} is needed")))
    }

    /// One of several words.
    pub fn choice<T: Copy>(&self, name: &str, default: T, words: &[(&str, T)]) -> Result<T> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let found = value.as_str().and_then(|v| words.iter().find(|w| w.0 == v));
        found.map(|w| w.1).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|w| w.0).collect();
            self.refuse(name, format!("supported: {}", words.join(", ")))
        })
    }

    /// A list of the words `yes` and `no`, as booleans.
    pub fn either(&self, name: &str, default: &[&str], yes: &str, no: &str) -> Result<Vec<bool>> {
        let words: Option<Vec<&str>> = match self.present(name) {
            None => Some(default.to_vec()),
            Some(value) => value.as_array().and_then(|list| list.iter().map(Value::as_str).collect()),
        };
        let known = |words: &Vec<&str>| words.iter().all(|w| *w == yes || *w == no);
        match words.filter(|words| (1..=MAX_LIST).contains(&words.len()) && known(words)) {
            Some(words) => Ok(words.into_iter().map(|w| w == yes).collect()),
            None => Err(self.refuse(name, format!("a list of {no} and {yes} is supported"))),
        }
    }

    /// A size from 1 to [`MAX_SIZE`]; an error where it is absent and there is no default.
    pub fn size(&self, name: &str, default: Option<usize>) -> Result<usize> {
        let found = self.present(name).map_or(default, as_size);
        found.ok_or_else(|| self.refuse(name, format!("a number from 1 to {MAX_SIZE} is needed")))
    }

    /// A number of layers from 1 to `max`: names are made for each, so it must be bounded before any file is looked at.
    pub fn num_layers(&self, name: &str, default: usize, max: usize) -> Result<usize> {
        let n = self.uniform_size(name, default)?;
        if n <= max { Ok(n) } else { Err(self.refuse(name, format!("a number from 1 to {max} is needed"))) }
    }

    /// A size, also as a list of equal ones.
    pub fn uniform_size(&self, name: &str, default: usize) -> Result<usize> {
        match self.present(name).and_then(Value::as_array) {
            None => self.size(name, Some(default)),
            Some(list) => match list.first().and_then(as_size) {
                Some(n) if list.iter().all(|v| as_size(v) == Some(n)) => Ok(n),
                _ => Err(self.refuse(name, "one number, or a list of equal numbers, is supported")),
            },
        }
    }

    /// A list of 1 to 16 sizes.
    pub fn sizes(&self, name: &str, default: &[usize]) -> Result<Vec<usize>> {
        let list = match self.present(name) {
            None => Some(default.to_vec()),
            Some(value) => as_sizes(value),
        };
        let refuse = || self.refuse(name, format!("a list of 1 to {MAX_LIST} numbers is needed"));
        list.filter(|list| !list.is_empty()).ok_or_else(refuse)
    }

    /// A size for each of `levels`, in a list, or one for all of them.
    pub fn sizes_per_level(&self, name: &str, default: usize, levels: usize) -> Result<Vec<usize>> {
        let list = match self.present(name) {
            None => Some(vec![default; levels]),
            Some(value) if value.is_array() => as_sizes(value),
            Some(value) => as_size(value).map(|size| vec![size; levels]),
        };
        list.filter(|list| list.len() == levels).ok_or_else(|| {
            self.refuse(name, format!("a number, or a list of {levels} numbers (one for each level), is supported"))
        })
    }

    /// Refuses a size that does not divide every one of `multiples`, the entries of the field `of`.
    pub fn divisor(&self, name: &str, size: usize, of: &str, multiples: &[usize]) -> Result<()> {
        match multiples.iter().find(|&m| m % size != 0) {
            Some(m) => Err(self.refuse(name, format!("a divisor of every {of}, also of {m}, is needed"))),
            None => Ok(()),
        }
    }
}

/// A value as a size from 1 to [`MAX_SIZE`].
pub(crate) fn as_size(value: &Value) -> Option<usize> {
    let n = value.as_u64().and_then(|n| usize::try_from(n).ok())?;
    (1..=MAX_SIZE).contains(&n).then_some(n)
}

fn as_sizes(value: &Value) -> Option<Vec<usize>> {
    value.as_array().filter(|list| list.len() <= MAX_LIST)?.iter().map(as_size).collect()
}

/// Makes strict JSON of what Python's `json` module writes: its bare `-Infinity`, `Infinity` and `NaN` become strings.
/// diffusers itself writes `"lambda_min_clipped": -Infinity`.
pub(crate) fn strict(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let (mut rest, mut quoted) = (text, false);
    while let Some(c) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|w| !quoted && rest.starts_with(w));
        let taken = match word {
            Some(word) => word.len(),
            // A backslash takes the next character with it, so that an escaped quote does not end the string.
            None if quoted && c == '\\' => rest.char_indices().nth(2).map_or(rest.len(), |(i, _)| i),
            None => c.len_utf8(),
        };
        if word.is_some() {
            out.push('"');
        }
        out.push_str(&rest[..taken]);
        if word.is_some() {
            out.push('"');
        }
        quoted ^= c == '"';
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_numbers() {
        let text = r#"{"a": -Infinity, "b\"NaN": [NaN, Infinity], "c": "-Infinity \\", "d": 1}"#;
        let value: Value = serde_json::from_str(&strict(text)).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"a": "-Infinity", "b\"NaN": ["NaN", "Infinity"], "c": "-Infinity \\", "d": 1})
        );
        assert_eq!(strict("\"\\"), "\"\\");
    }
}
