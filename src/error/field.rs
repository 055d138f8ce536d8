//! The fields that an error is about, and texts that mention them.

use super::escape::{escape, one_line};
use std::fmt;

macro_rules! fields {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A field of [`crate::PipelineOptions`], [`crate::Request`] or [`crate::ImagePrompt`], or a function's parameter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Field {
            $($(#[$doc])* $variant,)*
        }

        impl Field {
            /// The field's name in the library.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

fields! {
    /// [`crate::PipelineOptions::config`].
    Config = "config",
    /// [`crate::PipelineOptions::vae`].
    Vae = "vae",
    /// [`crate::PipelineOptions::taesd`].
    Taesd = "taesd",
    /// [`crate::PipelineOptions::vae_tiling`].
    VaeTiling = "vae_tiling",
    /// [`crate::PipelineOptions::clip_vision`].
    ClipVision = "clip_vision",
    /// [`crate::PipelineOptions::adapters`].
    Adapters = "adapters",
    /// [`crate::PipelineOptions::loras`].
    Loras = "loras",
    /// [`crate::PipelineOptions::embeddings`].
    Embeddings = "embeddings",
    /// [`crate::PipelineOptions::compat`].
    Compat = "compat",
    /// [`crate::PipelineOptions::device`].
    Device = "device",
    /// [`crate::PipelineOptions::dtype`].
    DType = "dtype",
    /// [`crate::PipelineOptions::vae_dtype`].
    VaeDType = "vae_dtype",
    /// [`crate::PipelineOptions::quantize`].
    Quantize = "quantize",
    /// [`crate::PipelineOptions::encoders`].
    Encoders = "encoders",
    /// [`crate::PipelineOptions::max_batch`].
    MaxBatch = "max_batch",
    /// [`crate::PipelineOptions::threads`].
    Threads = "threads",
    /// [`crate::PipelineOptions::mmap`].
    Mmap = "mmap",
    /// [`crate::Request::prompt`].
    Prompt = "prompt",
    /// [`crate::Request::negative_prompt`].
    NegativePrompt = "negative_prompt",
    /// [`crate::Request::prompt_2`].
    Prompt2 = "prompt_2",
    /// [`crate::Request::negative_prompt_2`].
    NegativePrompt2 = "negative_prompt_2",
    /// [`crate::Request::long_prompts`].
    LongPrompts = "long_prompts",
    /// [`crate::Request::prompt_weights`].
    PromptWeights = "prompt_weights",
    /// [`crate::SizeConditioning::original_size`] of [`crate::Request::negative_size_conditioning`].
    NegativeOriginalSize = "negative_size_conditioning.original_size",
    /// [`crate::SizeConditioning::crop`] of [`crate::Request::negative_size_conditioning`].
    NegativeCrop = "negative_size_conditioning.crop",
    /// [`crate::SizeConditioning::target_size`] of [`crate::Request::negative_size_conditioning`].
    NegativeTargetSize = "negative_size_conditioning.target_size",
    /// [`crate::Request::steps`].
    Steps = "steps",
    /// [`crate::Request::guidance_scale`].
    GuidanceScale = "guidance_scale",
    /// [`crate::Request::guidance_rescale`].
    GuidanceRescale = "guidance_rescale",
    /// [`crate::Request::guidance_interval`].
    GuidanceInterval = "guidance_interval",
    /// [`crate::Request::width`].
    Width = "width",
    /// [`crate::Request::height`].
    Height = "height",
    /// [`crate::Request::num_images`].
    NumImages = "num_images",
    /// [`crate::Request::image_prompts`], or [`crate::ImagePrompt::references`] of one.
    ImagePrompts = "image_prompts",
    /// [`crate::Request::attribution`].
    Attribution = "attribution",
    /// [`crate::Request::scale_changes`], or what a [`crate::LiveScales`] has set.
    ScaleChanges = "scale_changes",
    /// [`crate::Request::prompt_changes`], or what a [`crate::LivePrompts`] has set.
    PromptChanges = "prompt_changes",
    /// [`crate::Request::lora_scales`].
    LoraScales = "lora_scales",
    /// [`crate::Request::scheduler`].
    Scheduler = "scheduler",
    /// [`crate::Request::sigma_schedule`].
    SigmaSchedule = "sigma_schedule",
    /// [`crate::Request::prediction_type`].
    PredictionType = "prediction_type",
    /// [`crate::Request::timestep_spacing`].
    TimestepSpacing = "timestep_spacing",
    /// [`crate::Request::eta`].
    Eta = "eta",
    /// [`crate::Request::clip_skip`].
    ClipSkip = "clip_skip",
    /// [`crate::Request::noise`].
    Noise = "noise",
    /// [`crate::Request::init_image`].
    InitImage = "init_image",
    /// [`crate::Request::strength`].
    Strength = "strength",
    /// [`crate::Request::mask`].
    Mask = "mask",
    /// The blocks of [`crate::ImagePrompt::scales`].
    ScaleBlocks = "scales",
    /// The strength that multiplies [`crate::ImagePrompt::scales`].
    ScaleStrength = "scales.strength",
    /// [`crate::Reference::weight`].
    ReferenceWeight = "references.weight",
    /// [`crate::Reference::texts`].
    ReferenceTexts = "references.texts",
    /// [`crate::Reference::mask`].
    ReferenceMask = "references.mask",
    /// [`crate::ImagePrompt::combine`].
    Combine = "combine",
    /// [`crate::ImagePrompt::start`].
    Start = "start",
    /// [`crate::ImagePrompt::end`].
    End = "end",
    /// [`crate::ImagePrompt::negative_image`].
    NegativeImage = "negative_image",
    /// [`crate::ImagePrompt::fit`].
    Fit = "fit",
    /// The size that an image is resized to, such as [`crate::ImagePrompt::resize`].
    Resize = "resize",
    /// The pixels of an [`crate::inputs::image::Image`].
    Image = "image",
    /// The path that an image is written to.
    OutputPath = "path",
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The words with which a program refers to the library's fields: a command has flags instead.
pub trait FieldNames {
    /// The field alone: `steps`.
    fn field(&self, field: Field) -> String;
    /// The field set to a value, in a sentence: `` `device: cpu` ``.
    fn setting(&self, field: Field, value: &str) -> String;
}

/// The library's own names.
struct LibraryNames;

impl FieldNames for LibraryNames {
    fn field(&self, field: Field) -> String {
        field.name().to_owned()
    }

    fn setting(&self, field: Field, value: &str) -> String {
        format!("`{field}: {value}`")
    }
}

/// A text in which fields are mentioned, so that each program can call them by its own names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Field),
    Setting(Field, &'static str),
}

impl Message {
    /// Adds words.
    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.0.push(Piece::Text(text.into()));
        self
    }

    /// Adds another message.
    #[must_use]
    pub fn then(mut self, next: &Self) -> Self {
        self.0.extend_from_slice(&next.0);
        self
    }

    /// Mentions a field.
    #[must_use]
    pub fn field(mut self, field: Field) -> Self {
        self.0.push(Piece::Field(field));
        self
    }

    /// Mentions a field with the value to set.
    #[must_use]
    pub fn setting(mut self, field: Field, value: &'static str) -> Self {
        self.0.push(Piece::Setting(field, value));
        self
    }

    /// The text with fields called as a program calls them, on one line: control characters, wherever they come from, are escaped.
    pub fn describe(&self, names: &dyn FieldNames) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => one_line(text),
            Piece::Field(field) => names.field(*field),
            Piece::Setting(field, value) => names.setting(*field, value),
        };
        self.0.iter().map(piece).collect()
    }

    /// The same with its words made safe to print.
    pub(crate) fn escaped(mut self) -> Self {
        for piece in &mut self.0 {
            if let Piece::Text(text) = piece {
                *text = escape(text);
            }
        }
        self
    }
}

impl<T: Into<String>> From<T> for Message {
    fn from(text: T) -> Self {
        Self(vec![Piece::Text(text.into())])
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe(&LibraryNames))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn application_names() {
        struct Switches;
        impl FieldNames for Switches {
            fn field(&self, field: Field) -> String {
                format!("/{}", field.name())
            }
            fn setting(&self, field: Field, value: &str) -> String {
                format!("/{field}={value}")
            }
        }
        let message = Message::from("see ").field(Field::Steps).text(", or use ").setting(Field::Device, "cpu");
        assert_eq!(message.to_string(), "see steps, or use `device: cpu`");
        assert_eq!(message.describe(&Switches), "see /steps, or use /device=cpu");
    }
}
