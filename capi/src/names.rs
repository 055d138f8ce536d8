//! The library's fields by the names that they have in C.

use braid::error::{Field, FieldNames};

/// Calls fields as braid.h does.
pub(crate) struct CNames;

impl FieldNames for CNames {
    fn field(&self, field: Field) -> String {
        match field {
            Field::NegativeOriginalSize => "negative_original_width, negative_original_height",
            Field::NegativeCrop => "negative_crop_left, negative_crop_top",
            Field::NegativeTargetSize => "negative_target_width, negative_target_height",
            Field::ReferenceTexts => "references.texts, text_factors",
            Field::GuidanceInterval => "guidance_start, guidance_end",
            Field::ScaleBlocks => "blocks",
            Field::ScaleStrength => "scale",
            Field::Resize => "resize_width, resize_height",
            Field::Image => "rgb",
            _ => field.name(),
        }
        .to_owned()
    }

    fn setting(&self, field: Field, value: &str) -> String {
        let quote = if value.parse::<f64>().is_ok() { "" } else { "\"" };
        format!("`{} = {quote}{value}{quote}`", self.field(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings() {
        assert_eq!(CNames.setting(Field::Device, "cpu"), "`device = \"cpu\"`");
        assert_eq!(CNames.setting(Field::VaeTiling, "512"), "`vae_tiling = 512`");
        assert_eq!(CNames.field(Field::ScaleStrength), "scale");
    }
}
