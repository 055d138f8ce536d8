//! Weights of an image prompt in each transformer of the UNet (diffusers' `set_ip_adapter_scale`).

use crate::error::{Error, Field, Result};
use crate::models::unet::{BlockId, UnetConfig};
use serde_json::Value;

/// The scales of one adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    strength: f32,
    blocks: Blocks,
}

#[derive(Debug, Clone, PartialEq)]
enum Blocks {
    /// The same everywhere.
    Full,
    /// Only the transformers that carry style, layout or both.
    Preset { style: bool, layout: bool },
    /// All transformers but the middle one and that of the layout: InvokeAI's `style_strong`.
    StrongStyle,
    /// The style's transformer, and the layout's in the negative row alone: InvokeAI's `style_precise`.
    PreciseStyle,
    /// As diffusers' `set_ip_adapter_scale` takes it.
    Json(Value),
}

/// The scale of one cross-attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LayerScale {
    /// The adapter has no part.
    Absent,
    /// In both rows.
    Both(f32),
    /// In the negative row alone, which has the image of the positive one there.
    NegativeRow(f32),
}

impl Default for Scales {
    /// 1 everywhere.
    fn default() -> Self {
        1.0.into()
    }
}

impl From<f32> for Scales {
    fn from(strength: f32) -> Self {
        Self { strength, blocks: Blocks::Full }
    }
}

impl Scales {
    /// Parses `full`, `style` (the second transformer of the first up block), `layout` or `composition` (the second
    /// transformer of the last down block), `style+layout`, `strong-style` (all but layout and middle), `precise-style`
    /// (style; in the layout's transformer the negative row gets the image and the positive one none), or JSON as diffusers' `set_ip_adapter_scale` takes it: a number, or an object
    /// such as `{"down": {"block_2": [0.0, 1.0]}, "mid": 0.5, "up": {"block_0": [0.0, 1.0, 0.0]}}` in which blocks that
    /// are not named are 0. Everything is multiplied by `strength`.
    ///
    /// # Errors
    /// [`Error::Parameter`] where `spec` is none of these.
    pub fn parse(spec: &str, strength: f32) -> Result<Self> {
        let preset = |style, layout| Blocks::Preset { style, layout };
        let blocks = match spec.trim() {
            "full" => Blocks::Full,
            "style" => preset(true, false),
            "layout" | "composition" => preset(false, true),
            "strong-style" => Blocks::StrongStyle,
            "precise-style" => Blocks::PreciseStyle,
            "style+layout" | "layout+style" => preset(true, true),
            json => match serde_json::from_str::<Value>(json) {
                Ok(value @ (Value::Object(_) | Value::Number(_))) => Blocks::Json(value),
                _ => {
                    let what = format!("`{json}` is not {PRESETS} or a JSON object of scales");
                    return Err(Error::parameter(Field::ScaleBlocks, what));
                }
            },
        };
        let scales = Self { strength, blocks };
        scales.check()?;
        Ok(scales)
    }

    /// The strength that multiplies every block's scale.
    pub fn strength(&self) -> f32 {
        self.strength
    }

    /// Whether the layout's transformer has the positive row's image in the negative row.
    pub(crate) fn is_precise(&self) -> bool {
        self.blocks == Blocks::PreciseStyle
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.strength.is_finite() {
            return Ok(());
        }
        Err(Error::parameter(Field::ScaleStrength, format!("{} is not a finite number", self.strength)))
    }

    /// Returns the scale of each cross-attention, in the order of [`UnetConfig::cross_layers`].
    ///
    /// # Errors
    /// [`Error::Parameter`] where the JSON does not fit the UNet.
    #[doc(hidden)]
    pub fn resolve(&self, config: &UnetConfig) -> Result<Vec<LayerScale>> {
        if let Blocks::Json(value) = &self.blocks {
            check_names(value, config)?;
        }
        config
            .cross_layers()
            .iter()
            .map(|layer| {
                let is_style = layer.block == BlockId::Up { block: 0, attention: 1 };
                let is_layout = layer.block == layout_block(config);
                let scale = match &self.blocks {
                    Blocks::Full => Some(1.0),
                    Blocks::Preset { style, layout } => ((*style && is_style) || (*layout && is_layout)).then_some(1.0),
                    Blocks::StrongStyle => (layer.block != BlockId::Mid && !is_layout).then_some(1.0),
                    Blocks::PreciseStyle => (is_style || is_layout).then_some(1.0),
                    Blocks::Json(value) => from_json(value, layer.block, config)?,
                };
                match scale.map(|s| s * self.strength) {
                    Some(s) if !s.is_finite() => {
                        Err(invalid(format!("a scale times the strength {} is {s}", self.strength)))
                    }
                    Some(scale) if is_layout && self.is_precise() => Ok(LayerScale::NegativeRow(scale)),
                    Some(scale) => Ok(LayerScale::Both(scale)),
                    None => Ok(LayerScale::Absent),
                }
            })
            .collect()
    }
}

/// The names of [`Scales::parse`].
const PRESETS: &str = "full, style, layout, style+layout, composition, strong-style, precise-style";

/// The transformer that carries the layout.
pub(crate) fn layout_block(config: &UnetConfig) -> BlockId {
    BlockId::Down { block: config.block_out_channels.len().saturating_sub(1), attention: 1 }
}

fn invalid(what: String) -> Error {
    Error::parameter(Field::ScaleBlocks, what)
}

fn number(value: &Value) -> Result<Option<f32>> {
    match value.as_f64() {
        Some(v) if (v as f32).is_finite() => Ok(Some(v as f32)),
        _ => Err(invalid(format!("`{value}` is not a finite number"))),
    }
}

/// Refuses names that the UNet does not have.
fn check_names(value: &Value, config: &UnetConfig) -> Result<()> {
    let Value::Object(parts) = value else { return Ok(()) };
    let levels = config.block_out_channels.len();
    for (part, blocks) in parts {
        if !["down", "mid", "up"].contains(&part.as_str()) {
            return Err(invalid(format!("`{part}` is not down, mid or up")));
        }
        let Value::Object(blocks) = blocks else { continue };
        for name in blocks.keys() {
            // Compared as written: another way to write a number would be passed over below.
            let is_known = part != "mid"
                && (0..levels).any(|i| {
                    let level = if part == "up" { levels - 1 - i } else { i };
                    let has = config.transformer_layers_per_block.get(level).is_some_and(|layers| *layers > 0);
                    has && *name == format!("block_{i}")
                });
            if !is_known {
                return Err(invalid(format!("`{part}.{name}` is not a block with cross-attention of this UNet")));
            }
        }
    }
    Ok(())
}

fn from_json(value: &Value, block: BlockId, config: &UnetConfig) -> Result<Option<f32>> {
    let Value::Object(parts) = value else { return number(value) };
    let (part, at) = match block {
        BlockId::Down { block, attention } => ("down", Some((block, attention, config.layers_per_block))),
        BlockId::Up { block, attention } => ("up", Some((block, attention, config.layers_per_block + 1))),
        BlockId::Mid => ("mid", None),
    };
    let Some(value) = parts.get(part) else { return Ok(None) };
    let (value, at) = match (value, at) {
        (Value::Object(blocks), Some((block, attention, count))) => match blocks.get(&format!("block_{block}")) {
            Some(value) => (value, Some((attention, count))),
            None => return Ok(None),
        },
        (value, at) => (value, at.map(|(_, attention, count)| (attention, count))),
    };
    match (value, at) {
        (Value::Array(list), Some((attention, count))) => {
            if list.len() != count {
                let what =
                    format!("`{value}` has {} scales for the {count} transformers of a {part} block", list.len());
                return Err(invalid(what));
            }
            number(&list[attention])
        }
        (Value::Array(list), None) if list.len() == 1 => number(&list[0]),
        (value, _) => number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::published;

    fn active(spec: &str) -> Vec<(usize, f32)> {
        let scales = Scales::parse(spec, 0.5).unwrap().resolve(&published::unet()).unwrap();
        assert_eq!(scales.len(), 70);
        let both = |(i, scale)| if let LayerScale::Both(scale) = scale { Some((i, scale)) } else { None };
        scales.into_iter().enumerate().filter_map(both).collect()
    }

    #[test]
    fn preset_blocks() {
        assert_eq!(active("full").len(), 70);
        // down.0 has none; down.1: 0..4, down.2: 4..14 and 14..24; up.0: 24..34, 34..44, 44..54.
        assert_eq!(active("style"), (34..44).map(|i| (i, 0.5)).collect::<Vec<_>>());
        assert_eq!(active("layout"), (14..24).map(|i| (i, 0.5)).collect::<Vec<_>>());
        let json = r#"{"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}"#;
        let live: Vec<_> = active(json).into_iter().filter(|(_, s)| *s != 0.0).collect();
        assert_eq!(live, active("style+layout"));
        assert_eq!(active("composition"), active("layout"));
        let strong: Vec<_> = (0..14).chain(24..60).map(|i| (i, 0.5)).collect();
        assert_eq!(active("strong-style"), strong);
        assert_eq!(active("precise-style"), active("style"));
        let precise = Scales::parse("precise-style", 0.5).unwrap().resolve(&published::unet()).unwrap();
        assert!(precise[14..24].iter().all(|scale| *scale == LayerScale::NegativeRow(0.5)));
        assert_eq!(active(r#"{"mid": 2}"#), (60..70).map(|i| (i, 1.0)).collect::<Vec<_>>());
    }

    #[test]
    fn misfit_values() {
        for (spec, part) in [
            (r#"{"down": {"block_0": 1}}"#, "down.block_0"),
            (r#"{"down": {"block_9": 1}}"#, "down.block_9"),
            (r#"{"up": {"block_18446744073709551615": 1}}"#, "up.block_18446744073709551615"),
            (r#"{"down": {"block_+1": 1}}"#, "down.block_+1"),
            (r#"{"down": {"block_01": 1}}"#, "down.block_01"),
            (r#"{"mid": {"block_0": 1}}"#, "mid.block_0"),
            (r#"{"side": 1}"#, "side"),
            (r#"{"up": {"block_0": [1, 2]}}"#, "2 scales for the 3"),
            (r#"{"up": "x"}"#, "x"),
        ] {
            let scales = Scales::parse(spec, 1.0).unwrap();
            let text = scales.resolve(&published::unet()).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
        assert!(Scales::parse("both", 1.0).is_err() && Scales::parse("full", f32::NAN).is_err());
    }
}
