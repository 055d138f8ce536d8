//! The models that are loaded.

use super::lora::LORA;
use crate::cli::flag::{Flag, Group};
use crate::cli::labels::{path, stem};
use crate::cli::options::Options;
use crate::error::Field;

/// The side of a tile in pixels.
const TILE: usize = 512;

/// The checkpoint or folder.
pub const MODEL: Flag<Options> = Flag {
    long: "--model",
    short: Some('m'),
    value: Some("PATH"),
    help: "SDXL checkpoint (.safetensors) or diffusers folder",
    set: |o, v| v.path().map(|value| o.model = Some(value)),
    json: Some(("model", |o, g| path(&o.pipeline.model, g))),
    parameters: Some((5, |o, _| vec![format!("Model: {}", stem(&o.pipeline.model))])),
    ..Flag::NEW
};

/// Configurations for a single-file checkpoint.
pub const CONFIG: Flag<Options> = Flag {
    long: "--config",
    value: Some("DIR"),
    help: "diffusers folder whose configurations apply to a single-file checkpoint",
    fields: &[Field::Config],
    set: |o, v| v.path().map(|value| o.pipeline.config = Some(value)),
    json: Some(("config", |o, g| o.pipeline.config.as_deref().map(|file| path(file, g)).into())),
    ..Flag::NEW
};

/// The VAE of another file.
pub const VAE: Flag<Options> = Flag {
    long: "--vae",
    value: Some("PATH"),
    help: "VAE that takes the place of the model's own, as a file or a folder of its own, or from another checkpoint",
    fields: &[Field::Vae],
    set: |o, v| v.path().map(|value| o.pipeline.vae = Some(value)),
    json: Some(("vae", |o, g| o.pipeline.vae.as_deref().map(|file| path(file, g)).into())),
    parameters: Some((6, |o, _| {
        o.pipeline.vae.as_ref().map(|vae| format!("VAE: {}", stem(vae))).into_iter().collect()
    })),
    ..Flag::NEW
};

/// The tiny autoencoder.
pub const TAESD: Flag<Options> = Flag {
    long: "--taesd",
    value: Some("PATH"),
    help: "TAESD for SDXL (taesdxl), which decodes, makes previews and encodes --init-img in the place of the VAE: fast, less exact",
    fields: &[Field::Taesd],
    set: |o, v| v.path().map(|value| o.pipeline.taesd = Some(value)),
    json: Some(("taesd", |o, g| o.pipeline.taesd.as_deref().map(|file| path(file, g)).into())),
    parameters: Some((6, |o, _| {
        o.pipeline.taesd.as_ref().map(|vae| format!("TAESD: {}", stem(vae))).into_iter().collect()
    })),
    ..Flag::NEW
};

/// Decoding and encoding in tiles.
pub const VAE_TILING: Flag<Options> = Flag {
    long: "--vae-tiling",
    help: "decode and encode in blended tiles of 512x512, which takes less memory; larger images come out a little different",
    fields: &[Field::VaeTiling],
    set: |o, _| {
        o.pipeline.vae_tiling = Some(TILE);
        Ok(())
    },
    json: Some(("vae_tiling", |o, _| o.pipeline.vae_tiling.is_some().into())),
    parameters: Some((6, |o, _| o.pipeline.vae_tiling.map(|side| format!("VAE tiling: {side}")).into_iter().collect())),
    ..Flag::NEW
};

/// The image encoder.
pub const CLIP_VISION: Flag<Options> = Flag {
    long: "--clip-vision",
    value: Some("PATH"),
    help: "image encoder: model.safetensors or its folder [default: image_encoder/ of the model's folder]",
    fields: &[Field::ClipVision],
    set: |o, v| v.path().map(|value| o.pipeline.clip_vision = Some(value)),
    json: Some(("clip_vision", |o, g| o.pipeline.clip_vision.as_deref().map(|file| path(file, g)).into())),
    ..Flag::NEW
};

/// Reading instead of mapping.
pub const NO_MMAP: Flag<Options> = Flag {
    long: "--no-mmap",
    help: "read the files into memory instead of mapping them, where they may change meanwhile",
    fields: &[Field::Mmap],
    set: |o, _| {
        o.pipeline.mmap = false;
        Ok(())
    },
    ..Flag::NEW
};

/// The group.
pub const GROUP: Group<Options> = Group {
    title: Some("Models"),
    flags: &[MODEL, CONFIG, VAE, TAESD, VAE_TILING, CLIP_VISION, LORA, NO_MMAP],
    note: None,
};
