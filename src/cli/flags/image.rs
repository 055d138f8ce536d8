//! The image that is generated.

use crate::cli::flag::{Flag, Group};
use crate::cli::options::Options;
use crate::error::Field;
use crate::pipeline::{self, MAX_NUM_IMAGES, MAX_SIDE};

/// The prompt.
pub const PROMPT: Flag<Options> = Flag {
    long: "--prompt",
    short: Some('p'),
    value: Some("TEXT"),
    help: "what the image should show",
    fields: &[Field::Prompt],
    set: |o, v| v.text().map(|value| o.prompt = Some(value)),
    json: Some(("prompt", |o, _| o.request.prompt.as_str().into())),
    ..Flag::NEW
};

/// The negative prompt.
pub const NEGATIVE_PROMPT: Flag<Options> = Flag {
    long: "--negative-prompt",
    short: Some('n'),
    value: Some("TEXT"),
    help: "what it should not show",
    fields: &[Field::NegativePrompt],
    set: |o, v| v.text().map(|value| o.request.negative_prompt = Some(value)),
    json: Some(("negative_prompt", |o, _| o.request.negative_prompt.as_deref().into())),
    ..Flag::NEW
};

/// The width.
pub const WIDTH: Flag<Options> = Flag {
    long: "--width",
    short: Some('W'),
    value: Some("N"),
    help: "width in pixels [default: the model's own size, mostly 1024]",
    fields: &[Field::Width],
    set: |o, v| v.count(1, MAX_SIDE).map(|value| o.request.width = Some(value)),
    json: Some(("width", |_, g| g.width.into())),
    parameters: Some((4, |_, g| vec![format!("Size: {}x{}", g.width, g.height)])),
};

/// The height; -H, because -h is help.
pub const HEIGHT: Flag<Options> = Flag {
    long: "--height",
    short: Some('H'),
    value: Some("N"),
    help: "height in pixels [default: the same]",
    fields: &[Field::Height],
    set: |o, v| v.count(1, MAX_SIDE).map(|value| o.request.height = Some(value)),
    json: Some(("height", |_, g| g.height.into())),
    ..Flag::NEW
};

/// The seed.
pub const SEED: Flag<Options> = Flag {
    long: "--seed",
    short: Some('s'),
    value: Some("N"),
    help: "0 to 2^64 - 1, or -1 for a random one [default: 0]",
    set: |o, v| v.seed().map(|value| o.seed = value),
    json: Some(("seed", |_, g| g.seed.into())),
    parameters: Some((3, |_, g| vec![format!("Seed: {}", g.seed)])),
    ..Flag::NEW
};

/// The number of images.
pub const BATCH_COUNT: Flag<Options> = Flag {
    long: "--batch-count",
    short: Some('b'),
    value: Some("N"),
    help: "number of images, of seeds S, S+1, ... [default: 1]",
    fields: &[Field::NumImages],
    set: |o, v| v.count(1, MAX_NUM_IMAGES).map(|value| o.request.num_images = value),
    ..Flag::NEW
};

/// The most images at once.
pub const MAX_BATCH: Flag<Options> = Flag {
    long: "--max-batch",
    value: Some("N"),
    help: "most images that share an evaluation of the model; each is the same as alone [default: by their size]",
    fields: &[Field::MaxBatch],
    set: |o, v| v.count(1, pipeline::MAX_BATCH).map(|value| o.pipeline.max_batch = Some(value)),
    ..Flag::NEW
};

/// The group.
pub const GROUP: Group<Options> = Group {
    title: Some("Image"),
    flags: &[PROMPT, NEGATIVE_PROMPT, WIDTH, HEIGHT, SEED, BATCH_COUNT, MAX_BATCH],
    note: None,
};
