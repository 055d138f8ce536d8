//! The flags of the benchmarks of single operations, measured and predicted.

use crate::lists::{self, Format};
use crate::work::{ModelSize, Part, Setting};
use braid::cli::failure::Failure;
use braid::cli::flag::Flag;
use braid::pipeline::MAX_SIDE;

/// Pixels of an image to one of the latents.
pub const FACTOR: usize = 8;

/// The operations that a benchmark is about.
pub struct WorkOptions {
    /// Sides of the image.
    pub sizes: Vec<usize>,
    /// Rows of the UNet.
    pub batches: Vec<usize>,
    /// The parts whose operations are listed.
    pub parts: Vec<Part>,
    /// The rest; side and batch are still open.
    pub setting: Setting,
    /// The output.
    pub format: Format,
}

/// The flags.
pub const FLAGS: &[Flag<WorkOptions>] = &[
    Flag {
        long: "--parts",
        value: Some("LIST"),
        help: "of text, image, condition, unet, vae, taesd-encoder, taesd-decoder, reference (what a new one changes) \
               [default: unet,vae for ops, unet for roofline]",
        set: |o, v| Part::read(v).map(|parts| o.parts = parts),
        ..Flag::NEW
    },
    Flag {
        long: "--size",
        value: Some("LIST"),
        help: "width and height [default: 1024]",
        set: |o, v| lists::numbers(v, 64, MAX_SIDE).map(|sizes| o.sizes = sizes),
        ..Flag::NEW
    },
    Flag {
        long: "--batch",
        short: Some('b'),
        value: Some("LIST"),
        help: "rows of the UNet; guidance takes 2 [default: 2]",
        set: |o, v| lists::numbers(v, 1, 64).map(|batches| o.batches = batches),
        ..Flag::NEW
    },
    Flag {
        long: "--steps",
        short: Some('n'),
        value: Some("N"),
        help: "evaluations of the UNet for an image [default: 50]",
        set: |o, v| v.count(1, 1000).map(|steps| o.setting.steps = steps),
        ..Flag::NEW
    },
    Flag {
        long: "--adapter",
        help: "with an IP-Adapter and one reference image",
        set: |o, _| {
            o.setting.adapter = true;
            Ok(())
        },
        ..Flag::NEW
    },
    Flag {
        long: "--model",
        value: Some("NAME"),
        help: "sdxl, or small: the same make, for a quick look [default: sdxl]",
        set: |o, v| ModelSize::read(v).map(|model| o.setting.model = model),
        ..Flag::NEW
    },
    Flag {
        long: "--output",
        short: Some('o'),
        value: Some("FORMAT"),
        help: "md, csv, json or jsonl [default: md]",
        set: |o, v| Format::read(v).map(|format| o.format = format),
        ..Flag::NEW
    },
];

impl WorkOptions {
    /// One image of SDXL's own size with guidance.
    pub fn new(parts: Vec<Part>) -> Self {
        let setting = Setting { model: ModelSize::Sdxl, side: 0, batch: 0, steps: 50, adapter: false, fp8: false };
        Self { sizes: vec![1024], batches: vec![2], parts, setting, format: Format::Markdown }
    }

    /// Every size with every batch.
    pub fn settings(&self) -> Result<Vec<Setting>, Failure> {
        let mut settings = Vec::new();
        for &size in &self.sizes {
            if !size.is_multiple_of(FACTOR) {
                return Err(Failure::usage(format!("--size: must be a multiple of {FACTOR}, got {size}")));
            }
            let of = |&batch: &usize| Setting { side: size / FACTOR, batch, ..self.setting };
            settings.extend(self.batches.iter().map(of));
        }
        Ok(settings)
    }
}
