//! Files that are written, and the noise that may be read.

use crate::cli::flag::{Flag, Group, MetadataExtent};
use crate::cli::labels::path;
use crate::cli::options::Options;
use crate::error::Field;

/// The image file.
pub const OUTPUT: Flag<Options> = Flag {
    long: "--output",
    short: Some('o'),
    value: Some("FILE"),
    help: ".png, .jpg or .webp [default: braid.png]; several images are numbered, FILE-0.png, FILE-1.png. PNG carries \
           the parameters as text (AUTOMATIC1111's style) and as JSON",
    fields: &[Field::OutputPath],
    set: |o, v| v.path().map(|value| o.output = value),
    ..Flag::NEW
};

/// The file of requests.
pub const BATCH: Flag<Options> = Flag {
    long: "--batch",
    value: Some("FILE"),
    help: "requests, a JSON object a line: {\"prompt\": \"a fox\", \"seed\": 3, \"ip_adapter_image\": [\"a.png\"]}; names as the \
           flags with _ for -, what is missing is the command's. Their images share evaluations and are numbered",
    set: |o, v| v.path().map(|value| o.batch = Some(value)),
    ..Flag::NEW
};

/// The noise.
pub const LATENTS_IN: Flag<Options> = Flag {
    long: "--latents-in",
    value: Some("FILE"),
    help: "safetensors with `noise` [N, 4, H/8, W/8] f32, used instead of drawing it",
    fields: &[Field::Noise],
    set: |o, v| v.path().map(|value| o.latents = Some(value)),
    json: Some(("latents_in", |o, g| o.latents.as_deref().map(|file| path(file, g)).into())),
    ..Flag::NEW
};

/// The intermediate results.
pub const DUMP: Flag<Options> = Flag {
    long: "--dump",
    value: Some("FILE"),
    help: "safetensors of every stage, f32",
    set: |o, v| v.path().map(|value| o.dump = Some(value)),
    ..Flag::NEW
};

/// The previews.
pub const PREVIEW: Flag<Options> = Flag {
    long: "--preview",
    value: Some("FILE"),
    help: "preview of the image under way, a pixel for 8 by 8, written anew as it takes shape; several images are numbered as those of \
           --output",
    set: |o, v| v.path().map(|value| o.preview = Some(value)),
    ..Flag::NEW
};

/// The steps between them.
pub const PREVIEW_EVERY: Flag<Options> = Flag {
    long: "--preview-every",
    value: Some("N"),
    help: "steps from one preview to the next [default: 1]",
    set: |o, v| v.count(1, usize::MAX).map(|value| o.preview_every = Some(value)),
    ..Flag::NEW
};

/// The sheets of where each reference acted.
pub const ATTRIBUTION: Flag<Options> = Flag {
    long: "--attribution",
    value: Some("FILE"),
    help: "heat maps of where each reference acted, by side and size of the UNet's blocks, beside the image; the image is the same, on \
           the CPU alone; several images are numbered as those of --output",
    fields: &[Field::Attribution],
    set: |o, v| v.path().map(|value| o.attribution = Some(value)),
    ..Flag::NEW
};

/// The report.
pub const JSON: Flag<Options> = Flag {
    long: "--json",
    help: "one line of JSON on standard output: files, seeds, device, seconds, peak bytes",
    set: |o, _| {
        o.json = true;
        Ok(())
    },
    ..Flag::NEW
};

/// Hashes of the weights.
pub const RECORD_HASHES: Flag<Options> = Flag {
    long: "--record-hashes",
    help: "read the weights whole and record hashes of them in each PNG, where else fingerprints of a few bytes of each tensor are; \
           `braid replay` checks them",
    set: |o, _| {
        o.record_hashes = true;
        Ok(())
    },
    ..Flag::NEW
};

/// The extent of the metadata.
pub const METADATA: Flag<Options> = Flag {
    long: "--metadata",
    value: Some("HOW"),
    help: "what a PNG tells of its making: full, no-paths (files by their last names, without folders, and not the command, which \
           `braid replay` needs) or none [default: full]",
    set: |o, v| v.choice(MetadataExtent::ALL).map(|value| o.metadata = value),
    ..Flag::NEW
};

/// The group.
pub const GROUP: Group<Options> = Group {
    title: Some("Files"),
    flags: &[OUTPUT, BATCH, LATENTS_IN, DUMP, PREVIEW, PREVIEW_EVERY, ATTRIBUTION, METADATA, RECORD_HASHES, JSON],
    note: None,
};
