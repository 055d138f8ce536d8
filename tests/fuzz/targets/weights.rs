//! Files of weights, of LoRAs and of image prompts.

use super::*;
use crate::zip::zip;
use braid::EncodedImage;
use braid::models::published;
use braid::tensor::DType;
use braid::weights::lora::{Lora, LoraComponent, LoraSet, LoraTargets};
use braid::weights::{MappedBytes, OpenOptions, Weights, safetensors, torch};
use std::sync::Arc;

/// Reads all that `braid inspect` does of tensors, and every value.
fn looked_at(weights: &Weights) -> Answer {
    let values: usize = weights.iter().map(|(_, weight)| weight.to_f32().len()).sum();
    let report = named(braid::inspect::inspect(Path::new(FILE), weights), FILE)?;
    let text = report.to_string();
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    serde_json::to_string(&report).unwrap();
    Ok(format!("{} of {} tensors {} values", report.family, size(weights.len()), size(values)))
}

/// Writes tensors as a safetensors file with the format's own writer.
fn written(weights: &Weights) -> Vec<u8> {
    let view = |(name, weight): (&str, &braid::weights::Weight)| {
        let dtype = match weight.dtype() {
            DType::F32 => ::safetensors::Dtype::F32,
            DType::F16 => ::safetensors::Dtype::F16,
            _ => ::safetensors::Dtype::BF16,
        };
        let bytes = weight.bytes().to_vec();
        (name.to_owned(), (dtype, weight.shape().to_vec(), bytes))
    };
    let all: Vec<_> = weights.iter().map(view).collect();
    let views = all.iter().map(|(name, (dtype, shape, bytes))| {
        (name, ::safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    ::safetensors::serialize(views, Some(weights.metadata().clone().into_iter().collect())).unwrap()
}

fn same(a: &Weights, b: &Weights) -> bool {
    let all = |weights: &Weights| -> Vec<_> {
        let tensor = |(name, w): (&str, &braid::weights::Weight)| {
            (name.to_owned(), w.dtype(), w.shape().to_vec(), w.bytes().to_vec())
        };
        weights.iter().map(tensor).collect()
    };
    all(a) == all(b) && a.metadata() == b.metadata()
}

const SAFETENSORS: [&str; 16] = [
    "\"dtype\":\"F16\"",
    "\"dtype\":\"F8_E4M3\"",
    "\"dtype\":\"I64\"",
    "\"shape\":[]",
    "\"shape\":[0]",
    "\"data_offsets\":[0,0]",
    "\"__metadata__\":{\"format\":\"pt\"},",
    "[[[[[[[[[[",
    "{\"a\":{\"b\":{",
    "\\u0000",
    "\\ud800",
    "\\u001b[31m",
    ".weight",
    ".weight_scale",
    "model.diffusion_model.",
    "conditioner.embedders.1.",
];

#[test]
fn safetensors_headers() {
    fuzz(&Target {
        name: "safetensors_headers",
        seeds: [seeds("tests/data/fuzz/safetensors_headers"), seeds("tests/data/fuzz/lora_files")].concat(),
        words: &SAFETENSORS,
        longest: 1 << 15,
        repair: repair::header,
        read: Box::new(|input| {
            let storage = Arc::new(MappedBytes::owned(input.to_vec()));
            let weights = named(safetensors::read(storage, Path::new(FILE)), FILE)?;
            // The format's own reader accepts whatever is accepted here, and what it writes is read as the same.
            assert!(::safetensors::SafeTensors::deserialize(input).is_ok());
            if !weights.is_empty() {
                let again = Arc::new(MappedBytes::owned(written(&weights)));
                assert!(same(&safetensors::read(again, Path::new(FILE)).unwrap(), &weights));
            }
            looked_at(&weights)
        }),
    });
}

#[test]
fn shard_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, index) = (dir.path().display().to_string(), dir.path().join("model.safetensors.index.json"));
    for (name, tensor) in [("one.safetensors", "a"), ("two.safetensors", "b")] {
        let header = format!(r#"{{"{tensor}":{{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}}}"#);
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0, 60, 0, 64]].concat();
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    fuzz(&Target {
        name: "shard_indexes",
        seeds: lines("tests/data/fuzz/shard_indexes.jsonl"),
        words: &[
            "\"weight_map\":",
            "../",
            "/etc/passwd",
            "one.safetensors",
            "two.safetensors",
            "\\u0000",
            "..",
            "\\\\",
            "c:",
        ],
        longest: 1 << 14,
        repair: repair::nothing,
        read: Box::new(|input| {
            std::fs::write(&index, input).unwrap();
            let weights = named(braid::weights::open(&index, &OpenOptions::default()), &folder)?;
            Ok(format!("{} tensors", weights.names().collect::<Vec<_>>().join(" ")))
        }),
    });
}

/// A file as it is, or a pickle as the pickle of an archive with the storages of tests/data/weights/adapter.bin.
fn archive(input: &[u8]) -> Vec<u8> {
    if input.starts_with(b"PK") {
        return input.to_vec();
    }
    let sizes = [24, 6, 8, 48, 4];
    let names: Vec<String> = (0..sizes.len()).map(|i| format!("a/data/{i}")).collect();
    let storages = names.iter().zip(sizes).map(|(name, size)| (name.as_str(), &[0x3c; 48][..size]));
    zip(&[("a/data.pkl", input)].into_iter().chain(storages).collect::<Vec<_>>(), false)
}

#[test]
fn torch_files() {
    let files = seeds("tests/data/weights");
    let pickle = |file: &Vec<u8>| {
        let begin = file.windows(2).position(|w| w == b"\x80\x02")?;
        let end = file.windows(4).position(|w| w == b"PK\x07\x08")?;
        file.get(begin..end).map(<[u8]>::to_vec)
    };
    let pickles: Vec<Vec<u8>> = files.iter().filter_map(pickle).collect();
    fuzz(&Target {
        name: "torch_files",
        seeds: [files, pickles, seeds("tests/data/fuzz/torch_files")].concat(),
        words: &[
            "ctorch._utils\n_rebuild_tensor_v2\n",
            "ctorch\nFloatStorage\n",
            "ccollections\nOrderedDict\n",
            "cos\nsystem\n",
            "\u{2}}q\0",
            "(K\u{1}K\u{2}t",
            "h\0h\0",
            "X\u{1}\0\0\0w",
            "tR",
            "PK\u{3}\u{4}",
            "PK\u{1}\u{2}",
            "PK\u{5}\u{6}",
        ],
        longest: 1 << 15,
        repair: repair::nothing,
        read: Box::new(|input| {
            let storage = Arc::new(MappedBytes::owned(archive(input)));
            looked_at(&named(torch::read(storage, Path::new(FILE)), FILE)?)
        }),
    });
}

#[test]
fn lora_files() {
    let text = [published::text().tensors(), published::text_2().tensors()];
    let targets = LoraTargets::new(&published::unet().tensors(), text.each_ref().map(Vec::as_slice));
    fuzz(&Target {
        name: "lora_files",
        seeds: seeds("tests/data/fuzz/lora_files"),
        words: &[
            "lora_unet_down_blocks_1_attentions_0_proj_in",
            "unet.down_blocks.1.attentions.0.proj_in",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            ".lora_down.weight",
            ".lora_up.weight",
            ".lora_A.weight",
            ".alpha",
            ".dora_scale",
            ".hada_w1_a",
            "\"shape\":[1,640]",
            "\"ss_base_model_version\":\"sdxl_base_v1-0\"",
        ],
        longest: 1 << 15,
        repair: repair::header,
        read: Box::new(|input| {
            let storage = Arc::new(MappedBytes::owned(input.to_vec()));
            let weights = named(safetensors::read(storage, Path::new(FILE)), FILE)?;
            let lora = named(Lora::read(&weights, &targets), FILE)?;
            let (modules, unused) = (lora.modules.len(), lora.unused.len());
            let twice = [lora.clone(), lora];
            let ranks = LoraComponent::ALL.map(|part| LoraSet::new(part, &twice).scales(&[0.5, 2.0]).len());
            Ok(format!("modules {} unused {} ranks {:?}", size(modules), size(unused), ranks.map(size)))
        }),
    });
}

#[test]
fn image_prompt_files() {
    let dir = tempfile::tempdir().unwrap();
    let [file, again, more] =
        ["image.safetensors", "again.safetensors", "more.safetensors"].map(|n| dir.path().join(n));
    fuzz(&Target {
        name: "image_prompt_files",
        seeds: seeds("tests/data/fuzz/image_prompt_files"),
        words: &[
            "\"image_embeds\"",
            "\"image_hidden\"",
            "\"image_tokens\"",
            "\"zero_hidden\"",
            "\"resize\":\"8x8\"",
            "\"fit\":\"pad\"",
            "\"version\":\"1\"",
            "\\\"width\\\":",
            "\"dtype\":\"F32\"",
        ],
        longest: 1 << 14,
        repair: repair::image_prompt,
        read: Box::new(|input| {
            std::fs::write(&file, input).unwrap();
            let images = named(EncodedImage::load(&file), "image.safetensors")?;
            // What is written of it is read as the same, and written as the same again.
            EncodedImage::save(&images, &again).unwrap();
            let read = EncodedImage::load(&again).unwrap();
            EncodedImage::save(&read, &more).unwrap();
            assert!(std::fs::read(&again).unwrap() == std::fs::read(&more).unwrap());
            let parts = |images: &[EncodedImage]| -> Vec<_> {
                let part =
                    |i: &EncodedImage| (i.embedding().to_vec(), i.tokens().to_vec(), i.num_tokens(), i.source_size());
                images.iter().map(part).collect()
            };
            assert!(parts(&read) == parts(&images));
            Ok(format!("{} images of {} tokens", size(images.len()), size(images[0].num_tokens())))
        }),
    });
}
