//! UNets with layers removed: SSD-1B, Segmind Vega and others pruned from SDXL.

use crate::config_json::{Fields, as_size};
use crate::error::Result;
use crate::models::probe::Probe;
use serde_json::Value;

/// The most layers of one transformer (SDXL has 10).
const MAX_TRANSFORMER_LAYERS: usize = 64;
/// The middle as SDXL has it: resnet, transformer, resnet.
const MID_RESNETS: usize = 2;

/// The layers of every block, where those of a level are not the same or the middle is smaller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrunedBlocks {
    /// Transformer layers of each transformer, for each down block.
    pub down: Vec<Vec<usize>>,
    /// The same for each up block, in their order.
    pub up: Vec<Vec<usize>>,
    /// Transformer layers of the middle.
    pub mid_layers: usize,
    /// Resnets of the middle: 2, 1 (diffusers' `UNetMidBlock2D`) or 0 (there is no middle).
    pub mid_resnets: usize,
}

impl PrunedBlocks {
    /// Reads `transformer_layers_per_block`, `reverse_transformer_layers_per_block` and `mid_block_type`. `cross` says which
    /// levels have cross-attention, `resnets` is the number of a down block.
    pub(super) fn from_json(f: &Fields<'_>, cross: &[bool], resnets: usize) -> Result<Self> {
        const REVERSE: &str = "reverse_transformer_layers_per_block";
        let down = transformer_layers(f, "transformer_layers_per_block", cross, resnets)?;
        let reversed: Vec<bool> = cross.iter().rev().copied().collect();
        let up = if f.present(REVERSE).is_some() {
            transformer_layers(f, REVERSE, &reversed, resnets + 1)?
        } else {
            let uneven = down.iter().any(|layers| layers.iter().any(|n| *n != layers[0]));
            if uneven || nested(f) {
                return Err(
                    f.refuse(REVERSE, "the layers of the up blocks are needed where those of a down block are a list")
                );
            }
            down.iter().rev().map(|layers| vec![layers[0]; resnets + 1]).collect()
        };
        let mid_layers = down.last().and_then(|layers| layers.first()).copied().unwrap_or(0);
        let (mid_resnets, mid_layers) = match f.get("mid_block_type") {
            Some(Value::Null) => (0, 0),
            Some(value) if value == "UNetMidBlock2D" => (1, 0),
            _ => (MID_RESNETS, mid_layers),
        };
        Ok(Self { down, up, mid_layers, mid_resnets })
    }

    /// Counts the layers of a file.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where a number among them is missing.
    pub(super) fn from_tensors(p: &Probe<'_>, levels: usize, resnets: usize) -> Result<Self> {
        let count = |path: String| -> Result<usize> {
            let prefix = format!("{path}.transformer_blocks.");
            let found = p.count(&prefix);
            let number = |name: &str| name.strip_prefix(&prefix)?.split('.').next()?.parse::<usize>().ok();
            if p.names.iter().filter_map(|name| number(name)).any(|n| n >= found) {
                return p
                    .mismatch(format!("{prefix}{found} is missing, and later ones are there: the file is damaged"));
            }
            Ok(found)
        };
        let side = |blocks: &str, transformers: usize| {
            let block = |i| (0..transformers).map(|k| count(format!("{blocks}.{i}.attentions.{k}"))).collect();
            (0..levels).map(block).collect::<Result<Vec<Vec<usize>>>>()
        };
        Ok(Self {
            down: side("down_blocks", resnets)?,
            up: side("up_blocks", resnets + 1)?,
            mid_layers: count("mid_block.attentions.0".into())?,
            mid_resnets: p.count("mid_block.resnets."),
        })
    }

    /// The transformer layers of each level, and what that does not say: nothing, where all blocks of a level are the same.
    pub(super) fn by_level(self) -> (Vec<usize>, Option<Self>) {
        let levels: Vec<usize> = self.down.iter().map(|layers| layers.iter().copied().max().unwrap_or(0)).collect();
        let same = |layers: &[usize], level: &usize| layers.iter().all(|n| n == level);
        let even = self.down.iter().zip(&levels).all(|(layers, level)| same(layers, level))
            && self.up.iter().zip(levels.iter().rev()).all(|(layers, level)| same(layers, level))
            && self.mid_resnets == MID_RESNETS
            && Some(&self.mid_layers) == levels.last();
        (levels, (!even).then_some(self))
    }
}

/// Whether a level's layers are a list.
fn nested(f: &Fields<'_>) -> bool {
    let list = f.present("transformer_layers_per_block").and_then(Value::as_array);
    list.is_some_and(|list| list.iter().any(Value::is_array))
}

/// Layers of each of a block's transformers, for each block, by default one; 0 where `cross` says that the block has no
/// cross-attention, whatever the list says there.
fn transformer_layers(f: &Fields<'_>, name: &str, cross: &[bool], transformers: usize) -> Result<Vec<Vec<usize>>> {
    let list = match f.present(name) {
        None => vec![&Value::Null; cross.len()],
        Some(Value::Array(list)) => list.iter().collect(),
        Some(value) => vec![value; cross.len()],
    };
    let number = |value: &Value| as_size(value).filter(|n| *n <= MAX_TRANSFORMER_LAYERS);
    let block = |(value, &cross): (&Value, &bool)| match value {
        _ if !cross => Some(vec![0; transformers]),
        Value::Null => Some(vec![1; transformers]),
        Value::Array(each) if each.len() == transformers => each.iter().map(number).collect(),
        Value::Array(_) => None,
        value => Some(vec![number(value)?; transformers]),
    };
    let blocks: Option<Vec<_>> = list.iter().copied().zip(cross).map(block).collect();
    blocks.filter(|_| list.len() == cross.len()).ok_or_else(|| {
        let levels = cross.len();
        let expected = format!(
            "a number up to {MAX_TRANSFORMER_LAYERS}, or a list of {levels} such (one for each level, or {transformers} for each of \
             its transformers), is supported"
        );
        f.refuse(name, expected)
    })
}
