//! Names and shapes against diffusers' own converters and the peers' models (`tools/goldens/layouts.py`).

use braid::models::clip::{Activation, ClipTextConfig, ClipVisionConfig};
use braid::models::ip_adapter::AdapterConfig;
use braid::models::published;
use braid::models::unet::UnetConfig;
use braid::models::vae::VaeConfig;
use braid::synthetic::{self, Stored, TensorSpec};
use braid::tensor::DType;
use braid::weights::adapter;
use braid::weights::detect::{AdapterKind, ModelFamily, adapter_kind, detect};
use braid::weights::{MappedBytes, Weight, Weights, single_file};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const SINGLE_FILE: &str = include_str!("../goldens/layouts/single_file.tsv");
const VISION: &str = include_str!("../goldens/layouts/vision.tsv");
const ADAPTER: &str = include_str!("../goldens/layouts/adapter.tsv");

fn shape(text: &str) -> Vec<usize> {
    text.split('x').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect()
}

/// A file of these tensors whose bytes are all one block of zeros; integers are left out, as the readers leave them.
fn file(tensors: &[TensorSpec]) -> Weights {
    let largest = tensors.iter().filter_map(TensorSpec::bytes).max().unwrap();
    let zeros = Arc::new(MappedBytes::owned(vec![0; largest]));
    let mut weights = Weights::new("sdxl.safetensors");
    for tensor in tensors {
        if let Stored::Float(dtype) = tensor.dtype {
            let name = tensor.name.as_str();
            let view = Weight::new(zeros.clone(), 0, dtype, tensor.shape.clone(), name).unwrap();
            weights.insert(name, view).unwrap();
        }
    }
    weights
}

#[test]
fn sdxl_names() {
    let checkpoint = file(&synthetic::checkpoint_tensors());
    assert_eq!(detect(&checkpoint), ModelFamily::Sdxl);
    let parts = single_file::split(&checkpoint).unwrap();
    let mut left: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let of = |part: &str| match part {
        "unet" => &parts.unet,
        "text_encoder" => &parts.text_encoder,
        "text_encoder_2" => &parts.text_encoder_2,
        _ => &parts.vae,
    };
    for part in ["unet", "text_encoder", "text_encoder_2", "vae"] {
        left.insert(part, of(part).iter().map(|(n, _)| n).collect());
    }
    let mut count = 0;
    for line in SINGLE_FILE.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        let (original, part, name) = (fields[0], fields[1], fields[2]);
        let weight = of(part).get(name).unwrap_or_else(|| panic!("{part}: {name} missing"));
        assert_eq!(weight.name(), original, "{name}");
        assert_eq!(weight.shape(), shape(fields[3]), "{name}");
        assert!(left.get_mut(part).unwrap().remove(name));
        let transposed = !weight.is_contiguous();
        assert_eq!(transposed, fields.get(4) == Some(&"T"), "{name}");
        // A third of a fused tensor begins where the converter takes it.
        let third: usize = fields.get(4).and_then(|n| n.parse().ok()).unwrap_or(0);
        let whole = checkpoint.get(original).unwrap().bytes().as_ptr() as usize;
        let elements = third * weight.len();
        assert_eq!(weight.bytes().as_ptr() as usize - whole, elements * weight.dtype().size(), "{name}");
        count += 1;
    }
    assert_eq!(count, 2641);
    assert!(left.values().all(BTreeSet::is_empty), "{left:?}");
    // Configurations inferred from these tensors are the published ones.
    assert_eq!(UnetConfig::from_tensors(&parts.unet, Some(1280)).unwrap(), published::unet());
    assert_eq!(UnetConfig::from_tensors(&parts.unet, None).unwrap(), published::unet());
    assert_eq!(ClipTextConfig::from_tensors(&parts.text_encoder, Activation::QuickGelu).unwrap(), published::text());
    assert_eq!(ClipTextConfig::from_tensors(&parts.text_encoder_2, Activation::Gelu).unwrap(), published::text_2());
    assert_eq!(VaeConfig::from_tensors(&parts.vae).unwrap(), published::vae());
}

#[test]
fn synthetic_checkpoint_names() {
    let expected: BTreeSet<&str> = SINGLE_FILE.lines().map(|l| l.split('\t').next().unwrap()).collect();
    let tensors = synthetic::checkpoint_tensors();
    let mut found: BTreeSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    assert!(found.remove("conditioner.embedders.0.transformer.text_model.embeddings.position_ids"));
    assert!(found.remove("conditioner.embedders.1.model.logit_scale"));
    assert_eq!(found, expected);
}

#[test]
fn tables_of_the_parts() {
    let mut expected: BTreeMap<&str, BTreeMap<&str, Vec<usize>>> = BTreeMap::new();
    for line in SINGLE_FILE.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        expected.entry(fields[1]).or_default().insert(fields[2], shape(fields[3]));
    }
    for line in VISION.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        expected.entry(fields[0]).or_default().insert(fields[1], shape(fields[2]));
    }
    let vae = [published::vae().decoder_tensors(), published::vae().encoder_tensors()].concat();
    let h = ClipVisionConfig {
        hidden_size: 1280,
        num_hidden_layers: 32,
        intermediate_size: 5120,
        projection_dim: 1024,
        ..published::vision()
    };
    for (part, table) in [
        ("unet", published::unet().tensors()),
        ("text_encoder", published::text().tensors()),
        ("text_encoder_2", published::text_2().tensors()),
        ("vae", vae),
        ("bigg", published::vision().tensors()),
        ("h", h.tensors()),
    ] {
        let found: BTreeMap<&str, Vec<usize>> = table.iter().map(|(n, s)| (n.as_str(), s.clone())).collect();
        assert_eq!(found.len(), table.len(), "{part}: a name twice");
        assert_eq!(found, expected[part], "{part}");
    }
    let vision = file(&synthetic::vision_tensors());
    assert_eq!(detect(&vision), ModelFamily::VisionEncoder);
    assert_eq!(ClipVisionConfig::from_tensors(&vision).unwrap(), published::vision());
}

#[test]
fn adapter_attention_order() {
    let expected: Vec<usize> = ADAPTER.lines().map(|l| l.rsplit('\t').next().unwrap().parse().unwrap()).collect();
    assert_eq!(expected.len(), 70);
    assert_eq!(published::unet().cross_attention_widths(), expected);
    let weights = file(&synthetic::adapter_tensors());
    assert_eq!(adapter_kind(&weights), Some(AdapterKind::Base));
    let config = AdapterConfig::from_tensors(&adapter::published(&weights).unwrap()).unwrap();
    assert_eq!(config, published::adapter());
    for line in ADAPTER.lines() {
        let number = line.split('\t').next().unwrap();
        assert!(weights.get(&format!("ip_adapter.{number}.to_k_ip.weight")).is_some());
    }
}

/// A small UNet of the same kind with one resnet a level and two levels, there and back.
#[test]
fn a_small_structure() {
    let config = UnetConfig {
        block_out_channels: vec![64, 128],
        layers_per_block: 1,
        transformer_layers_per_block: vec![0, 2],
        num_attention_heads: vec![1, 2],
        cross_attention_dim: 96,
        addition_time_embed_dim: 8,
        projection_class_embeddings_input_dim: 32 + 48,
        ..published::unet()
    };
    let mut tensors = Vec::new();
    for (name, shape) in config.tensors() {
        tensors.push(TensorSpec { name, shape, dtype: Stored::Float(DType::F32), scale: 1.0, offset: 0.0, seed: 0 });
    }
    let weights = file(&tensors);
    assert_eq!(UnetConfig::from_tensors(&weights, Some(32)).unwrap(), config);
    // The first up block with fewer transformer layers, as distilled models have it.
    let mut fewer = Weights::new("ssd");
    for (name, weight) in
        weights.iter().filter(|(n, _)| !n.starts_with("up_blocks.0.attentions.1.transformer_blocks.1."))
    {
        fewer.insert(name, weight.clone()).unwrap();
    }
    let pruned = UnetConfig::from_tensors(&fewer, Some(32)).unwrap();
    assert_eq!(pruned.pruned.as_ref().unwrap().up, [vec![2, 1], vec![0, 0]]);
    let names = |table: &[(String, Vec<usize>)]| table.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
    assert!(fewer.iter().map(|(name, _)| name.to_owned()).eq(names(&pruned.tensors())));
    // One from the midst: no model has that.
    let mut damaged = Weights::new("damaged");
    let gone = "up_blocks.0.attentions.1.transformer_blocks.0.";
    for (name, weight) in weights.iter().filter(|(n, _)| !n.starts_with(gone)) {
        damaged.insert(name, weight.clone()).unwrap();
    }
    let text = UnetConfig::from_tensors(&damaged, Some(32)).unwrap_err().to_string();
    assert!(text.contains("up_blocks.0.attentions.1.transformer_blocks.0 is missing"), "{text}");
}

#[test]
fn reports() {
    let path = std::path::Path::new("sdxl.safetensors");
    let report = braid::inspect::inspect(path, &file(&synthetic::checkpoint_tensors())).unwrap();
    let text = report.to_string();
    assert!(report.supported, "{text}");
    let parts: Vec<_> = report.components.iter().map(|p| (p.name.as_str(), p.tensors, p.parameters)).collect();
    // Parameter counts as the peers' models give them.
    assert_eq!(
        parts,
        [
            ("unet", 1680, 2_567_463_684),
            ("text_encoder", 196, 123_060_480),
            ("text_encoder_2", 517, 694_659_840),
            ("vae", 248, 83_653_863)
        ]
    );
    assert!(text.contains("70 pairs") && text.contains("ip-adapter_sdxl_vit-h"), "{text}");
    let report = braid::inspect::inspect(path, &file(&synthetic::vision_tensors())).unwrap();
    assert!(report.to_string().contains("ViT-bigG/14"), "{report}");
    let report = braid::inspect::inspect(path, &file(&synthetic::adapter_tensors())).unwrap();
    assert!(report.fits[1].starts_with("SDXL base") && report.fits[0].contains("ViT-bigG"), "{report}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["parts"][1]["tensors"], 140);
}
