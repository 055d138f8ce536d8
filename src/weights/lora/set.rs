//! The LoRAs of one part of a pipeline's model, module by module.

use super::file::Lora;
use super::targets::LoraComponent;
use crate::weights::Weight;
use std::collections::{BTreeMap, HashMap};

/// Ranks are padded to a multiple of it, so that rows of a device's tensors are whole units of 16 bytes.
const UNIT: usize = 8;

/// A tensor with zeros in one of its dimensions up to `size`; as it is, a view of the file, where it has that size.
fn padded(weight: &Weight, dimension: usize, size: usize) -> Weight {
    let own = weight.shape()[dimension];
    if own == size {
        return weight.clone();
    }
    let inner: usize = weight.shape()[dimension + 1..].iter().product();
    let mut values = Vec::new();
    for run in weight.to_f32().chunks_exact(own * inner) {
        values.extend_from_slice(run);
        values.resize(values.len() + (size - own) * inner, 0.0);
    }
    let mut shape = weight.shape().to_vec();
    shape[dimension] = size;
    Weight::from_f32(&values, &shape, weight.name()).unwrap_or_else(|| weight.clone())
}

/// The updates of one matrix or kernel by all LoRAs that change it: `sum_i s_i up_i down_i`.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// The right factors, `[R_i, K]` or `[R_i, I, kh, kw]`.
    pub down: Vec<Weight>,
    /// The left factors, `[N, R_i]`.
    pub up: Vec<Weight>,
    /// The position in [`LoraSet::scales`] of the first factor's first row.
    pub start: usize,
    /// The length of [`LoraSet::scales`].
    pub of: usize,
}

impl LowRank {
    /// The ranks of all together.
    pub fn rank(&self) -> usize {
        self.up.iter().map(|up| up.shape()[1]).sum()
    }

    /// Whether the scales of each follow those of the one before.
    pub fn adjacent(updates: &[Self]) -> bool {
        updates.windows(2).all(|pair| pair[0].start + pair[0].rank() == pair[1].start)
    }
}

/// All LoRAs' updates of one part of the model.
#[derive(Debug, Clone, Default)]
pub struct LoraSet {
    modules: HashMap<String, LowRank>,
    /// Of each pair of factors the LoRA, its own scale and its rank, in order.
    factors: Vec<(usize, f32, usize)>,
}

impl LoraSet {
    /// Gathers the updates of one part of the model, in the order in which its graph takes the modules: what stands side by
    /// side there, as query, key and value do, has its scales side by side.
    pub fn new(component: LoraComponent, loras: &[Lora]) -> Self {
        let mut set = Self::default();
        let mut ordered = BTreeMap::new();
        for (i, lora) in loras.iter().enumerate() {
            for module in lora.modules.iter().filter(|module| module.component == component) {
                ordered.entry(module.number).or_insert_with(Vec::new).push((i, module));
            }
        }
        let of = ordered.values().flatten().map(|(_, module)| module.rank().next_multiple_of(UNIT)).sum();
        let mut start = 0;
        for updates in ordered.into_values() {
            let mut low_rank = LowRank { down: Vec::new(), up: Vec::new(), start, of };
            for (lora, module) in &updates {
                let rank = module.rank().next_multiple_of(UNIT);
                low_rank.down.push(padded(&module.down, 0, rank));
                low_rank.up.push(padded(&module.up, 1, rank));
                set.factors.push((*lora, module.scale, rank));
            }
            start += low_rank.rank();
            let name = updates.into_iter().map(|(_, module)| module.module.clone()).next();
            set.modules.extend(name.map(|name| (name, low_rank)));
        }
        set
    }

    /// The updates of a module, by its name in diffusers or transformers.
    pub fn get(&self, module: &str) -> Option<&LowRank> {
        self.modules.get(module)
    }

    /// The factor of every row of every right factor, for these scales of the LoRAs.
    pub fn scales(&self, loras: &[f32]) -> Vec<f32> {
        let rows = |&(lora, scale, rank): &(usize, f32, usize)| {
            std::iter::repeat_n(loras.get(lora).copied().unwrap_or(1.0) * scale, rank)
        };
        self.factors.iter().flat_map(rows).collect()
    }
}
