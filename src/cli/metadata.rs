//! The texts that a PNG file carries about its image; each flag makes its own entries.

use super::flag::Generated;
use super::flags;
use super::options::Options;
use crate::output::PngMetadata;
use serde_json::{Map, Value};

/// The metadata of one image.
pub fn png_metadata(options: &Options, generated: &Generated) -> PngMetadata {
    let mut request = Map::from_iter([("version".to_owned(), Value::from(env!("CARGO_PKG_VERSION")))]);
    let mut settings = Vec::new();
    for flag in flags::GENERATE.iter().flat_map(|group| group.flags) {
        if let Some((key, value)) = flag.json {
            request.insert(key.to_owned(), value(options, generated));
        }
        if let Some((position, entries)) = flag.parameters {
            settings.push((position, entries(options, generated)));
        }
    }
    settings.sort_by_key(|(position, _)| *position);
    let settings = settings.into_iter().flat_map(|(_, entries)| entries);
    PngMetadata { parameters: Some(parameters(options, settings)), braid: Some(Value::Object(request).to_string()) }
}

/// Prompt and settings in the style of AUTOMATIC1111's interface.
fn parameters(options: &Options, settings: impl Iterator<Item = String>) -> String {
    let mut text = options.request.prompt.clone();
    if let Some(negative) = &options.request.negative_prompt {
        text.push_str(&format!("\nNegative prompt: {negative}"));
    }
    let version = concat!("Version: Braid ", env!("CARGO_PKG_VERSION")).to_owned();
    let settings: Vec<_> = settings.chain([version]).collect();
    format!("{text}\n{}", settings.join(", "))
}
