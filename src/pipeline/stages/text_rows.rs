//! Rows of tokens through a text encoder.

use crate::cancel;
use crate::error::{Error, Result};
use crate::pipeline::compile::Executables;
use crate::pipeline::content_cache::{ContentHasher, ContentKey, Held};
use crate::pipeline::executable_cache::TextEncoderKey;
use crate::pipeline::lora::bound;
use crate::pipeline::token_row::{MixedRow, TokenRow};
use std::sync::Arc;

/// A text encoder with what all its rows share.
pub(super) struct TextEncoder<'a, 'b> {
    pub(super) executables: &'a mut Executables<'b>,
    pub(super) key: TextEncoderKey,
    pub(super) lora_scales: &'a [f32],
    /// The row of an empty text, from which compel's weights measure; without it weights are AUTOMATIC1111's.
    pub(super) empty: Option<&'a TokenRow>,
}

/// Hidden states `[T, C]`, and the pooled output of the second encoder.
#[derive(Clone)]
pub(super) struct Encoded {
    pub(super) hidden: Vec<f32>,
    pub(super) pooled: Vec<f32>,
}

impl TextEncoder<'_, '_> {
    /// The hidden states of rows one below the other, and the pooled output of the first one's first term.
    pub(super) fn rows(&mut self, rows: &[MixedRow]) -> Result<Encoded> {
        let mut all = Encoded { hidden: Vec::new(), pooled: Vec::new() };
        // Where all weights are 1 nothing is measured from it.
        let weighed = |row: &MixedRow| row.weight != 1.0 || row.terms.iter().any(|(_, row)| !row.weights.is_empty());
        let empty = self.empty.filter(|_| rows.iter().any(weighed));
        let empty = empty.map(|row| self.row(row)).transpose()?.map(|encoded| encoded.hidden);
        for row in rows {
            let mut sum: Option<Vec<f32>> = None;
            for (factor, tokens) in &row.terms {
                let Encoded { mut hidden, pooled } = self.row(tokens)?;
                match &empty {
                    Some(empty) => weigh_from(&mut hidden, &tokens.weights, empty),
                    None => weigh(&mut hidden, &tokens.weights),
                }
                if all.pooled.is_empty() {
                    all.pooled = pooled;
                }
                if *factor != 1.0 {
                    hidden.iter_mut().for_each(|v| *v *= factor);
                }
                match &mut sum {
                    Some(sum) => sum.iter_mut().zip(hidden).for_each(|(sum, v)| *sum += v),
                    None => sum = Some(hidden),
                }
            }
            let mut sum = sum.unwrap_or_default();
            if let Some(empty) = empty.as_ref().filter(|_| row.weight != 1.0) {
                scale_distance(&mut sum, empty, row.weight);
            }
            all.hidden.append(&mut sum);
        }
        Ok(all)
    }

    /// A row, without its weights: one of an earlier request, or run.
    pub(super) fn row(&mut self, row: &TokenRow) -> Result<Encoded> {
        let key = self.content(row);
        if let Some(known) = self.executables.cache.contents.get::<Encoded>(key) {
            return Ok(Encoded::clone(&known));
        }
        let encoded = self.run(&[row])?.pop().ok_or_else(|| Error::Graph("no row of text".into()))?;
        self.keep(key, &encoded);
        Ok(encoded)
    }

    /// Runs a request's own rows that no earlier one has, as many at once as the device takes, where that is more than one, and others
    /// where they leave room: a request that comes meanwhile waits for no more than that. They are found for as long as anyone has what
    /// is given.
    pub(super) fn ahead(&mut self, own: &[&TokenRow], others: &[&TokenRow]) -> Result<Held> {
        let most = self.executables.compiler.device.encoder_rows();
        let mut held = Held::new();
        // With tokens that are hidden from all it takes one row at a time.
        if most < 2 || self.key.masked {
            return Ok(held);
        }
        let [own, others] =
            [own, others].map(|rows| rows.iter().map(|row| (self.content(row), *row)).collect::<Vec<_>>());
        let new = (own.into_iter(), others.into_iter());
        let new = self.executables.cache.contents.missing::<Encoded, _>(new, most, &mut held);
        for some in new.chunks(most) {
            cancel::check()?;
            let rows: Vec<_> = some.iter().map(|(_, row)| *row).collect();
            let encoded = match self.run(&rows) {
                // One at a time they take less.
                Err(Error::Memory { .. }) if rows.len() > 1 => return Ok(held),
                encoded => encoded?,
            };
            for ((key, _), encoded) in some.iter().zip(encoded) {
                if let Some(kept) = self.keep(*key, &encoded) {
                    held.push(kept);
                }
            }
        }
        Ok(held)
    }

    /// The key of a row's result.
    fn content(&self, row: &TokenRow) -> ContentKey {
        let TextEncoderKey { encoder, layers, masked } = self.key;
        ContentHasher::new("text")
            .bytes(bytemuck::cast_slice(&[encoder, layers, usize::from(masked), row.masked.start, row.masked.end]))
            .bytes(bytemuck::cast_slice(&row.ids))
            .bytes(bytemuck::cast_slice(self.lora_scales))
            .key()
    }

    /// Keeps a result for later, unless it has no meaning.
    fn keep(&mut self, key: ContentKey, encoded: &Encoded) -> Option<Arc<Encoded>> {
        if !encoded.hidden.iter().chain(&encoded.pooled).all(|v| v.is_finite()) {
            return None;
        }
        let (kept, bytes) = (Arc::new(encoded.clone()), 4 * (encoded.hidden.len() + encoded.pooled.len()));
        self.executables.cache.contents.put(key, kept.clone(), bytes);
        Some(kept)
    }

    /// The results of rows, which are one where tokens can be hidden from all.
    fn run(&mut self, rows: &[&TokenRow]) -> Result<Vec<Encoded>> {
        let compiler = self.executables.compiler;
        let config = &compiler.models.text[self.key.encoder].config;
        let width = config.hidden_size;
        let executable = self.executables.text_encoder(self.key, rows.len())?;
        let shape = executable.graph().inputs.first().map(|(_, ids)| executable.graph().node(*ids).shape.as_slice());
        let Some(&[copies, tokens]) = shape else { return Err(Error::Graph("a text encoder without rows".into())) };
        let inputs = match rows {
            [row] if self.key.masked => Inputs::masked(row),
            rows => Inputs::plain(rows, copies),
        };
        let mut hidden = vec![0.0; copies * tokens * width];
        let scales = bound(executable.graph(), self.lora_scales);
        let mut given = vec![(&inputs.ids).into()];
        if self.key.masked {
            given.extend([(&inputs.places).into(), (&inputs.length).into()]);
            given.extend([inputs.own.as_slice().into(), inputs.first.as_slice().into()]);
        }
        let mut pooled = Vec::new();
        let projected = config.projection_dim.unwrap_or(width);
        if self.key.encoder == 1 {
            let at = |row: &&TokenRow| pooled_token(&row.ids, config.eos_token_id, compiler.compat.pools_at_greatest);
            let index = filled(rows.iter().map(|row| at(row) as i32), copies);
            pooled = vec![0.0; copies * projected];
            given.push((&index).into());
            given.extend(scales);
            executable.run(&given, &mut [&mut hidden, &mut pooled])?;
        } else {
            given.extend(scales);
            executable.run(&given, &mut [&mut hidden])?;
        }
        if self.key.masked {
            pooled.truncate(projected);
            return Ok(vec![Encoded { hidden: inputs.restored(&hidden, width), pooled }]);
        }
        let pooled = |row: usize| pooled.chunks_exact(projected).nth(row).unwrap_or(&[]).to_vec();
        let hidden = hidden.chunks_exact(tokens * width).take(rows.len()).enumerate();
        Ok(hidden.map(|(row, hidden)| Encoded { hidden: hidden.to_vec(), pooled: pooled(row) }).collect())
    }
}

/// The inputs of an encoder for a row.
struct Inputs {
    ids: Vec<i32>,
    /// The place in the text of each token of both rows.
    places: Vec<i32>,
    length: Vec<i32>,
    own: Vec<f32>,
    first: Vec<f32>,
    /// For each place in the text its token's row of the result.
    order: Vec<usize>,
}

/// Values up to a number of them, the last one for those that are not there.
fn filled<T: Clone>(values: impl Iterator<Item = T>, count: usize) -> Vec<T> {
    let mut all: Vec<T> = values.collect();
    if let Some(last) = all.last().cloned() {
        all.resize(count, last);
    }
    all
}

impl Inputs {
    /// Takes rows as they are, up to a number of them.
    fn plain(rows: &[&TokenRow], count: usize) -> Self {
        // Ids beyond the vocabulary, which are no tokens, read its last row.
        let id = |id: &u32| i32::try_from(*id).unwrap_or(i32::MAX);
        let ids = filled(rows.iter(), count).iter().flat_map(|row| row.ids.iter().map(id)).collect();
        Self { ids, places: Vec::new(), length: Vec::new(), own: Vec::new(), first: Vec::new(), order: Vec::new() }
    }

    /// Sets the masked tokens apart; each row is filled up with tokens of which nothing is read.
    fn masked(row: &TokenRow) -> Self {
        let count = row.ids.len();
        let is_masked = |at: &usize| row.masked.contains(at);
        let mut seen: Vec<usize> = (0..count).filter(|at| !is_masked(at)).collect();
        let mut hidden: Vec<usize> = row.masked.clone().collect();
        let mut order = vec![0; count];
        seen.iter().enumerate().for_each(|(at, place)| order[*place] = at);
        hidden.iter().enumerate().for_each(|(at, place)| order[*place] = count + at);
        seen.resize(count, count - 1);
        hidden.resize(count, 0);
        let places: Vec<usize> = [seen, hidden].concat();
        let plain = Self::plain(&[row], 1);
        let halves = |a: f32, b: f32| [vec![a; count], vec![b; count]].concat();
        Self {
            ids: places.iter().map(|place| plain.ids[*place]).collect(),
            places: places.iter().map(|place| *place as i32).collect(),
            length: vec![row.masked.start.max(1) as i32],
            own: halves(1.0, 0.0),
            first: halves(0.0, 1.0),
            order,
        }
    }

    /// The result's rows in the order of the text.
    fn restored(&self, hidden: &[f32], width: usize) -> Vec<f32> {
        self.order.iter().flat_map(|at| &hidden[at * width..][..width]).copied().collect()
    }
}

/// Multiplies each token's hidden states by its weight, then all of them so that their mean is what it was.
fn weigh(hidden: &mut [f32], weights: &[f32]) {
    if weights.is_empty() {
        return;
    }
    let sum = |hidden: &[f32]| hidden.iter().map(|v| f64::from(*v)).sum::<f64>();
    let before = sum(hidden);
    let width = hidden.len() / weights.len();
    for (token, weight) in hidden.chunks_exact_mut(width).zip(weights) {
        token.iter_mut().for_each(|v| *v *= weight);
    }
    let scale = (before / sum(hidden)) as f32;
    if scale.is_finite() {
        hidden.iter_mut().for_each(|v| *v *= scale);
    }
}

/// Multiplies the distance of each token's hidden states from those of the empty text by its weight.
fn weigh_from(hidden: &mut [f32], weights: &[f32], empty: &[f32]) {
    if weights.is_empty() {
        return;
    }
    let width = hidden.len() / weights.len();
    let tokens = hidden.chunks_exact_mut(width).zip(empty.chunks_exact(width));
    for ((token, empty), weight) in tokens.zip(weights).filter(|(_, weight)| **weight != 1.0) {
        scale_distance(token, empty, *weight);
    }
}

/// Multiplies the distance from `empty` by a weight.
fn scale_distance(hidden: &mut [f32], empty: &[f32], weight: f32) {
    hidden.iter_mut().zip(empty).for_each(|(v, e)| *v = e + (*v - e) * weight);
}

/// The position of the token that is pooled: the first of the greatest ids, or, where the configuration names another end of
/// text than the historical 2, its first occurrence.
fn pooled_token(ids: &[u32], eos: u32, at_greatest: bool) -> usize {
    const LEGACY: u32 = 2;
    let sought = if at_greatest || eos == LEGACY { ids.iter().max().copied() } else { Some(eos) };
    ids.iter().position(|id| Some(*id) == sought).unwrap_or(0)
}
