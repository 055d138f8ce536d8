//! Scales of modules that a file states in its metadata: diffusers' `lora_adapter_metadata`.

use super::targets::LoraComponent;
use crate::error::{Error, Result};
use crate::weights::Weights;
use serde_json::{Map, Value};

/// The key of the metadata; its value is JSON: `unet.r`, `unet.lora_alpha`, `unet.alpha_pattern` and so on.
const KEY: &str = "lora_adapter_metadata";

/// The scales that the metadata of a file states.
#[derive(Debug, Default)]
pub(super) struct Metadata(Map<String, Value>);

impl Metadata {
    /// Reads them; empty where the file has none.
    pub(super) fn of(weights: &Weights) -> Result<Self> {
        let Some(text) = weights.metadata().get(KEY) else { return Ok(Self::default()) };
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            _ => {
                let what = format!("the metadata's `{KEY}` is no JSON object: {text}");
                Err(Error::malformed(weights.path(), what))
            }
        }
    }

    fn field(&self, component: LoraComponent, name: &str) -> Option<&Value> {
        self.0.get(&format!("{}.{name}", component.folder()))
    }

    /// Whether the file states that a component's update is of that kind.
    pub(super) fn is(&self, component: LoraComponent, kind: &str) -> bool {
        self.field(component, kind).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The factor of a module of that rank; `None` where the metadata states none.
    pub(super) fn scale(&self, component: LoraComponent, module: &str, rank: usize) -> Option<f32> {
        let pattern = self.field(component, "alpha_pattern").and_then(Value::as_object);
        let matches = |key: &str| module == key || module.strip_suffix(key).is_some_and(|rest| rest.ends_with('.'));
        let own = pattern.and_then(|p| p.iter().find(|(key, _)| matches(key))).and_then(|(_, alpha)| alpha.as_f64());
        let alpha = own.or_else(|| self.field(component, "lora_alpha")?.as_f64())?;
        let rank = rank as f64;
        Some((alpha / if self.is(component, "use_rslora") { rank.sqrt() } else { rank }) as f32)
    }
}
