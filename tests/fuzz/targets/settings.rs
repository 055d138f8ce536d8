//! Configurations, tokenizers and scales.

use super::*;
use braid::inputs::clip_image_processor::ClipImageProcessor;
use braid::inputs::tokenizer::{Tokenizer, TokenizerProfile};
use braid::models::clip::{ClipTextConfig, ClipVisionConfig};
use braid::models::published;
use braid::models::taesd::TaesdConfig;
use braid::models::unet::UnetConfig;
use braid::models::vae::VaeConfig;
use braid::{Image, Scales, SchedulerConfig, SchedulerKind};
use serde_json::Value;

/// The files of a tokenizer's folder: each after a line `== NAME`.
const TOKENIZER: [&str; 6] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

#[test]
fn tokenizer_files() {
    let dir = tempfile::tempdir().unwrap();
    fuzz(&Target {
        name: "tokenizer_files",
        seeds: seeds("tests/data/fuzz/tokenizer_files"),
        words: &[
            "== vocab.json\n",
            "== merges.txt\n",
            "== tokenizer.json\n",
            "</w>",
            "<|endoftext|>",
            "\"continuing_subword_prefix\":\"longer than any key\"",
            "\"model_max_length\":",
            "\"added_tokens_decoder\":",
            "\"special\":true",
            "\\u0000",
            "\\ud800",
        ],
        longest: 1 << 14,
        repair: repair::nothing,
        read: Box::new(|input| {
            for name in TOKENIZER {
                let _ = std::fs::remove_file(dir.path().join(name));
            }
            for section in input.split_inclusive(|byte| *byte == b'\n').fold(Vec::<Vec<u8>>::new(), sections) {
                for name in TOKENIZER {
                    if let Some(text) = section.strip_prefix(format!("== {name}\n").as_bytes()) {
                        std::fs::write(dir.path().join(name), text).unwrap();
                    }
                }
            }
            let tokenizer = named(Tokenizer::from_folder(dir.path()), &dir.path().display().to_string())?;
            let mut tokens = 0;
            for text in ["", "a b ab", "A <|endoftext|> \u{1f600}\u{301} zz!", "\0\u{1b}[31m"] {
                let ids = [TokenizerProfile::Diffusers, TokenizerProfile::DiffSynth].map(|p| tokenizer.encode(text, p));
                tokens += ids.concat().len();
                assert!(ids.concat().iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "{ids:?}");
                assert_eq!(tokenizer.encode_padded(text).ids.len(), tokenizer.max_length());
            }
            Ok(format!("{} tokens of {} {}", size(tokens), size(tokenizer.vocab_size()), size(tokenizer.max_length())))
        }),
    });
}

/// Gathers lines into sections that begin with `== `.
fn sections(mut all: Vec<Vec<u8>>, line: &[u8]) -> Vec<Vec<u8>> {
    match all.last_mut() {
        Some(last) if !line.starts_with(b"== ") => last.extend(line),
        _ => all.push(line.to_vec()),
    }
    all
}

#[test]
fn configurations() {
    fuzz(&Target {
        name: "configurations",
        seeds: lines("tests/data/fuzz/configurations.jsonl"),
        words: &[
            "\"block_out_channels\":",
            "\"transformer_layers_per_block\":",
            "\"attention_head_dim\":",
            "\"cross_attention_dim\":",
            "\"layers_per_block\":[",
            "\"num_train_timesteps\":",
            "\"beta_schedule\":\"linear\"",
            "\"trained_betas\":[",
            "\"use_karras_sigmas\":true",
            "\"_use_default_values\":[",
            "\"prediction_type\":\"v_prediction\"",
            "\"timestep_spacing\":\"trailing\"",
            "[[[[[[[[",
            "Infinity",
            "1000000",
            "16",
            "-0.0",
        ],
        longest: 1 << 13,
        repair: repair::nothing,
        read: Box::new(configuration),
    });
}

/// Reads a text as the configuration of everything that has one.
fn configuration(input: &[u8]) -> Answer {
    let path = Path::new(FILE);
    let text = std::str::from_utf8(input).map_err(|_| "not UTF-8")?;
    let mut answers = Vec::new();
    let mut tell = |what: &str, answer: Result<String, String>| {
        answers.push(answer.map(|value| format!("{what} {value}")).map_err(|error| format!("{what} {error}")));
    };
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        let tables: [(&str, braid::Result<usize>); 5] = [
            ("unet", UnetConfig::from_json(path, &value).map(|c| c.tensors().len())),
            ("vae", VaeConfig::from_json(path, &value).map(|c| c.decoder_tensors().len() + c.encoder_tensors().len())),
            ("text", ClipTextConfig::from_json(path, &value).map(|c| c.tensors().len())),
            ("vision", ClipVisionConfig::from_json(path, &value).map(|c| c.tensors().len())),
            ("taesd", TaesdConfig::scaling_factor_of(path, &value).map(|factor| usize::from(factor > 1.0))),
        ];
        tables.into_iter().for_each(|(what, answer)| tell(what, named(answer, FILE).map(|n| size(n).to_string())));
        let processor = named(ClipImageProcessor::from_json(path, &value), FILE).map(|processor| {
            let edge = processor.shortest_edge();
            if edge <= 512 {
                processor.preprocess(&Image::new(3, 5, vec![9; 45]).unwrap());
            }
            size(edge).to_string()
        });
        tell("processor", processor);
    }
    tell("scheduler", named(SchedulerConfig::parse(path, text), FILE).and_then(|config| tables(&config)));
    if text.contains("beta") {
        for kind in SchedulerKind::ALL {
            let config = named(SchedulerConfig::parse_as(path, text, *kind), FILE);
            tell(kind.name(), config.and_then(|config| tables(&config)));
        }
    }
    let texts: Vec<String> = answers.iter().map(|answer| answer.clone().unwrap_or_else(|error| error)).collect();
    if answers.iter().any(Result::is_ok) { Ok(texts.join(" ")) } else { Err(texts.join(" ")) }
}

/// The tables of a scheduler for some numbers of steps.
fn tables(config: &SchedulerConfig) -> Answer {
    let mut text = String::new();
    for steps in [1, 7, 50] {
        match config.table(steps).and_then(|_| config.image_to_image_table(steps, 0.6)) {
            Ok(table) => text.push(size(table.steps.len())),
            Err(error) => text.push_str(&error.to_string()),
        }
    }
    Ok(text)
}

#[test]
fn scales() {
    let unet = published::unet();
    fuzz(&Target {
        name: "scales",
        seeds: lines("tests/data/fuzz/scales.txt"),
        words: &[
            "\"down\":",
            "\"mid\":",
            "\"up\":",
            "\"block_0\":",
            "\"block_2\":",
            "block_",
            "style",
            "layout",
            "[0.5,1,0]",
            "[[[",
        ],
        longest: 1 << 12,
        repair: repair::nothing,
        read: Box::new(|input| {
            let text = String::from_utf8_lossy(input);
            let resolve = |strength| Scales::parse(&text, strength).and_then(|scales| scales.resolve(&unet));
            let [one, _, _] = [1.0, -3e38, 0.0].map(resolve);
            let layers = one.map_err(|error| error.to_string())?;
            assert_eq!(layers.len(), 70);
            Ok(format!("{layers:?}"))
        }),
    });
}
