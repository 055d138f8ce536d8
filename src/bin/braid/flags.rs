//! The library's fields under the names of the command's flags.

use braid::error::{Error, Field, FieldNames, Message};

/// The flag that sets a field.
fn flag(field: Field) -> &'static str {
    match field {
        Field::Config => "--config",
        Field::ClipVision => "--clip-vision",
        Field::Adapters => "--ip-adapter",
        Field::Compat => "--compat",
        Field::Device => "--device",
        Field::DType => "--dtype",
        Field::VaeDType => "--vae-dtype",
        Field::Encoders => "--encoders",
        Field::Threads => "--threads",
        Field::Prompt => "--prompt",
        Field::NegativePrompt => "--negative-prompt",
        Field::Steps => "--steps",
        Field::GuidanceScale => "--cfg-scale",
        Field::GuidanceRescale => "--guidance-rescale",
        Field::Width => "--width",
        Field::Height => "--height",
        Field::NumImages => "--batch-count",
        Field::ImagePrompts => "--ip-adapter-image",
        Field::Scheduler => "--sampling-method",
        Field::SigmaSchedule => "--schedule",
        Field::PredictionType => "--prediction",
        Field::TimestepSpacing => "--timestep-spacing",
        Field::Eta => "--eta",
        Field::ClipSkip => "--clip-skip",
        Field::Noise => "--latents-in",
        Field::ScaleBlocks => "--ip-adapter-blocks",
        Field::ScaleStrength => "--ip-adapter-strength",
        Field::Resize => "--ip-adapter-image-resize",
        Field::OutputPath => "--output",
        other => other.name(),
    }
}

struct Flags;

impl FieldNames for Flags {
    fn field(&self, field: Field) -> String {
        flag(field).to_owned()
    }

    fn setting(&self, field: Field, value: &str) -> String {
        format!("{} {value}", flag(field))
    }
}

/// An error's text with flags for fields.
pub fn text(error: &Error) -> String {
    message(&error.message())
}

/// A message with flags for fields.
pub fn message(message: &Message) -> String {
    message.describe(&Flags)
}
