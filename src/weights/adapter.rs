//! IP-Adapter files: which kind one is, and its tensors under one set of names.

use super::keymap::index;
use super::{Weight, Weights};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;

/// The architecture of an IP-Adapter, told by its image projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterKind {
    /// One linear layer and a norm on the image embedding (`ip-adapter_sdxl`, `ip-adapter_sdxl_vit-h`).
    Base,
    /// Base for Stable Diffusion 1.x, whose text is 768 wide.
    BaseSd1,
    /// A resampler on the encoder's hidden states (`ip-adapter-plus*`).
    Plus,
    /// A perceptron on the encoder's hidden states (`ip-adapter-full-face`).
    FullFace,
    /// On a face recognition embedding (`ip-adapter-faceid`).
    FaceId,
    /// On a face recognition embedding and hidden states (`ip-adapter-faceid-plus`).
    FaceIdPlus,
    /// An image projection that is none of these.
    Other,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "a base IP-Adapter for SDXL",
            Self::BaseSd1 => "an IP-Adapter for Stable Diffusion 1.x",
            Self::Plus => "an IP-Adapter Plus",
            Self::FullFace => "an IP-Adapter Full Face",
            Self::FaceId => "an IP-Adapter FaceID",
            Self::FaceIdPlus => "an IP-Adapter FaceID Plus",
            Self::Other => "an IP-Adapter of an unknown kind",
        })
    }
}

/// Prefixes of the attention matrices, then of the projection: as published, and as the training script leaves them.
const ATTENTION: [&str; 3] = ["ip_adapter.adapter_modules.", "ip_adapter.", "adapter_modules."];
const PROJECTION: [&str; 2] = ["image_proj.", "image_proj_model."];

fn strip<'a>(prefixes: &[&str], name: &'a str) -> Option<&'a str> {
    prefixes.iter().find_map(|p| name.strip_prefix(p))
}

/// The kind of IP-Adapter, or `None` where the tensors are no IP-Adapter's.
pub fn kind(weights: &Weights) -> Option<AdapterKind> {
    if !weights.iter().any(|(n, _)| strip(&ATTENTION, n).is_some() || strip(&PROJECTION, n).is_some()) {
        return None;
    }
    let has = |leaf: &str| PROJECTION.iter().any(|p| weights.get(&format!("{p}{leaf}")).is_some());
    let context = weights.iter().find(|(n, _)| n.ends_with(".to_k_ip.weight")).and_then(|(_, w)| w.shape().get(1));
    // The order is diffusers': a Plus file has none of the earlier keys, a FaceID file has only the norm.
    Some(if has("proj.weight") {
        if context == Some(&768) { AdapterKind::BaseSd1 } else { AdapterKind::Base }
    } else if has("proj.3.weight") {
        AdapterKind::FullFace
    } else if has("perceiver_resampler.proj_in.weight") {
        AdapterKind::FaceIdPlus
    } else if has("latents") {
        AdapterKind::Plus
    } else if has("norm.weight") {
        AdapterKind::FaceId
    } else {
        AdapterKind::Other
    })
}

/// The tensors of a base IP-Adapter, named `image_proj.proj.weight`, `image_proj.proj.bias`, `image_proj.norm.weight`,
/// `image_proj.norm.bias`, `ip_adapter.1.to_k_ip.weight`, `ip_adapter.1.to_v_ip.weight`, `ip_adapter.3...` and on.
///
/// # Errors
/// [`Error::Mismatch`] where the file is something else, naming what it is; [`Error::Tensors`] where numbers among the
/// attention matrices are missing.
pub fn base(weights: &Weights) -> Result<Weights> {
    match kind(weights) {
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
            let family = super::detect::detect(weights);
            return Err(Error::mismatch(
                weights.path(),
                format!("this is {family}, not an IP-Adapter; give ip-adapter_sdxl or ip-adapter_sdxl_vit-h here"),
            ));
        }
    }
    let mut pairs: BTreeMap<usize, Vec<(&str, &Weight)>> = BTreeMap::new();
    let mut out = Weights::new(weights.path());
    for (name, weight) in weights.iter() {
        if let Some(rest) = strip(&PROJECTION, name) {
            out.insert(format!("image_proj.{rest}"), weight.clone())?;
        } else if let Some((n, leaf)) = strip(&ATTENTION, name).and_then(index) {
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
    fn kinds_by_key() {
        let pair: (&str, &[usize]) = ("ip_adapter.1.to_k_ip.weight", &[640, 2048]);
        for (key, expected) in [
            ("proj.weight", AdapterKind::Base),
            ("proj.3.weight", AdapterKind::FullFace),
            ("perceiver_resampler.proj_in.weight", AdapterKind::FaceIdPlus),
            ("latents", AdapterKind::Plus),
            ("norm.weight", AdapterKind::FaceId),
            ("x", AdapterKind::Other),
        ] {
            let file = adapter(&[(&format!("image_proj.{key}"), &[8192, 1280]), pair]);
            assert_eq!(kind(&file), Some(expected), "{key}");
        }
        let file = adapter(&[("image_proj.proj.weight", &[3072, 1024]), ("ip_adapter.1.to_k_ip.weight", &[320, 768])]);
        assert_eq!(kind(&file), Some(AdapterKind::BaseSd1));
        assert!(base(&file).unwrap_err().to_string().contains("Stable Diffusion 1.x"));
        assert_eq!(kind(&adapter(&[("vision_model.x", &[1])])), None);
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
    fn a_gap_is_named() {
        let file = adapter(&[
            ("image_proj.proj.weight", &[8, 4]),
            ("ip_adapter.3.to_k_ip.weight", &[6, 2]),
            ("ip_adapter.3.to_v_ip.weight", &[6, 2]),
        ]);
        let text = base(&file).unwrap_err().to_string();
        assert!(text.contains("ip_adapter.1.to_k_ip.weight missing") && text.contains("2 tensor(s)"), "{text}");
    }
}
