//! The texts that a PNG file carries about its image; each flag makes its own entries.

use super::flag::{Generated, MetadataExtent};
use super::flags;
use super::options::Options;
use super::record::{Provenance, Record};
use crate::output::PngMetadata;
use serde_json::{Map, Value};

/// The metadata of one image.
pub fn png_metadata(options: &Options, generated: &Generated, provenance: &Provenance) -> PngMetadata {
    if generated.metadata == MetadataExtent::None {
        return PngMetadata::default();
    }
    let mut request = Map::new();
    let mut settings = Vec::new();
    for flag in flags::GENERATE.iter().flat_map(|group| group.flags) {
        if let Some((key, value)) = flag.json {
            request.insert(key.to_owned(), value(options, generated));
        }
        if let Some((position, entries)) = flag.parameters {
            settings.push((position, entries(options, generated)));
        }
    }
    if generated.upcast_vae {
        request.insert("upcast_vae".into(), true.into());
    }
    settings.sort_by_key(|(position, _)| *position);
    let settings = settings.into_iter().flat_map(|(_, entries)| entries);
    let record = Record::new(std::slice::from_ref(options), generated.number, provenance);
    PngMetadata { parameters: Some(parameters(options, settings)), braid: Some(text(request, &record)) }
}

/// The metadata of a grid of these requests' images, with the random seed where one was drawn.
pub fn grid_metadata(cells: &[Options], seed: Option<u64>, provenance: &Provenance) -> PngMetadata {
    if cells.first().is_some_and(|cell| cell.metadata == MetadataExtent::None) {
        return PngMetadata::default();
    }
    let record = Record::new(cells, 0, provenance);
    let settings = seed.map(|seed| ("seed".to_owned(), seed.into())).into_iter().collect();
    PngMetadata { parameters: None, braid: Some(text(settings, &record)) }
}

/// The text `braid`: a request's settings with the record.
fn text(mut settings: Map<String, Value>, record: &Record) -> String {
    settings.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    if let Ok(Value::Object(record)) = serde_json::to_value(record) {
        settings.extend(record);
    }
    Value::Object(settings).to_string()
}

/// Prompt and settings in the style of AUTOMATIC1111's interface.
fn parameters(options: &Options, settings: impl Iterator<Item = String>) -> String {
    let mut text = options.request.prompt.clone();
    if let Some(negative) = &options.request.negative_prompt {
        text.push_str(&format!("\nNegative prompt: {negative}"));
    }
    let version = concat!("Version: Braid ", env!("CARGO_PKG_VERSION")).to_owned();
    let settings: Vec<_> = settings.chain([version]).map(one_line).collect();
    format!("{text}\n{}", settings.join(", "))
}

/// An entry `Key: value` whose value, a file's name maybe, cannot begin another line: as a JSON string, as that interface quotes.
fn one_line(entry: String) -> String {
    match entry.split_once(": ") {
        Some((key, value)) if value.contains(char::is_control) => format!("{key}: {}", Value::from(value)),
        _ => entry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_line_breaks() {
        let mut options = Options::default();
        options.request.prompt = "a fox".into();
        let entries = ["Model: a\nSteps: 1, Seed: 2", "Steps: 30", "Model hash: \u{e9}"].map(str::to_owned);
        let text = parameters(&options, entries.into_iter());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (2, "a fox"));
        assert!(
            lines[1].starts_with("Model: \"a\\nSteps: 1, Seed: 2\", Steps: 30, Model hash: \u{e9}, Version: Braid "),
            "{text}"
        );
    }
}
