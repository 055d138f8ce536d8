//! Scheduler and guidance.

use crate::cli::flag::{Flag, Group};
use crate::cli::labels::{scheduler_label, text};
use crate::cli::options::Options;
use crate::cli::presets::PRESETS;
use crate::error::Field;
use crate::schedulers::{SchedulerKind, SigmaSchedule};
use serde_json::json;

/// A preset.
pub const PRESET: Flag<Options> = Flag {
    long: "--preset",
    value: Some("NAME"),
    help: "the makers' settings: lcm (4 steps of lcm), lightning-4 (4 of euler, trailing), turbo (1 of euler-a, trailing, \
           512x512), all without guidance; the flags of these settings win, wherever they stand",
    set: |o, v| {
        let choices = PRESETS.map(|preset| (preset.name, preset));
        v.choice(&choices).map(|preset| o.preset = Some(preset))
    },
    json: Some(("preset", |o, _| o.preset.map(|preset| preset.name).into())),
    ..Flag::NEW
};

/// The number of steps.
pub const STEPS: Flag<Options> = Flag {
    long: "--steps",
    value: Some("N"),
    help: "[default: 50]",
    fields: &[Field::Steps],
    set: |o, v| {
        o.given.steps = true;
        v.count(1, 1000).map(|value| o.request.steps = value)
    },
    json: Some(("steps", |o, _| o.request.steps.into())),
    parameters: Some((0, |o, _| vec![format!("Steps: {}", o.request.steps)])),
    ..Flag::NEW
};

/// The guidance scale.
pub const CFG_SCALE: Flag<Options> = Flag {
    long: "--cfg-scale",
    value: Some("F"),
    help: "guidance scale [default: 5]",
    fields: &[Field::GuidanceScale],
    set: |o, v| {
        o.given.guidance_scale = true;
        v.number().map(|value| o.request.guidance_scale = value)
    },
    json: Some(("cfg_scale", |o, _| o.request.guidance_scale.into())),
    parameters: Some((2, |o, _| vec![format!("CFG scale: {}", o.request.guidance_scale)])),
    ..Flag::NEW
};

/// The guidance rescale.
pub const GUIDANCE_RESCALE: Flag<Options> = Flag {
    long: "--guidance-rescale",
    value: Some("F"),
    help: "0 to 1 [default: 0]",
    fields: &[Field::GuidanceRescale],
    set: |o, v| v.number().map(|value| o.request.guidance_rescale = value),
    json: Some(("guidance_rescale", |o, _| o.request.guidance_rescale.into())),
    ..Flag::NEW
};

/// The part of the steps that has guidance.
pub const GUIDANCE_INTERVAL: Flag<Options> = Flag {
    long: "--guidance-interval",
    value: Some("A:B"),
    help: "the part of the steps, 0 to 1, that has guidance [default: 0:1]",
    fields: &[Field::GuidanceInterval],
    set: |o, v| v.interval().map(|value| o.request.guidance_interval = Some(value)),
    json: Some(("guidance_interval", |o, _| {
        o.request.guidance_interval.map(|(start, end)| json!([start, end])).into()
    })),
    ..Flag::NEW
};

/// The scheduler.
pub const SAMPLING_METHOD: Flag<Options> = Flag {
    long: "--sampling-method",
    value: Some("M"),
    help: SchedulerKind::NAMES,
    fields: &[Field::Scheduler],
    set: |o, v| v.named().map(|value| o.request.scheduler = Some(value)),
    json: Some(("sampling_method", |_, g| g.scheduler.to_string().into())),
    parameters: Some((1, |o, g| vec![format!("Sampler: {}", scheduler_label(g.scheduler, o.request.sigma_schedule))])),
    ..Flag::NEW
};

/// The noise levels.
pub const SCHEDULE: Flag<Options> = Flag {
    long: "--schedule",
    value: Some("S"),
    help: SigmaSchedule::EACH_NAME,
    fields: &[Field::SigmaSchedule],
    set: |o, v| v.named().map(|value| o.request.sigma_schedule = Some(value)),
    json: Some(("schedule", |o, _| text(o.request.sigma_schedule))),
    ..Flag::NEW
};

/// The meaning of the model's output.
pub const PREDICTION: Flag<Options> = Flag {
    long: "--prediction",
    value: Some("P"),
    help: "epsilon or v",
    fields: &[Field::PredictionType],
    set: |o, v| v.named().map(|value| o.request.prediction_type = Some(value)),
    json: Some(("prediction", |o, _| text(o.request.prediction_type))),
    ..Flag::NEW
};

/// The timesteps.
pub const TIMESTEP_SPACING: Flag<Options> = Flag {
    long: "--timestep-spacing",
    value: Some("S"),
    help: "leading, trailing or linspace",
    fields: &[Field::TimestepSpacing],
    set: |o, v| v.named().map(|value| o.request.timestep_spacing = Some(value)),
    json: Some(("timestep_spacing", |o, _| text(o.request.timestep_spacing))),
    ..Flag::NEW
};

/// DDIM's eta.
pub const ETA: Flag<Options> = Flag {
    long: "--eta",
    value: Some("F"),
    help: "of ddim, 0 to 1",
    fields: &[Field::Eta],
    set: |o, v| v.number().map(|value| o.request.eta = Some(value)),
    json: Some(("eta", |o, _| o.request.eta.into())),
    ..Flag::NEW
};

/// Layers that the prompt's embedding skips.
pub const CLIP_SKIP: Flag<Options> = Flag {
    long: "--clip-skip",
    value: Some("N"),
    help: "layers that the prompt skips, beyond the last [default: 0]",
    fields: &[Field::ClipSkip],
    set: |o, v| v.count(0, 1000).map(|value| o.request.clip_skip = value),
    json: Some(("clip_skip", |o, _| o.request.clip_skip.into())),
    parameters: Some((6, |o, _| match o.request.clip_skip {
        0 => Vec::new(),
        skip => vec![format!("Clip skip: {skip}")],
    })),
    ..Flag::NEW
};

/// The group.
pub const GROUP: Group<Options> = Group {
    title: Some("Sampling (a flag wins over the model folder's scheduler, that over the profile's default)"),
    flags: &[
        PRESET,
        STEPS,
        CFG_SCALE,
        GUIDANCE_RESCALE,
        GUIDANCE_INTERVAL,
        SAMPLING_METHOD,
        SCHEDULE,
        PREDICTION,
        TIMESTEP_SPACING,
        ETA,
        CLIP_SKIP,
    ],
    note: None,
};
