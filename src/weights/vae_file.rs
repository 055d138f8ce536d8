//! Files that are given for their VAE alone.

use super::detect::{ModelFamily, detect};
use super::single_file;
use super::weight::Weights;
use crate::error::{Error, Result};

const NEEDED: &str = "SDXL's VAE is needed, such as sdxl_vae.safetensors, or an SDXL checkpoint with one";

/// Takes the VAE of a file, with diffusers' names: of a VAE's own file of either layout, or of a checkpoint whose latents are SDXL's.
///
/// # Errors
/// [`Error::Mismatch`] where the file has none, or that of another family, naming it; [`Error::Malformed`] where two tensors get one
/// name.
pub fn vae_file(file: &Weights) -> Result<Weights> {
    let refuse = |what: String| Err(Error::mismatch(file.path(), what));
    if let Some(kind) = foreign(file) {
        return refuse(format!("this is {kind}; {NEEDED}"));
    }
    let found = detect(file);
    match found {
        ModelFamily::Vae
        | ModelFamily::Sdxl
        | ModelFamily::SdxlInpaint
        | ModelFamily::SdxlOther
        | ModelFamily::SdxlRefiner
        | ModelFamily::SdxlUnet
        | ModelFamily::CosXl
        | ModelFamily::Playground => {}
        ModelFamily::Sd1 | ModelFamily::Sd2 | ModelFamily::Sd3 | ModelFamily::Flux => {
            return refuse(format!("this is {found}, whose VAE has other latents than SDXL's; {NEEDED}"));
        }
        ModelFamily::Taesd => return refuse(format!("this is {found}, which has an option of its own; {NEEDED}")),
        _ => return refuse(format!("this is {found}; {NEEDED}")),
    }
    let vae = single_file::vae(file)?;
    if vae.names().any(|name| name.starts_with("decoder.")) {
        return Ok(vae);
    }
    refuse(format!("this is {found} without a VAE's decoder; {NEEDED}"))
}

/// Names a VAE of another architecture, whose tensors in part have the names of this one.
fn foreign(file: &Weights) -> Option<&'static str> {
    const VIDEO: [&str; 4] = ["spatial_res_block", "time_stack", "time_conv", "temporal"];
    let any = |part: &str| file.names().any(|name| name.contains(part));
    let vae = |name: &str| ["encoder.", "decoder."].iter().any(|side| name.contains(side));
    if VIDEO.iter().any(|part| any(part)) || file.iter().any(|(name, w)| vae(name) && w.shape().len() == 5) {
        return Some("a VAE for video");
    }
    if any("quantize.embedding.") {
        return Some("a VQ autoencoder, whose latents are of a finite number");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(names: &[(&str, &[usize])]) -> Weights {
        Weights::absent("v.safetensors", names)
    }

    #[test]
    fn layouts() {
        const CONV: &[usize] = &[8, 4, 3, 3];
        let expected = "decoder.up_blocks.0.resnets.0.conv1.weight";
        for name in [
            "first_stage_model.decoder.up.0.block.0.conv1.weight",
            "vae.decoder.up.0.block.0.conv1.weight",
            "decoder.up.0.block.0.conv1.weight",
            "vae.decoder.up_blocks.0.resnets.0.conv1.weight",
            expected,
        ] {
            let found = vae_file(&file(&[(name, CONV)])).unwrap();
            assert_eq!(found.names().collect::<Vec<_>>(), [expected], "{name}");
        }
        let text = ("conditioner.embedders.1.model.ln_final.bias", &[1][..]);
        let unet = ("model.diffusion_model.input_blocks.0.0.weight", &[320, 4, 3, 3][..]);
        let checkpoint = [text, unet, ("first_stage_model.decoder.up.0.block.0.conv1.weight", CONV)];
        assert!(vae_file(&file(&checkpoint)).unwrap().contains(expected));
    }

    #[test]
    fn other_kinds() {
        const IN: &str = "decoder.conv_in.weight";
        const UP: &str = "decoder.up.0.block.0.conv1.weight";
        type Case<'a> = (&'a [(&'a str, &'a [usize])], &'a str);
        let cases: [Case<'_>; 10] = [
            (&[(UP, &[8, 8, 3, 3, 3])], "a VAE for video"),
            (
                &[(IN, &[8, 4, 3, 3]), ("decoder.up_blocks.0.resnets.0.spatial_res_block.conv1.weight", &[1])],
                "for video",
            ),
            (&[(UP, &[1]), ("quantize.embedding.weight", &[1])], "VQ autoencoder"),
            (
                &[("cond_stage_model.transformer.x", &[1]), ("first_stage_model.decoder.up.0.x", &[1])],
                "Stable Diffusion 1.x checkpoint, whose VAE has other latents",
            ),
            (&[("double_blocks.0.img_attn.x", &[1]), ("vae.decoder.up.0.x", &[1])], "Flux checkpoint, whose VAE has"),
            (&[("conditioner.embedders.1.model.ln_final.bias", &[1])], "SDXL base checkpoint without a VAE's decoder"),
            (&[("vision_model.pre_layrnorm.weight", &[1])], "a CLIP image encoder"),
            (&[("3.conv.0.weight", &[64, 64, 3, 3])], "TAESD, a tiny autoencoder, which has an option of its own"),
            (&[("lora_unet_x.lora_down.weight", &[4, 4])], "a LoRA"),
            (&[], "an unknown kind of file"),
        ];
        for (names, expected) in cases {
            let text = vae_file(&file(names)).unwrap_err().to_string();
            assert!(text.starts_with("v.safetensors: ") && text.contains(expected), "{expected}: {text}");
            assert!(text.contains("such as sdxl_vae.safetensors"), "{text}");
        }
    }
}
