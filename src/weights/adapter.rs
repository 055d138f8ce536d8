//! IP-Adapter files: their tensors under one set of names.

use super::detect::{ADAPTER_ATTENTION, ADAPTER_PROJECTION, AdapterKind, ModelFamily, adapter_kind, detect, strip};
use super::keymap::index;
use super::weight::{Weight, Weights};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// The names of the published files that are supported.
const SUPPORTED: &str =
    "ip-adapter_sdxl, ip-adapter_sdxl_vit-h, ip-adapter-plus_sdxl_vit-h, ip-adapter-plus-face_sdxl_vit-h";

/// Renames the tensors of a base IP-Adapter or of an IP-Adapter Plus.
///
/// Of both: `ip_adapter.1.to_k_ip.weight`, `ip_adapter.1.to_v_ip.weight`, `ip_adapter.3...` and on. Base: `image_proj.proj`
/// and `image_proj.norm`. Plus: `image_proj.latents` `[Q, C]`, `proj_in`, `proj_out`, `norm_out`, and for each layer
/// `layers.0.0.{norm1,norm2,to_q,to_k,to_v,to_out}` and `layers.0.1.{0,1,3}`, as published but for `to_kv`, whose halves are
/// named alone; a resampler with diffusers' own names gets the same ones.
///
/// # Errors
/// [`Error::Mismatch`] where the file is something else, naming what it is; [`Error::Tensors`] where numbers among the
/// attention matrices are missing.
pub fn published(weights: &Weights) -> Result<Weights> {
    let plus = match adapter_kind(weights).filter(|_| matches!(detect(weights), ModelFamily::Adapter(_))) {
        Some(AdapterKind::Base) => false,
        Some(AdapterKind::Plus) => true,
        Some(kind) => {
            let what = format!("this is {kind}; base and Plus adapters for SDXL are supported: {SUPPORTED}");
            return Err(Error::mismatch(weights.path(), what));
        }
        None => {
            let what = format!("this is {}, not an IP-Adapter; give one of {SUPPORTED} here", detect(weights));
            return Err(Error::mismatch(weights.path(), what));
        }
    };
    let mut pairs: BTreeMap<usize, Vec<(&str, &Weight)>> = BTreeMap::new();
    let mut out = Weights::new(weights.path());
    for (name, weight) in weights.iter() {
        match (strip(&ADAPTER_PROJECTION, name), strip(&ADAPTER_ATTENTION, name).and_then(index)) {
            (Some(rest), _) if plus => resampler(&mut out, rest, weight)?,
            (Some(rest), _) => out.insert(format!("image_proj.{rest}"), weight.clone())?,
            (None, Some((n, leaf))) => pairs.entry(n).or_default().push((leaf, weight)),
            (None, None) => {}
        }
    }
    let problems = attention(&mut out, &pairs)?;
    if !problems.is_empty() {
        return Err(Error::Tensors { path: weights.path().to_owned(), model: "IP-Adapter".into(), problems });
    }
    Ok(out)
}

/// Adds the attention matrices; returns what is missing among them.
fn attention(out: &mut Weights, pairs: &BTreeMap<usize, Vec<(&str, &Weight)>>) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for i in 0..pairs.keys().next_back().map_or(1, |last| last / 2 + 1) {
        let n = 2 * i + 1;
        for leaf in ["to_k_ip.weight", "to_v_ip.weight"] {
            match pairs.get(&n).and_then(|pair| pair.iter().find(|(l, _)| *l == leaf)) {
                Some((_, weight)) => out.insert(format!("ip_adapter.{n}.{leaf}"), (*weight).clone())?,
                None => problems.push(format!("ip_adapter.{n}.{leaf} missing")),
            }
        }
    }
    Ok(problems)
}

/// Adds a tensor of a resampler by its name under the image projection.
///
/// # Errors
/// [`Error::Mismatch`] for one that a resampler of an IP-Adapter Plus does not have: without it the result would be another.
fn resampler(out: &mut Weights, name: &str, weight: &Weight) -> Result<()> {
    let mut add = |name: String, weight: Weight| out.insert(format!("image_proj.{name}"), weight);
    if name == "latents" {
        // Published as [1, Q, C].
        let shape = weight.shape();
        let flat = if let [1, q, c] = *shape { weight.reshaped(&[q, c]) } else { None };
        return add(name.into(), flat.unwrap_or_else(|| weight.clone()));
    }
    if ["proj_in.", "proj_out.", "norm_out."].iter().any(|p| name.starts_with(p)) {
        return add(name.into(), weight.clone());
    }
    let layer = name.strip_prefix("layers.").and_then(index);
    let place = layer.and_then(|(i, rest)| {
        let (module, leaf) = rest.rsplit_once('.')?;
        let known = LAYER.iter().find(|(names, _)| names.contains(&module));
        known.map(|(_, to)| (i, *to, leaf))
    });
    match place {
        Some((i, "0.to_kv", leaf)) => {
            let rows = weight.shape().first().copied().unwrap_or(0);
            for (at, half) in ["to_k", "to_v"].into_iter().enumerate() {
                let Some(part) = weight.rows(at * (rows / 2), rows / 2).filter(|_| rows % 2 == 0) else {
                    let what =
                        format!("image_proj.{name} has {rows} rows; those of keys and as many of values are needed");
                    return Err(Error::mismatch(out.path(), what));
                };
                out.insert(format!("image_proj.layers.{i}.0.{half}.{leaf}"), part)?;
            }
            Ok(())
        }
        Some((i, to, leaf)) => add(format!("layers.{i}.{to}.{leaf}"), weight.clone()),
        None => {
            let what =
                format!("image_proj.{name} is no tensor of an IP-Adapter Plus: this resampler is of another kind");
            Err(Error::mismatch(out.path(), what))
        }
    }
}

/// The modules of a resampler's layer: the published name and diffusers', then the one that is given here.
const LAYER: [(&[&str], &str); 10] = [
    (&["0.norm1", "ln0"], "0.norm1"),
    (&["0.norm2", "ln1"], "0.norm2"),
    (&["0.to_q", "attn.to_q"], "0.to_q"),
    (&["0.to_kv", "attn.to_kv"], "0.to_kv"),
    (&["0.to_k", "attn.to_k"], "0.to_k"),
    (&["0.to_v", "attn.to_v"], "0.to_v"),
    (&["0.to_out", "attn.to_out", "attn.to_out.0"], "0.to_out"),
    (&["1.0", "ff.0"], "1.0"),
    (&["1.1", "ff.1.net.0.proj"], "1.1"),
    (&["1.3", "ff.1.net.2"], "1.3"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(names: &[(&str, &[usize])]) -> Weights {
        Weights::absent("a.bin", names)
    }

    #[test]
    fn other_kind() {
        let file = adapter(&[("image_proj.proj.weight", &[3072, 1024]), ("ip_adapter.1.to_k_ip.weight", &[320, 768])]);
        assert!(published(&file).unwrap_err().to_string().contains("Stable Diffusion 1.x"));
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
        let names: Vec<_> = published(&file).unwrap().iter().map(|(n, _)| n.to_owned()).collect();
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
        let text = published(&file).unwrap_err().to_string();
        assert!(text.contains("ip_adapter.1.to_k_ip.weight missing") && text.contains("2 tensor(s)"), "{text}");
    }

    /// A resampler with the published names, then with diffusers' own, gives the same set.
    #[test]
    fn names_of_a_resampler() {
        let layers = |name: &dyn Fn(&str) -> String, kv: bool| {
            let mut names: Vec<(String, Vec<usize>)> = Vec::new();
            names.push(("latents".into(), vec![1, 2, 4]));
            for leaf in ["proj_in.weight", "norm_out.bias"] {
                names.push((leaf.into(), vec![4]));
            }
            let modules = ["0.norm1", "0.norm2", "0.to_q", "0.to_out", "1.0", "1.1", "1.3"];
            names.extend(modules.map(|module| (name(module), vec![4])));
            let (keys, rows) = if kv { (vec!["0.to_kv"], 8) } else { (vec!["0.to_k", "0.to_v"], 4) };
            names.extend(keys.iter().map(|module| (name(module), vec![rows, 4])));
            let mut file = Weights::new("plus.safetensors");
            for (name, shape) in names {
                let weight = Weight::from_f32(&vec![0.5; shape.iter().product()], &shape, &name).unwrap();
                file.insert(format!("image_proj.{name}"), weight).unwrap();
            }
            for part in ["k", "v"] {
                file.insert(format!("ip_adapter.1.to_{part}_ip.weight"), Weight::absent(&[4, 4], "p")).unwrap();
            }
            file
        };
        let own = |module: &str| {
            let (names, _) = LAYER.iter().find(|(_, to)| *to == module).unwrap();
            format!("layers.0.{}.weight", names.last().unwrap())
        };
        let listed = |file: &Weights| {
            published(file).unwrap().iter().map(|(n, w)| (n.to_owned(), w.shape().to_vec())).collect::<Vec<_>>()
        };
        let names = listed(&layers(&|module| format!("layers.0.{module}.weight"), true));
        assert_eq!(names, listed(&layers(&own, false)));
        assert!(names.contains(&("image_proj.latents".into(), vec![2, 4])));
        assert!(names.contains(&("image_proj.layers.0.0.to_v.weight".into(), vec![4, 4])));
        assert_eq!(names.len(), 3 + 9 + 2);
        let mut odd = layers(&own, false);
        odd.insert("image_proj.pos_emb.weight", Weight::absent(&[4, 4], "p")).unwrap();
        assert!(published(&odd).unwrap_err().to_string().contains("image_proj.pos_emb.weight is no tensor"));
    }
}
