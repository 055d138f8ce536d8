//! The targets: every reader of files and texts that strangers write.

use crate::driver::{Answer, Target, fuzz};
use crate::repair;
use crate::zip::zip;
use braid::cli::failure::Failure;
use braid::cli::flags::{self, FlagNames};
use braid::cli::{batch, replay};
use braid::error::Error;
use braid::inputs::clip_image_processor::{self, ClipImageProcessor};
use braid::inputs::prompt_weights::{a1111, compel};
use braid::inputs::tokenizer::{Tokenizer, TokenizerProfile};
use braid::models::clip::{ClipTextConfig, ClipVisionConfig};
use braid::models::published;
use braid::models::taesd::TaesdConfig;
use braid::models::unet::UnetConfig;
use braid::models::vae::VaeConfig;
use braid::tensor::DType;
use braid::weights::lora::{Lora, LoraComponent, LoraSet, LoraTargets};
use braid::weights::{MappedBytes, OpenOptions, Weights, safetensors, torch};
use braid::{AlphaMode, EncodedImage, Image, Scales, SchedulerConfig, SchedulerKind};
use image::ImageReader;
use serde_json::Value;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of an input in errors.
const FILE: &str = "mutated.file";

fn data(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// The files of a folder, in the order of their names, but large ones.
fn seeds(folder: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(data(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).filter(|bytes| bytes.len() <= 20 << 10).collect()
}

/// The lines of a file.
fn lines(file: &str) -> Vec<Vec<u8>> {
    std::fs::read_to_string(data(file)).unwrap().lines().map(|line| line.as_bytes().to_vec()).collect()
}

/// A size as a letter, so that another order of magnitude is another kind of answer.
fn size(n: usize) -> char {
    (b'a' + n.checked_ilog2().map_or(0, |bits| bits as u8 / 2 + 1)) as char
}

/// The text of an error, which names the file.
fn named<T>(result: braid::Result<T>, file: &str) -> Result<T, String> {
    result.map_err(|error| {
        let text = error.to_string();
        assert!(text.contains(file) || matches!(error, Error::Parameter { .. }), "no `{file}` in: {text}");
        text
    })
}

fn told(failure: &Failure, file: &str) -> String {
    let text = failure.text(&FlagNames).unwrap();
    assert!(text.contains(file), "no `{file}` in: {text}");
    text
}

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

/// The pixels that a file promises; a decoder that is asked for many takes long, which is no fault.
fn promised(input: &[u8]) -> u64 {
    let reader = ImageReader::new(Cursor::new(input)).with_guessed_format().ok();
    let plain = reader.and_then(|reader| reader.into_dimensions().ok()).map(|(w, h)| u64::from(w) * u64::from(h));
    // All frame headers, and all that look like one.
    let number = |at: usize| input.get(at..at + 2).map_or(0, |b| u64::from(b[0]) << 8 | u64::from(b[1]));
    let frames = input.windows(2).enumerate().filter(|(_, w)| w[0] == 0xff && (0xc0..=0xcf).contains(&w[1]));
    let jpeg = frames.map(|(at, _)| number(at + 5) * number(at + 7)).filter(|_| input.starts_with(b"\xff\xd8")).max();
    plain.unwrap_or(0).max(jpeg.unwrap_or(0)).max(gif(input).unwrap_or(0))
}

fn gif(input: &[u8]) -> Option<u64> {
    let mut decoder = ::gif::DecodeOptions::new().read_info(Cursor::new(input)).ok()?;
    let screen = [decoder.width(), decoder.height()].map(u64::from);
    let frame = decoder.next_frame_info().ok()??;
    let ends = [(frame.left, frame.width), (frame.top, frame.height)].map(|(a, b)| u64::from(a) + u64::from(b));
    Some(screen[0].max(ends[0]) * screen[1].max(ends[1]))
}

#[test]
fn images() {
    fuzz(&Target {
        name: "images",
        seeds: ["pictures", "pictures/jpeg", "fuzz/images"].map(|of| seeds(&format!("tests/data/{of}"))).concat(),
        words: &[
            "IHDR",
            "PLTE",
            "tRNS",
            "iCCP",
            "eXIf",
            "iTXtXML:com.adobe.xmp\0\0\0\0\0",
            "tiff:Orientation=\"6",
            "VP8X",
            "ALPH",
            "ANMF",
        ],
        longest: 1 << 14,
        repair: repair::png,
        read: Box::new(|input| {
            if promised(input) > 1 << 20 {
                return Err("large".into());
            }
            let [white, stored] =
                [AlphaMode::CompositeOnWhite, AlphaMode::Ignore].map(|a| named(Image::decode(input, FILE, a), FILE));
            assert_eq!(white.as_ref().err(), stored.as_ref().err());
            let (white, stored) = (white?, stored?);
            assert_eq!([white.width(), white.height()], [stored.width(), stored.height()]);
            assert_eq!(stored.rgb().len(), stored.width() * stored.height() * 3);
            let values = clip_image_processor::preprocess(&stored, 16);
            assert!(values.iter().all(|value| value.is_finite()));
            Ok(format!("{} by {}", size(white.width()), size(white.height())))
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
