//! IP-Adapter files: their tensors under one set of names.

use super::detect::{ADAPTER_ATTENTION, ADAPTER_PROJECTION, AdapterKind, ModelFamily, adapter_kind, detect, strip};
use super::keymap::index;
use super::weight::{Weight, Weights};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Renames the tensors of a base IP-Adapter: `image_proj.proj.weight`, `image_proj.proj.bias`,
/// `image_proj.norm.weight`, `image_proj.norm.bias`, `ip_adapter.1.to_k_ip.weight`, `ip_adapter.1.to_v_ip.weight`,
/// `ip_adapter.3...` and on.
///
/// # Errors
/// [`Error::Mismatch`] where the file is something else, naming what it is; [`Error::Tensors`] where numbers among the
/// attention matrices are missing.
pub fn base(weights: &Weights) -> Result<Weights> {
    match adapter_kind(weights).filter(|_| matches!(detect(weights), ModelFamily::Adapter(_))) {
        Some(AdapterKind::Base) => {}
        Some(kind) => {
            return Err(Error::mismatch(
                weights.path(),
                format!(
                    "this is {kind}; the base IP-Adapters for SDXL are supported: ip-adapter_sdxl, ip-adapter_sdxl_vit-h"
                ),
            ));
        }
        None => {
            let family = detect(weights);
            return Err(Error::mismatch(
                weights.path(),
                format!("this is {family}, not an IP-Adapter; give ip-adapter_sdxl or ip-adapter_sdxl_vit-h here"),
            ));
        }
    }
    let mut pairs: BTreeMap<usize, Vec<(&str, &Weight)>> = BTreeMap::new();
    let mut out = Weights::new(weights.path());
    for (name, weight) in weights.iter() {
        if let Some(rest) = strip(&ADAPTER_PROJECTION, name) {
            out.insert(format!("image_proj.{rest}"), weight.clone())?;
        } else if let Some((n, leaf)) = strip(&ADAPTER_ATTENTION, name).and_then(index) {
            pairs.entry(n).or_default().push((leaf, weight));
        }
    }
    let mut problems = Vec::new();
    for i in 0..pairs.keys().next_back().map_or(0, |last| last / 2 + 1) {
        let n = 2 * i + 1;
        for leaf in ["to_k_ip.weight", "to_v_ip.weight"] {
            match pairs.get(&n).and_then(|pair| pair.iter().find(|(l, _)| *l == leaf)) {
                Some((_, weight)) => out.insert(format!("ip_adapter.{n}.{leaf}"), (*weight).clone())?,
                None => problems.push(format!("ip_adapter.{n}.{leaf} missing")),
            }
        }
    }
    if pairs.is_empty() {
        problems.push("ip_adapter.1.to_k_ip.weight missing".into());
    }
    if !problems.is_empty() {
        return Err(Error::Tensors { path: weights.path().to_owned(), model: "IP-Adapter".into(), problems });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(names: &[(&str, &[usize])]) -> Weights {
        let mut weights = Weights::new("a.bin");
        for (name, shape) in names {
            weights.insert(*name, Weight::absent(shape, *name)).unwrap();
        }
        weights
    }

    #[test]
    fn other_kind() {
        let file = adapter(&[("image_proj.proj.weight", &[3072, 1024]), ("ip_adapter.1.to_k_ip.weight", &[320, 768])]);
        assert!(base(&file).unwrap_err().to_string().contains("Stable Diffusion 1.x"));
    }

    #[test]
    fn prefixes_of_the_training_script() {
        let file = adapter(&[
            ("image_proj_model.proj.weight", &[8, 4]),
            ("adapter_modules.3.to_k_ip.weight", &[6, 2]),
            ("adapter_modules.3.to_v_ip.weight", &[6, 2]),
            ("adapter_modules.1.to_k_ip.weight", &[6, 2]),
            ("adapter_modules.1.to_v_ip.weight", &[6, 2]),
            ("unet.conv_in.weight", &[1]),
        ]);
        let names: Vec<_> = base(&file).unwrap().iter().map(|(n, _)| n.to_owned()).collect();
        let attention = |n: usize, m: &str| format!("ip_adapter.{n}.to_{m}_ip.weight");
        assert_eq!(
            names,
            ["image_proj.proj.weight", &attention(1, "k"), &attention(1, "v"), &attention(3, "k"), &attention(3, "v")]
        );
    }

    #[test]
    fn gaps() {
        let file = adapter(&[
            ("image_proj.proj.weight", &[8, 4]),
            ("ip_adapter.3.to_k_ip.weight", &[6, 2]),
            ("ip_adapter.3.to_v_ip.weight", &[6, 2]),
        ]);
        let text = base(&file).unwrap_err().to_string();
        assert!(text.contains("ip_adapter.1.to_k_ip.weight missing") && text.contains("2 tensor(s)"), "{text}");
    }
}
