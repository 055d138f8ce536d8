//! The arguments of compel's operators.

use crate::names::counted;

/// Numbers and words between brackets.
pub(super) struct Options(Vec<String>);

/// Reads arguments up to the closing bracket; also returns the place behind it.
pub(super) fn options(text: &str) -> Option<(Options, usize)> {
    let end = text.find(')')?;
    let all = &text[..end];
    let each: Vec<String> = match all.trim() {
        "" => Vec::new(),
        all => all.split(',').map(|option| option.trim().to_owned()).collect(),
    };
    let known = |option: &String| option.parse::<f64>().is_ok_and(f64::is_finite) || option == "no_normalize";
    each.iter().all(known).then_some((Options(each), end + 1))
}

impl Options {
    /// Whether the last argument is that word; it is taken away.
    pub(super) fn take_flag(&mut self, name: &str) -> bool {
        self.0.pop_if(|last| last == name).is_some()
    }

    /// The arguments as weights of that many prompts; 1 for each where there are none.
    pub(super) fn weights(&self, prompts: usize, name: &str, at: usize) -> Result<Vec<f64>, String> {
        if self.0.is_empty() {
            return Ok(vec![1.0; prompts]);
        }
        let weights: Vec<f64> = self.0.iter().filter_map(|option| option.parse().ok()).collect();
        if weights.len() != self.0.len() {
            return Err(format!("the arguments of `{name}` at character {at} are not numbers"));
        }
        if weights.len() != prompts {
            let (weights, prompts) = (counted(weights.len(), "weight"), counted(prompts, "prompt"));
            return Err(format!("`{name}` at character {at} has {weights} for {prompts}"));
        }
        Ok(weights)
    }
}
