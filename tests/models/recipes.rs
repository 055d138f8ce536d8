//! Every golden case's files are made, opened and read: the tensors of each are exactly those that its configuration,
//! from `config.json` or inferred, demands.

use braid::models::clip::{Activation, ClipTextConfig, ClipVisionConfig};
use braid::models::compatibility;
use braid::models::ip_adapter::AdapterConfig;
use braid::models::unet::UnetConfig;
use braid::models::vae::VaeConfig;
use braid::weights::detect::{ModelFamily, detect};
use braid::weights::{self, OpenOptions, TensorTable, Weights, adapter, single_file};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn cases() -> Vec<PathBuf> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let mut cases = Vec::new();
    for profile in ["diffsynth", "diffusers"] {
        for entry in std::fs::read_dir(goldens.join(profile)).unwrap() {
            let recipe = entry.unwrap().path().join("recipe.json");
            if recipe.exists() {
                cases.push(recipe);
            }
        }
    }
    cases.sort();
    cases
}

fn open(path: &Path) -> Weights {
    weights::open(path, &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Compares names and shapes; 1x1 convolutions count as matrices.
fn compare(what: &str, weights: &Weights, table: &TensorTable) {
    let squeezed = |shape: &[usize]| match shape {
        [rest @ .., 1, 1] => rest.to_vec(),
        _ => shape.to_vec(),
    };
    let expected: BTreeMap<_, _> = table.iter().map(|(n, s)| (n.as_str(), squeezed(s))).collect();
    let found: BTreeMap<_, _> =
        weights.iter().filter(|(n, _)| !n.ends_with("position_ids")).map(|(n, w)| (n, squeezed(w.shape()))).collect();
    for (name, shape) in &expected {
        assert_eq!(found.get(name), Some(shape), "{what}: {name}");
    }
    let extra: Vec<_> = found.keys().filter(|n| !expected.contains_key(*n)).collect();
    assert!(extra.is_empty(), "{what}: {extra:?}");
}

fn vae_table(config: &VaeConfig, weights: &Weights) -> TensorTable {
    let encoder = weights.get("encoder.conv_in.weight").is_some();
    let mut table = config.decoder_tensors();
    if encoder {
        table.extend(config.encoder_tensors());
    }
    table
}

/// A single file: configurations are inferred.
fn single(path: &Path) -> UnetConfig {
    let checkpoint = open(path);
    let parts = single_file::split(&checkpoint).unwrap_or_else(|e| panic!("{e}"));
    let text = ClipTextConfig::from_tensors(&parts.text_encoder, Activation::QuickGelu).unwrap();
    let text_2 = ClipTextConfig::from_tensors(&parts.text_encoder_2, Activation::Gelu).unwrap();
    let unet = UnetConfig::from_tensors(&parts.unet, text_2.projection_dim).unwrap_or_else(|e| panic!("{e}"));
    let vae = VaeConfig::from_tensors(&parts.vae).unwrap_or_else(|e| panic!("{e}"));
    compare("unet", &parts.unet, &unet.tensors());
    compare("text", &parts.text_encoder, &text.tensors());
    compare("text 2", &parts.text_encoder_2, &text_2.tensors());
    compare("vae", &parts.vae, &vae_table(&vae, &parts.vae));
    compatibility::text_encoders_with_unet(&text, &text_2, (path, &unet)).unwrap();
    compatibility::vae_with_unet((path, &vae), (path, &unet)).unwrap();
    assert!(braid::inspect::inspect(path, &checkpoint).unwrap().supported);
    unet
}

/// A diffusers folder: configurations are read.
fn folder(dir: &Path) -> UnetConfig {
    let json = |part: &str| -> (PathBuf, serde_json::Value) {
        let path = dir.join(part).join("config.json");
        let value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        (path, value)
    };
    let (path, value) = json("unet");
    let unet = UnetConfig::from_json(&path, &value).unwrap_or_else(|e| panic!("{e}"));
    compare("unet", &open(&dir.join("unet")), &unet.tensors());
    let mut texts = Vec::new();
    for part in ["text_encoder", "text_encoder_2"] {
        let (path, value) = json(part);
        let config = ClipTextConfig::from_json(&path, &value).unwrap_or_else(|e| panic!("{e}"));
        let weights = single_file::text_encoder(&open(&dir.join(part))).unwrap();
        compare(part, &weights, &config.tensors());
        texts.push(config);
    }
    compatibility::text_encoders_with_unet(&texts[0], &texts[1], (dir, &unet)).unwrap();
    let (path, value) = json("vae");
    let vae = VaeConfig::from_json(&path, &value).unwrap_or_else(|e| panic!("{e}"));
    let weights = single_file::vae(&open(&dir.join("vae"))).unwrap();
    compare("vae", &weights, &vae_table(&vae, &weights));
    compatibility::vae_with_unet((dir, &vae), (dir, &unet)).unwrap();
    unet
}

#[test]
fn files_of_every_case() {
    let cases = cases();
    assert!(cases.len() >= 17, "{cases:?}");
    let (mut adapters, mut encoders) = (0, 0);
    for recipe in cases {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        println!("{}", recipe.display());
        braid::synthetic::from_recipe(&recipe, dir).unwrap();
        let checkpoint = dir.join("sdxl.safetensors");
        let unet = if checkpoint.exists() { single(&checkpoint) } else { folder(dir) };
        let mut vision = None;
        if dir.join("image_encoder").exists() {
            let config = dir.join("image_encoder/config.json");
            let value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
            let config = ClipVisionConfig::from_json(&config, &value).unwrap();
            let weights = open(&dir.join("image_encoder"));
            compare("image encoder", &weights, &config.tensors());
            // Only heads, activation and epsilon cannot be told from the tensors.
            let inferred = ClipVisionConfig::from_tensors(&weights).unwrap();
            let known = ClipVisionConfig {
                num_attention_heads: config.num_attention_heads,
                activation: config.activation,
                eps: config.eps,
                ..inferred
            };
            assert_eq!(known, config);
            vision = Some(config);
            encoders += 1;
        }
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if !path.file_name().unwrap().to_string_lossy().starts_with("ip-adapter") {
                continue;
            }
            let weights = open(&path);
            assert!(matches!(detect(&weights), ModelFamily::Adapter(_)));
            let weights = adapter::published(&weights).unwrap_or_else(|e| panic!("{e}"));
            let config = AdapterConfig::from_tensors(&weights).unwrap();
            compare("adapter", &weights, &config.tensors());
            compatibility::adapter_with_unet((&path, &config), (dir, &unet)).unwrap_or_else(|e| panic!("{e}"));
            if let Some(vision) = &vision {
                compatibility::adapter_with_image_encoder((&path, &config), (dir, vision))
                    .unwrap_or_else(|e| panic!("{e}"));
            }
            adapters += 1;
        }
    }
    assert!(adapters >= 10 && encoders >= 10, "{adapters} {encoders}");
}
