//! The image to begin with.

use crate::cli::flag::{Flag, Group};
use crate::cli::labels::{path, stem};
use crate::cli::options::Options;
use crate::error::Field;

/// The image to begin with.
pub const INIT_IMG: Flag<Options> = Flag {
    long: "--init-img",
    short: Some('i'),
    value: Some("FILE"),
    help: "an image to begin with (PNG, JPEG, WebP, GIF), stretched to the size asked for [default size: its own, rounded down to a \
           multiple of 8]",
    fields: &[Field::InitImage],
    set: |o, v| v.path().map(|value| o.init_image = Some(value)),
    json: Some(("init_img", |o, g| o.init_image.as_deref().map(|file| path(file, g)).into())),
    ..Flag::NEW
};

/// The part of the steps that is run on it.
pub const STRENGTH: Flag<Options> = Flag {
    long: "--strength",
    value: Some("F"),
    help: "the part of the steps that is run on it, 0 to 1: the more, the less of it is left [default: 0.75]",
    fields: &[Field::Strength],
    set: |o, v| v.fraction().map(|value| o.request.strength = Some(value)),
    json: Some(("strength", |o, _| o.strength().into())),
    parameters: Some((8, |o, _| {
        o.strength().map(|value| format!("Denoising strength: {value}")).into_iter().collect()
    })),
    ..Flag::NEW
};

/// The part that is drawn anew.
pub const MASK: Flag<Options> = Flag {
    long: "--mask",
    value: Some("FILE"),
    help: "inpainting: what is white in this image is drawn anew, the rest of --init-img is kept; both are stretched to the size \
           asked for [default size: the model's own]",
    fields: &[Field::Mask],
    set: |o, v| v.path().map(|value| o.mask = Some(value)),
    json: Some(("mask", |o, g| o.mask.as_deref().map(|file| path(file, g)).into())),
    parameters: Some((9, |o, _| o.mask.as_ref().map(|mask| format!("Mask: {}", stem(mask))).into_iter().collect())),
    ..Flag::NEW
};

/// The group.
pub const GROUP: Group<Options> =
    Group { title: Some("Image to image"), flags: &[INIT_IMG, STRENGTH, MASK], note: None };
