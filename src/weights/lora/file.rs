//! From a file's tensors to low-rank updates of a model's modules.

use super::alpha::Metadata;
use super::family;
use super::keys::{self, Part};
use super::targets::{LoraComponent, LoraTargets, Target};
use crate::error::{Error, Result};
use crate::weights::contents::quoted;
use crate::weights::{Weight, Weights};
use std::collections::BTreeMap;
use std::path::Path;

/// A LoRA: low-rank updates of a model's matrices and kernels.
#[derive(Debug, Clone)]
pub struct Lora {
    /// The updates, in the order of the model's modules.
    pub modules: Vec<LoraModule>,
    /// The file's names that are no module of the model, each once.
    pub unused: Vec<String>,
}

/// The update of one module: `W + scale * up * down`, times the scale of a request.
#[derive(Debug, Clone)]
pub struct LoraModule {
    /// The part of the model.
    pub component: LoraComponent,
    /// The module's name in diffusers or transformers.
    pub module: String,
    /// `[R, K]`, or `[R, I, kh, kw]` of a convolution.
    pub down: Weight,
    /// `[N, R]`.
    pub up: Weight,
    /// Alpha divided by the rank; 1 where the file states no alpha.
    pub scale: f32,
    /// The number of the module in [`LoraTargets`].
    pub(super) number: usize,
}

impl LoraModule {
    /// R.
    pub fn rank(&self) -> usize {
        self.up.shape()[1]
    }
}

/// A LoRA beside a model, whether it fits or not.
#[derive(Debug, Clone)]
pub struct ExaminedLora {
    /// Its updates that fit.
    pub lora: Lora,
    /// The updates of modules whose weights have other shapes in the model.
    pub misfits: Vec<Misfit>,
}

/// An update of a module whose weight has another shape in the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The part of the model.
    pub component: LoraComponent,
    /// The rows of its right factor.
    pub rank: usize,
    /// Whether its right factor is a convolution's.
    pub convolution: bool,
    /// The name with the shapes, for an error.
    what: String,
}

impl ExaminedLora {
    /// Whether no name of the LoRA is a module of the model.
    pub fn is_elsewhere(&self) -> bool {
        self.lora.modules.is_empty() && self.misfits.is_empty()
    }

    /// The LoRA, where all of it that names modules of the model fits them.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the file's path where shapes differ or no module is the model's.
    pub fn fitting(self, path: &Path) -> Result<Lora> {
        let Self { lora, misfits } = self;
        if let Some(first) = misfits.first() {
            let count = misfits.len() + lora.modules.len();
            let what =
                format!("{} of {count} modules have other shapes than this model's: {}", misfits.len(), first.what);
            return Err(Error::mismatch(path, what + "; a LoRA made for this model is needed"));
        }
        lora.demand_modules(path)?;
        Ok(lora)
    }
}

/// The tensors of one module as the file has them.
#[derive(Default)]
struct Parts<'a> {
    /// The name that the file gives the module.
    key: String,
    down: Option<&'a Weight>,
    up: Option<&'a Weight>,
    alpha: Option<&'a Weight>,
}

impl Lora {
    /// Reads a LoRA for a model: kohya's names (of the original blocks or of diffusers'), PEFT's and diffusers', old and new.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where the file is no LoRA, one of another method or of another model; [`Error::Malformed`] where a
    /// part of a module is missing or has no meaning.
    pub fn read(weights: &Weights, targets: &LoraTargets) -> Result<Self> {
        let lora = Self::examine(weights, targets)?.fitting(weights.path())?;
        if let Some(first) = lora.unused.first() {
            let (path, all) = (weights.path().display(), lora.unused.len() + lora.modules.len());
            tracing::warn!(
                "{path}: {} of the LoRA's {all} modules are none of this model's and were not used: {first}, ..",
                lora.unused.len()
            );
        }
        Ok(lora)
    }

    /// Reads what fits a model of a LoRA, as [`Lora::read`] does, and what does not.
    ///
    /// # Errors
    /// As [`Lora::read`], but for shapes and names that are not the model's.
    pub fn examine(weights: &Weights, targets: &LoraTargets) -> Result<ExaminedLora> {
        family::demand_lora(weights)?;
        let metadata = Metadata::of(weights)?;
        if LoraComponent::ALL.iter().any(|component| metadata.is(*component, "use_dora")) {
            return Err(family::other_method(weights, "DoRA"));
        }
        family::demand_sdxl(weights, targets)?;
        let (found, unused) = collect(weights, targets)?;
        let mut modules = Vec::new();
        let mut misfits = Vec::new();
        for (number, parts) in found {
            let target = &targets.modules[number];
            match module(weights, &metadata, target, &parts)? {
                Ok((down, up, scale)) => modules.push(LoraModule {
                    component: target.component,
                    module: target.module.clone(),
                    down,
                    up,
                    scale,
                    number,
                }),
                Err(misfit) => misfits.push(misfit),
            }
        }
        Ok(ExaminedLora { lora: Self { modules, unused }, misfits })
    }

    /// Refuses a LoRA of which no module is the model's.
    pub(crate) fn demand_modules(&self, path: &Path) -> Result<()> {
        let Self { modules, unused } = self;
        if modules.is_empty() {
            let first = unused.first().map_or_else(|| "no tensor is a pair of factors".to_owned(), |name| quoted(name));
            let what = format!("none of the LoRA's {} modules is one of this model's: {first}", unused.len());
            return Err(Error::mismatch(path, what + "; a LoRA made for SDXL is needed"));
        }
        Ok(())
    }
}

type Found<'a> = BTreeMap<usize, Parts<'a>>;

/// Collects the tensors of each module, by its number, and the names that are no module's.
fn collect<'a>(weights: &'a Weights, targets: &LoraTargets) -> Result<(Found<'a>, Vec<String>)> {
    let mut by_key: BTreeMap<String, Parts<'a>> = BTreeMap::new();
    let mut unused = Vec::new();
    for (name, weight) in weights.iter() {
        let Some((key, part)) = keys::split(name) else {
            unused.push(name.to_owned());
            continue;
        };
        let parts = by_key.entry(key.clone()).or_insert_with(|| Parts { key, ..Parts::default() });
        let place = match part {
            Part::Down => &mut parts.down,
            Part::Up => &mut parts.up,
            Part::Alpha => &mut parts.alpha,
        };
        if let Some(other) = place.replace(weight) {
            let what = format!("{} and {} are the same factor twice", quoted(other.name()), quoted(name));
            return Err(Error::malformed(weights.path(), what));
        }
    }
    if let Some((name, dtype)) = weights.skipped().find(|(name, _)| keys::split(name).is_some()) {
        let what = format!("{} is of type {dtype}; F32, F16 or BF16 is needed", quoted(name));
        return Err(Error::mismatch(weights.path(), what));
    }
    let resolved: Vec<_> = by_key.into_values().map(|parts| (targets.find(&parts.key), parts)).collect();
    // A file with both spellings has everything twice: those of the original blocks go, as in diffusers.
    let both = [true, false].iter().all(|original| {
        resolved.iter().any(|(found, _)| found.is_some_and(|(at, o)| o == *original && is_block(&targets.modules[at])))
    });
    let mut found = Found::new();
    for (target, parts) in resolved {
        match target {
            Some((_, original)) if original && both => unused.push(parts.key),
            Some((at, _)) => {
                if let Some(other) = found.insert(at, parts) {
                    let what = format!("{} is there twice, under two names", quoted(&other.key));
                    return Err(Error::malformed(weights.path(), what));
                }
            }
            None => unused.push(parts.key),
        }
    }
    // A lone alpha changes nothing.
    found.retain(|_, parts| {
        let lone = parts.down.is_none() && parts.up.is_none();
        if lone {
            unused.push(std::mem::take(&mut parts.key));
        }
        !lone
    });
    unused.sort();
    Ok((found, unused))
}

/// Whether a module lies in one of the UNet's blocks.
fn is_block(target: &Target) -> bool {
    let blocks = ["down_blocks.", "mid_block.", "up_blocks."];
    target.component == LoraComponent::Unet && blocks.iter().any(|block| target.module.starts_with(block))
}

/// The factors of a module in the shapes that the model's weight has, and their scale; or how they do not fit.
type Fitted = std::result::Result<(Weight, Weight, f32), Misfit>;

fn module(weights: &Weights, metadata: &Metadata, target: &Target, parts: &Parts<'_>) -> Result<Fitted> {
    let malformed = |what: String| Error::malformed(weights.path(), what);
    let (Some(down), Some(up)) = (parts.down, parts.up) else {
        let (there, lacking) = if parts.down.is_some() { ("right", "left") } else { ("left", "right") };
        let what = format!("the module {} has its {there} factor, but not its {lacking} one", quoted(&parts.key));
        return Err(malformed(what + ": fetch the file again"));
    };
    let rank = down.shape().first().copied().unwrap_or(0);
    let kernel = target.shape[1..].iter().copied();
    let right: Vec<usize> = std::iter::once(rank).chain(kernel).collect();
    let (Some(view_down), Some(view_up)) = (viewed(down, &right), viewed(up, &[target.shape[0], rank])) else {
        let shape = &target.shape;
        let [name, is, and] = [quoted(&parts.key), format!("{:?}", down.shape()), format!("{:?}", up.shape())];
        let what = format!("{name} has the factors {is} and {and}, the model's weight is {shape:?}");
        return Ok(Err(Misfit { component: target.component, rank, convolution: down.shape().len() == 4, what }));
    };
    if rank == 0 {
        return Err(malformed(format!("the module {} has rank 0", quoted(&parts.key))));
    }
    let scale = match parts.alpha {
        Some(alpha) if alpha.len() == 1 => alpha.to_f32()[0] / rank as f32,
        Some(alpha) => {
            return Err(malformed(format!("{} is {:?}, not one number", quoted(alpha.name()), alpha.shape())));
        }
        None => metadata.scale(target.component, &target.module, rank).unwrap_or(1.0),
    };
    if !scale.is_finite() {
        return Err(malformed(format!("the alpha of {} is not a finite number", quoted(&parts.key))));
    }
    Ok(Ok((view_down, view_up, scale)))
}

/// A tensor under a shape that differs from its own in dimensions of 1 at the end alone.
fn viewed(weight: &Weight, shape: &[usize]) -> Option<Weight> {
    let plain = |shape: &[usize]| shape.iter().rposition(|d| *d != 1).map_or(0, |last| last + 1);
    let same = weight.shape()[..plain(weight.shape())] == shape[..plain(shape)];
    if !same {
        return None;
    }
    if weight.shape() == shape { Some(weight.clone()) } else { weight.reshaped(shape) }
}
