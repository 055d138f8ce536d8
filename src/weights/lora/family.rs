//! Refusal of files that are no LoRA, of another method or for another family of models.

use super::keys;
use super::targets::LoraTargets;
use crate::error::{Error, Result};
use crate::weights::Weights;
use crate::weights::detect::{ModelFamily, detect};

/// Refuses a file that is no LoRA, or one of another method.
pub(super) fn demand_lora(weights: &Weights) -> Result<()> {
    if let Some(method) = weights.names().find_map(keys::other_method) {
        return Err(other_method(weights, method));
    }
    let family = detect(weights);
    if family != ModelFamily::Lora {
        return Err(Error::mismatch(weights.path(), format!("this is {family}; a LoRA for SDXL is needed")));
    }
    Ok(())
}

/// The error for a file of another method.
pub(super) fn other_method(weights: &Weights, method: &str) -> Error {
    let what =
        format!("this is {method}, which is not supported; a plain LoRA is needed (lora_down and lora_up, or A and B)");
    Error::mismatch(weights.path(), what)
}

/// Refuses a LoRA that its names or widths tell to be another family's.
pub(super) fn demand_sdxl(weights: &Weights, targets: &LoraTargets) -> Result<()> {
    let Some((family, cause)) = foreign(weights, targets) else { return Ok(()) };
    let what = format!("this is a LoRA for {family} ({cause}); one for SDXL is needed");
    Err(Error::mismatch(weights.path(), what))
}

/// The family that a LoRA is for, where it is another than SDXL, and its mark.
fn foreign(weights: &Weights, targets: &LoraTargets) -> Option<(&'static str, String)> {
    const BLOCKS: [(&str, &str); 6] = [
        ("double_blocks", "Flux"),
        ("single_transformer_blocks", "Flux"),
        ("joint_blocks", "Stable Diffusion 3"),
        ("transformer.transformer_blocks", "Stable Diffusion 3 or another model of transformers"),
        ("lora_prior_", "Stable Cascade"),
        ("lora_transformer_", "a model of transformers"),
    ];
    for (mark, family) in BLOCKS {
        if let Some(name) = weights.names().find(|name| name.contains(mark)) {
            return Some((family, format!("`{name}`")));
        }
    }
    // The text encoder's width behind the cross-attentions.
    let own = targets.cross_attention_dim();
    for (name, weight) in weights.iter() {
        let keys = [".attn2.to_k", "_attn2_to_k", ".attn2.to_v", "_attn2_to_v"];
        let Some((module, keys::Part::Down)) = keys::split(name) else { continue };
        let width = weight.shape().get(1).copied().filter(|_| keys.iter().any(|end| module.ends_with(end)));
        let family = match width {
            width if width == own => None,
            Some(768) => Some("Stable Diffusion 1.x"),
            Some(1024) => Some("Stable Diffusion 2.x"),
            Some(1280) => Some("the SDXL refiner"),
            Some(2048) => Some("SDXL's published sizes"),
            _ => None,
        };
        if let (Some(family), Some(width)) = (family, width) {
            let ours = own.unwrap_or_default();
            return Some((family, format!("its text is {width} wide, this model's {ours}")));
        }
    }
    let name = weights.names().find(|name| name.starts_with("lora_te_"))?;
    let alone = !weights.names().any(|name| name.starts_with("lora_te1_") || name.starts_with("lora_te2_"));
    alone.then(|| ("Stable Diffusion 1.x or 2.x", format!("it names one text encoder: `{name}`")))
}
