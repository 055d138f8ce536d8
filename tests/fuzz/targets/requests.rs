//! Requests: prompts, lines of a batch, metadata of an image.

use super::*;
use braid::cli::{batch, flags, replay};
use braid::inputs::prompt_weights::{a1111, compel};
use braid::inputs::tokenizer::{Tokenizer, TokenizerProfile};

#[test]
fn prompts() {
    let tokenizers = [Tokenizer::clip().unwrap(), Tokenizer::clip_g().unwrap()];
    fuzz(&Target {
        name: "prompts",
        seeds: lines("tests/data/fuzz/prompts.txt"),
        words: &[
            "(",
            ")",
            "[",
            "]",
            "++",
            ":1.3)",
            ")0.5",
            ".blend(",
            ".and(",
            "\\",
            "\"",
            "BREAK",
            "&amp;",
            "<|endoftext|>",
            "\u{1f468}\u{200d}",
            "\u{3a3}",
            "\u{301}",
        ],
        longest: 1 << 11,
        repair: repair::nothing,
        read: Box::new(|input| {
            let text = String::from_utf8_lossy(input);
            let mut count = 0;
            for tokenizer in &tokenizers {
                for profile in [TokenizerProfile::Diffusers, TokenizerProfile::DiffSynth] {
                    let ids = tokenizer.encode(&text, profile);
                    assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
                    count += ids.len();
                }
                assert_eq!(tokenizer.encode_padded(&text).ids.len(), 77);
                assert!(tokenizer.encode_rows(&text).iter().all(|row| row.len() == 77));
            }
            // The texts of these go into errors that escape them.
            let told = |error: String| braid::error::escape(&error);
            let weighted = a1111(&text).map(|pieces| pieces.len()).map_err(told);
            let joined = compel(&text).map(|parts| parts.len()).map_err(told);
            match (weighted, joined) {
                (Ok(a), Ok(b)) => Ok(format!("{} tokens {} pieces {} parts", size(count), size(a), size(b))),
                (a, b) => Err(format!("{} {}", a.err().unwrap_or_default(), b.err().unwrap_or_default())),
            }
        }),
    });
}

#[test]
fn batch_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("requests.jsonl");
    let command = ["--model", "m", "-p", "x", "--ip-adapter", "a", "--ip-adapter-image", "i.png"];
    let options = flags::parse(lexopt::Parser::from_args(command)).unwrap().unwrap();
    fuzz(&Target {
        name: "batch_files",
        seeds: seeds("tests/data/fuzz/batch_files"),
        words: &[
            "\"prompt\":",
            "\"ip_adapter_image\":[\"a.png\",\"b.png\"],",
            "\"ip_adapter_weight\":[0.5,1],",
            "\"ip_adapter_blocks\":{\"up\":1},",
            "\"ip_adapter_text\":\"a:0.5\",",
            "\"init_img\":\"i.png\",",
            "\"guidance_interval\":\"0.2:0.8\",",
            "\"crop\":\"1,2\",",
            "\"seed\":-1,",
            "\\u001b",
            "}\n{",
        ],
        longest: 1 << 15,
        repair: repair::nothing,
        read: Box::new(|input| {
            std::fs::write(&file, input).unwrap();
            let requests = batch::read(&options, &file).map_err(|failure| told(&failure, "requests.jsonl"))?;
            let images: usize = requests.iter().map(|request| request.adapters.all[0].images.len()).sum();
            Ok(format!("{} requests {} images", size(requests.len()), size(images)))
        }),
    });
}

#[test]
fn png_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.png");
    // A PNG file as it is, or the text of a record.
    let png = |input: &[u8]| match input.starts_with(b"\x89PNG") {
        true => input.to_vec(),
        false => repair::png_with(&[(*b"iTXt", [&b"braid\0\0\0\0\0"[..], input].concat())]),
    };
    let other = repair::png_with(&[(*b"tEXt", b"parameters\0a fox\nSteps: 2, Seed: 1".to_vec())]);
    fuzz(&Target {
        name: "png_metadata",
        seeds: [lines("tests/data/fuzz/png_metadata.jsonl"), seeds("tests/data/fuzz/png_metadata"), vec![other]]
            .concat(),
        words: &[
            "\"generate\",",
            "\"sweep\",",
            "\"--over\",\"seed=1:9:1\",",
            "\"--over\",\"strength=0:1:0.00001\",",
            "\"--steps\",\"4\",",
            "\"--ip-adapter\",\"a\",\"--ip-adapter-image\",\"i\",",
            "\"--lora\",\"l:0.5\",",
            "\"batch_line\":{\"steps\":3},",
            "\"number\":1,",
            "\\u001b[31m",
            "iTXtbraid\0\u{1}\0\0\0",
            "zTXtbraid\0\0",
        ],
        longest: 1 << 15,
        repair: repair::png,
        read: Box::new(|input| {
            std::fs::write(&file, png(input)).unwrap();
            let requests = replay::requests(&file).map_err(|failure| told(&failure, "image.png"))?;
            Ok(format!("{} requests of {} adapters", size(requests.len()), size(requests[0].adapters.all.len())))
        }),
    });
}
