//! The second encoder's prompts, the treatment of prompts, and the sizes that the model is conditioned on.

use crate::cli::flag::{Flag, Generated, Group};
use crate::cli::labels::{number, path, size, stem};
use crate::cli::options::Options;
use crate::error::Field;
use crate::pipeline::MAX_SIDE;
use std::path::PathBuf;

/// The second encoder's prompt.
pub const PROMPT_2: Flag<Options> = Flag {
    long: "--prompt-2",
    value: Some("TEXT"),
    help: "the prompt of the second text encoder [default: the prompt]",
    fields: &[Field::Prompt2],
    set: |o, v| v.text().map(|value| o.request.prompt_2 = Some(value)),
    json: Some(("prompt_2", |o, _| o.request.prompt_2.as_deref().into())),
    ..Flag::NEW
};

/// The second encoder's negative prompt.
pub const NEGATIVE_PROMPT_2: Flag<Options> = Flag {
    long: "--negative-prompt-2",
    value: Some("TEXT"),
    help: "its negative prompt [default: the negative prompt]",
    fields: &[Field::NegativePrompt2],
    set: |o, v| v.text().map(|value| o.request.negative_prompt_2 = Some(value)),
    json: Some(("negative_prompt_2", |o, _| o.request.negative_prompt_2.as_deref().into())),
    ..Flag::NEW
};

/// A textual inversion.
pub const EMBEDDING: Flag<Options> = Flag {
    long: "--embedding",
    value: Some("FILE"),
    help: "a textual inversion (.safetensors, .pt, .bin); in the prompts the file's name without extension stands for its \
           vectors; may be repeated",
    fields: &[Field::Embeddings],
    set: |o, v| v.path().map(|value| o.pipeline.embeddings.push(value)),
    json: Some(("embeddings", |o, g| o.pipeline.embeddings.iter().map(|file| path(file, g)).collect())),
    parameters: Some((8, text_of)),
    ..Flag::NEW
};

fn text_of(o: &Options, _: &Generated) -> Vec<String> {
    let entry = |(i, file): (usize, &PathBuf)| format!("Embedding{}: {}", number(i), stem(file));
    o.pipeline.embeddings.iter().enumerate().map(entry).collect()
}

/// The syntax of weights.
pub const PROMPT_WEIGHTS: Flag<Options> = Flag {
    long: "--prompt-weights",
    value: Some("W"),
    help: "off; a1111: (word:1.3), (word), [word]; or compel: (words)1.3, word++, word--, (\"..\", \"..\").blend(1, 1), .and() [default: \
           off]",
    fields: &[Field::PromptWeights],
    set: |o, v| v.named().map(|value| o.request.prompt_weights = value),
    json: Some(("prompt_weights", |o, _| o.request.prompt_weights.to_string().into())),
    ..Flag::NEW
};

/// The treatment of long prompts.
pub const LONG_PROMPTS: Flag<Options> = Flag {
    long: "--long-prompts",
    value: Some("L"),
    help: "truncate after 75 tokens, or chunks of 75, also begun by the word BREAK with a1111, ended at sentences with compel [default: truncate]",
    fields: &[Field::LongPrompts],
    set: |o, v| v.named().map(|value| o.request.long_prompts = value),
    json: Some(("long_prompts", |o, _| o.request.long_prompts.to_string().into())),
    ..Flag::NEW
};

/// The original size.
pub const ORIGINAL_SIZE: Flag<Options> = Flag {
    long: "--original-size",
    value: Some("WxH"),
    help: "the size that the image is said to have had [default: its own]",
    set: |o, v| v.size(MAX_SIDE).map(|value| o.request.size_conditioning.original_size = Some(value)),
    json: Some(("original_size", |o, _| size(o.request.size_conditioning.original_size))),
    ..Flag::NEW
};

/// The crop.
pub const CROP: Flag<Options> = Flag {
    long: "--crop",
    value: Some("X,Y"),
    help: "left and top at which it is said to have been cropped [default: 0,0]",
    set: |o, v| v.place(MAX_SIDE).map(|value| o.request.size_conditioning.crop = Some(value)),
    json: Some(("crop", |o, _| size(o.request.size_conditioning.crop))),
    ..Flag::NEW
};

/// The target size.
pub const TARGET_SIZE: Flag<Options> = Flag {
    long: "--target-size",
    value: Some("WxH"),
    help: "the size that it is said to have [default: its own]",
    set: |o, v| v.size(MAX_SIDE).map(|value| o.request.size_conditioning.target_size = Some(value)),
    json: Some(("target_size", |o, _| size(o.request.size_conditioning.target_size))),
    ..Flag::NEW
};

/// The negative row's original size.
pub const NEGATIVE_ORIGINAL_SIZE: Flag<Options> = Flag {
    long: "--negative-original-size",
    value: Some("WxH"),
    help: "the same for the negative prompt [default: as for the prompt]",
    fields: &[Field::NegativeOriginalSize],
    set: |o, v| v.size(MAX_SIDE).map(|value| o.request.negative_size_conditioning.original_size = Some(value)),
    json: Some(("negative_original_size", |o, _| size(o.request.negative_size_conditioning.original_size))),
    ..Flag::NEW
};

/// The negative row's crop.
pub const NEGATIVE_CROP: Flag<Options> = Flag {
    long: "--negative-crop",
    value: Some("X,Y"),
    help: "the same for the negative prompt",
    fields: &[Field::NegativeCrop],
    set: |o, v| v.place(MAX_SIDE).map(|value| o.request.negative_size_conditioning.crop = Some(value)),
    json: Some(("negative_crop", |o, _| size(o.request.negative_size_conditioning.crop))),
    ..Flag::NEW
};

/// The negative row's target size.
pub const NEGATIVE_TARGET_SIZE: Flag<Options> = Flag {
    long: "--negative-target-size",
    value: Some("WxH"),
    help: "the same for the negative prompt; it and the original size go together, but on image to image",
    fields: &[Field::NegativeTargetSize],
    set: |o, v| v.size(MAX_SIDE).map(|value| o.request.negative_size_conditioning.target_size = Some(value)),
    json: Some(("negative_target_size", |o, _| size(o.request.negative_size_conditioning.target_size))),
    ..Flag::NEW
};

/// The group.
pub const GROUP: Group<Options> = Group {
    title: Some("Prompts and sizes"),
    flags: &[
        PROMPT_2,
        NEGATIVE_PROMPT_2,
        EMBEDDING,
        PROMPT_WEIGHTS,
        LONG_PROMPTS,
        ORIGINAL_SIZE,
        CROP,
        TARGET_SIZE,
        NEGATIVE_ORIGINAL_SIZE,
        NEGATIVE_CROP,
        NEGATIVE_TARGET_SIZE,
    ],
    note: None,
};
