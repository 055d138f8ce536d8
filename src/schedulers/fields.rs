//! Typed access to the fields of a scheduler_config.json, with errors that name file, field and value.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Message, Result, escape};

/// The fields of one configuration file.
pub(super) struct Fields<'a> {
    pub path: &'a Path,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// A field's value; absent, too, where the file says that it was only a default of the class that wrote it.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        let defaults = self.map.get("_use_default_values").and_then(Value::as_array);
        if defaults.is_some_and(|names| names.iter().any(|n| n == name)) {
            return None;
        }
        self.map.get(name)
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

    /// Refuses a switch that is on.
    pub fn off(&self, name: &str, instead: &str) -> Result<()> {
        if self.flag(name, false)? { Err(self.refuse(name, instead)) } else { Ok(()) }
    }

    /// A finite number, or `None` where it is absent or null.
    pub fn optional(&self, name: &str) -> Result<Option<f64>> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(None),
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
}

/// Makes strict JSON of what Python's `json` module writes: its bare `-Infinity`, `Infinity` and `NaN` become strings.
/// diffusers itself writes `"lambda_min_clipped": -Infinity`.
pub(super) fn strict(text: &str) -> String {
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
    fn python_numbers_become_strings() {
        let text = r#"{"a": -Infinity, "b\"NaN": [NaN, Infinity], "c": "-Infinity \\", "d": 1}"#;
        let value: Value = serde_json::from_str(&strict(text)).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"a": "-Infinity", "b\"NaN": ["NaN", "Infinity"], "c": "-Infinity \\", "d": 1})
        );
        assert_eq!(strict("\"\\"), "\"\\");
    }
}
