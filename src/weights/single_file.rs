//! Single-file SDXL checkpoints: their original names turned into those of diffusers and transformers.

use super::detect::{ModelFamily, detect, quantised};
use super::keymap::{self, OpenClipName};
use super::weight::{Weight, Weights};
use crate::error::{Error, Result};

const UNET: &str = "model.diffusion_model.";
const TEXT: &str = "conditioner.embedders.0.transformer.";
const TEXT_2: &str = "conditioner.embedders.1.model.";
/// Prefixes of a VAE within a checkpoint, the usual one first.
const VAE: [&str; 2] = ["first_stage_model.", "vae."];

/// The models of a single-file checkpoint, each with the names of its diffusers folder.
///
/// All tensors are views into the file. The VAE keeps its encoder. A part that the file lacks has no tensors.
#[derive(Debug, Clone)]
pub struct SingleFile {
    /// The UNet, named as in `unet/`.
    pub unet: Weights,
    /// CLIP-L, named as in `text_encoder/` (`text_model.*`).
    pub text_encoder: Weights,
    /// OpenCLIP bigG, named as in `text_encoder_2/` (`text_model.*` and `text_projection.weight`).
    pub text_encoder_2: Weights,
    /// The VAE, named as in `vae/`.
    pub vae: Weights,
    /// Whether the file carries the marker `v_pred`: the UNet predicts v, not the noise.
    pub v_prediction: bool,
    /// Whether the file carries the marker `ztsnr`: trained with a terminal signal-to-noise ratio of zero.
    pub zero_snr: bool,
}

/// Renames the tensors of a single-file SDXL base checkpoint.
///
/// # Errors
/// [`Error::Mismatch`] where the file is of another kind, naming it and what is needed; [`Error::Malformed`] where two
/// tensors get one name or a fused tensor cannot be divided.
pub fn split(checkpoint: &Weights) -> Result<SingleFile> {
    demand_sdxl(checkpoint)?;
    let v_prediction = checkpoint.contains("v_pred");
    warn_of_metadata(checkpoint, v_prediction);
    warn_of_strays(checkpoint);
    Ok(SingleFile {
        unet: unet(&checkpoint.under(UNET))?,
        text_encoder: text_encoder(&checkpoint.under(TEXT))?,
        text_encoder_2: open_clip(&checkpoint.under(TEXT_2))?,
        vae: vae(checkpoint)?,
        v_prediction,
        zero_snr: checkpoint.contains("ztsnr"),
    })
}

/// Says where a file's metadata names another prediction than its markers, which alone count, as in diffusers.
fn warn_of_metadata(checkpoint: &Weights, v_prediction: bool) {
    const KEY: &str = "modelspec.prediction_type";
    let Some(said) = checkpoint.metadata().get(KEY) else { return };
    let found = if v_prediction { "v" } else { "epsilon" };
    if said != found && !said.starts_with(&format!("{found}_")) && !said.starts_with(&format!("{found}-")) {
        let (path, said) = (checkpoint.path().display(), crate::error::escape(said));
        tracing::warn!(
            "{path}: the metadata's `{KEY}` is {said}, the marker `v_pred` {}: {found} is predicted, as in diffusers, \
             unless the request's prediction type says otherwise",
            if v_prediction { "is there" } else { "is absent" }
        );
    }
}

/// Says once which tensors are no part of any model: their number and the first one's name. What SDXL's own files have beside the
/// models is left out without a word.
fn warn_of_strays(checkpoint: &Weights) {
    const MARKERS: [&str; 3] = ["v_pred", "ztsnr", "denoiser.sigmas"];
    let layers = resnets_of_a_level(&checkpoint.under(UNET));
    let read = |name: &str| {
        if let Some(name) = name.strip_prefix(UNET) {
            return keymap::unet(name, layers).is_some();
        }
        if let Some(name) = name.strip_prefix(TEXT_2) {
            return name == "logit_scale" || keymap::open_clip(name).is_some();
        }
        name.starts_with(TEXT) || VAE.iter().any(|prefix| name.starts_with(prefix)) || MARKERS.contains(&name)
    };
    let strays: Vec<&str> = checkpoint.names().filter(|name| !read(name)).collect();
    if let Some(first) = strays.first() {
        let (path, count, first) = (checkpoint.path().display(), strays.len(), crate::error::escape(first));
        tracing::warn!("{path}: {count} tensor(s) are no part of an SDXL checkpoint and were not used: {first}, ..");
    }
}

/// Refuses everything but an SDXL base checkpoint whose weights can be read.
fn demand_sdxl(checkpoint: &Weights) -> Result<()> {
    const NEEDED: &str =
        "an SDXL base checkpoint is needed, such as sd_xl_base_1.0.safetensors or a model made from it";
    let found = detect(checkpoint);
    let advice = match found {
        ModelFamily::Sdxl | ModelFamily::SdxlInpaint => match quantised(&checkpoint.under(UNET)) {
            None => return Ok(()),
            Some(tool) => format!("but its weights are quantised ({tool}); one in F32, F16, BF16 or F8 is needed"),
        },
        ModelFamily::CosXl => format!("which no scheduler here follows; {NEEDED}"),
        ModelFamily::SdxlOther => {
            let n = checkpoint.get("model.diffusion_model.input_blocks.0.0.weight").and_then(|w| w.shape().get(1));
            format!(
                "its UNet takes {} channels instead of 4, or of an inpainting model's 9; {NEEDED}",
                n.copied().unwrap_or_default()
            )
        }
        ModelFamily::SdxlRefiner => format!("which refines images and has one text encoder; {NEEDED}"),
        ModelFamily::DiffusersSdxlUnet => {
            "which belongs in the folder unet/ of a diffusers model; give that model's folder (the one that holds \
             model_index.json) or a single-file checkpoint with text encoders and VAE"
                .to_owned()
        }
        ModelFamily::SdxlUnet => "a checkpoint that also holds text encoders and VAE is needed".to_owned(),
        ModelFamily::Adapter(_) => format!("which belongs to the option for IP-Adapters; as the model {NEEDED}"),
        ModelFamily::VisionEncoder | ModelFamily::OpenClipVision => {
            format!("which belongs to the option for the image encoder; as the model {NEEDED}")
        }
        ModelFamily::Lora => format!("which changes a model and is none; {NEEDED}"),
        ModelFamily::Vae | ModelFamily::TextEncoder => format!("one part of a model; {NEEDED}"),
        _ => NEEDED.to_owned(),
    };
    Err(Error::mismatch(checkpoint.path(), format!("this is {found}; {advice}")))
}

/// Renames the UNet's tensors, from original names without their prefix.
fn unet(original: &Weights) -> Result<Weights> {
    let layers = resnets_of_a_level(original);
    let mut out = Weights::new(original.path());
    for (name, weight) in original.iter() {
        if let Some(renamed) = keymap::unet(name, layers) {
            out.insert(renamed, weight.clone())?;
        }
    }
    skip(original, &mut out, |name| keymap::unet(name, layers))?;
    Ok(out)
}

/// Renames what the file has in types that cannot be read, so that a tensor which is needed is not called missing.
fn skip(from: &Weights, to: &mut Weights, rename: impl Fn(&str) -> Option<String>) -> Result<()> {
    let renamed = |(name, dtype)| Some((rename(name)?, dtype));
    for (name, dtype) in from.skipped().filter_map(renamed).collect::<Vec<(String, &str)>>() {
        if !to.contains(&name) {
            to.skip(name, dtype)?;
        }
    }
    Ok(())
}

/// Counts the resnets of a level: the first downsampling follows the resnets of the first level; a UNet of one level
/// has no other input blocks.
fn resnets_of_a_level(original: &Weights) -> usize {
    let blocks = original.iter().filter_map(|(n, _)| keymap::index(n.strip_prefix("input_blocks.")?));
    let (mut last, mut first_op) = (0, None);
    for (n, rest) in blocks {
        last = last.max(n);
        if rest.starts_with("0.op.") {
            first_op = Some(first_op.map_or(n, |f: usize| f.min(n)));
        }
    }
    first_op.map_or(last, |n| n.saturating_sub(1))
}

/// Renames a text encoder's tensors to `text_model.*`: transformers 5.6 and later save a `CLIPTextModel` without that
/// prefix.
///
/// # Errors
/// [`Error::Malformed`] where two tensors get one name.
pub fn text_encoder(weights: &Weights) -> Result<Weights> {
    let mut out = Weights::new(weights.path());
    let renamed = |name: &str| {
        let bare = ["embeddings.", "encoder.", "final_layer_norm."].iter().any(|p| name.starts_with(p));
        if bare { format!("text_model.{name}") } else { name.to_owned() }
    };
    for (name, weight) in weights.iter().filter(|(n, _)| !n.ends_with("position_ids")) {
        out.insert(renamed(name), weight.clone())?;
    }
    skip(weights, &mut out, |name| Some(renamed(name)))?;
    Ok(out)
}

/// Renames an image encoder's tensors to `vision_model.*`, where a file lacks that prefix as transformers 5.6 and later
/// save a `CLIPVisionModel`.
///
/// # Errors
/// [`Error::Malformed`] where two tensors get one name.
pub fn image_encoder(weights: &Weights) -> Result<Weights> {
    let mut out = Weights::new(weights.path());
    let renamed = |name: &str| {
        let bare = ["embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm."].iter().any(|p| name.starts_with(p));
        if bare { format!("vision_model.{name}") } else { name.to_owned() }
    };
    for (name, weight) in weights.iter() {
        out.insert(renamed(name), weight.clone())?;
    }
    skip(weights, &mut out, |name| Some(renamed(name)))?;
    Ok(out)
}

/// Renames the second text encoder's tensors, from OpenCLIP's names without their prefix.
fn open_clip(original: &Weights) -> Result<Weights> {
    let mut out = Weights::new(original.path());
    for (name, weight) in original.iter() {
        let bad = || {
            let what =
                format!("tensor `{TEXT_2}{name}` is {:?}: cannot be divided into query, key and value", weight.shape());
            Error::malformed(original.path(), what)
        };
        match keymap::open_clip(name) {
            // A tool left both forms of the projection: the original one counts, as in diffusers.
            Some(OpenClipName::Plain(_))
                if name == "text_projection.weight" && original.contains("text_projection") =>
            {
                tracing::debug!(name, "tensor is there twice and not used");
            }
            Some(OpenClipName::Plain(renamed)) => out.insert(renamed, weight.clone())?,
            Some(OpenClipName::Transposed(renamed)) => {
                let what = || format!("tensor `{TEXT_2}{name}` is {:?}, not a matrix", weight.shape());
                let view = weight.transposed().ok_or_else(|| Error::malformed(original.path(), what()))?;
                out.insert(renamed, view)?;
            }
            Some(OpenClipName::Thirds(names)) => {
                let rows = weight.shape().first().copied().filter(|rows| rows % 3 == 0).ok_or_else(bad)? / 3;
                for (i, renamed) in names.into_iter().enumerate() {
                    out.insert(renamed, weight.rows(i * rows, rows).ok_or_else(bad)?)?;
                }
            }
            None => {}
        }
    }
    for (name, dtype) in original.skipped() {
        match keymap::open_clip(name) {
            Some(OpenClipName::Plain(renamed) | OpenClipName::Transposed(renamed)) if !out.contains(&renamed) => {
                out.skip(renamed, dtype)?;
            }
            Some(OpenClipName::Thirds(names)) => names.into_iter().try_for_each(|name| out.skip(name, dtype))?,
            _ => {}
        }
    }
    Ok(out)
}

/// Renames a VAE's tensors to diffusers' names, from a VAE file of either layout or from a whole checkpoint.
///
/// # Errors
/// [`Error::Malformed`] where two tensors get one name.
pub fn vae(weights: &Weights) -> Result<Weights> {
    let prefixed = VAE.iter().map(|prefix| weights.under(prefix)).find(|inside| inside.names().next().is_some());
    let bare = || if detect(weights) == ModelFamily::Vae { weights.clone() } else { Weights::new(weights.path()) };
    let original = &prefixed.unwrap_or_else(bare);
    let mut out = Weights::new(weights.path());
    let level = |n: &str| keymap::index(n.strip_prefix("decoder.up.")?).map(|(level, _)| level + 1);
    let levels = original.iter().filter_map(|(n, _)| level(n)).max();
    for (name, weight) in original.iter() {
        let renamed = match levels {
            Some(levels) => keymap::vae(name, levels),
            None => Some(current_attention_names(name)),
        };
        if let Some(renamed) = renamed {
            let view = attention_matrix(&renamed, weight);
            out.insert(renamed, view)?;
        }
    }
    skip(original, &mut out, |name| match levels {
        Some(levels) => keymap::vae(name, levels),
        None => Some(current_attention_names(name)),
    })?;
    Ok(out)
}

/// Renames the projections of the VAE's attention, which old diffusers files name differently.
fn current_attention_names(name: &str) -> String {
    if !name.contains(".attentions.") {
        return name.to_owned();
    }
    let pairs = [(".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")];
    pairs.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new))
}

/// Makes matrices of the 1x1 convolutions with which the original VAE computes its attention.
fn attention_matrix(name: &str, weight: &Weight) -> Weight {
    match *weight.shape() {
        [rows, columns, 1, 1] | [rows, columns, 1] if name.contains(".attentions.") => {
            weight.reshaped(&[rows, columns]).unwrap_or_else(|| weight.clone())
        }
        _ => weight.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(names: &[(&str, &[usize])]) -> Weights {
        Weights::absent("m.safetensors", names)
    }

    #[test]
    fn other_families() {
        const CONV: &str = "model.diffusion_model.input_blocks.0.0.weight";
        const KEY: &str = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight";
        // Tensors, then what the error must say of the family and of what is needed.
        type Case<'a> = (&'a [(&'a str, &'a [usize])], &'a str, &'a str);
        let cases: &[Case<'_>] = &[
            (
                &[(CONV, &[320, 4, 3, 3]), ("cond_stage_model.transformer.text_model.x", &[1])],
                "Stable Diffusion 1.x",
                "SDXL base",
            ),
            (&[(KEY, &[320, 768])], "Stable Diffusion 1.x", "SDXL base"),
            (
                &[(CONV, &[320, 4, 3, 3]), ("cond_stage_model.model.ln_final.bias", &[1])],
                "Stable Diffusion 2.x",
                "SDXL base",
            ),
            (&[(CONV, &[384, 4, 3, 3]), ("conditioner.embedders.0.model.ln_final.bias", &[1])], "refiner", "SDXL base"),
            (
                &[(CONV, &[320, 8, 3, 3]), ("conditioner.embedders.1.model.ln_final.bias", &[1])],
                "another task",
                "8 channels",
            ),
            (&[("double_blocks.0.img_attn.norm.key_norm.scale", &[1])], "Flux", "SDXL base"),
            (&[("model.diffusion_model.joint_blocks.0.x", &[1])], "Stable Diffusion 3", "SDXL base"),
            (&[("lora_unet_input_blocks_4_1_proj_in.lora_down.weight", &[4, 640])], "LoRA", "SDXL base"),
            (&[("unet.down_blocks.1.attn1.to_k.lora_A.weight", &[4, 640])], "LoRA", "SDXL base"),
            (&[("decoder.up_blocks.0.resnets.0.conv1.weight", &[1])], "a VAE", "SDXL base"),
            (&[("first_stage_model.decoder.conv_in.weight", &[1])], "a VAE", "SDXL base"),
            (&[("image_proj.latents", &[1]), ("ip_adapter.1.to_k_ip.weight", &[1])], "Plus", "option for IP-Adapters"),
            (&[("vision_model.pre_layrnorm.weight", &[1])], "image encoder", "option for the image encoder"),
            (&[("text_model.x", &[1])], "text encoder", "SDXL base"),
            (
                &[("conv_in.weight", &[1]), ("down_blocks.0.x", &[1]), ("add_embedding.linear_1.weight", &[1])],
                "diffusers' names",
                "model_index.json",
            ),
            (
                &[(KEY, &[640, 2048]), ("model.diffusion_model.label_emb.0.0.bias", &[1])],
                "without its text encoders",
                "VAE",
            ),
            (&[("edm_mean", &[4]), ("conditioner.embedders.1.model.ln_final.bias", &[1])], "Playground", "SDXL base"),
            (&[("x", &[])], "unknown kind", "SDXL base"),
            (&[], "unknown kind", "SDXL base"),
        ];
        for (names, family, advice) in cases {
            let error = split(&file(names)).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::Mismatch { .. }), "{text}");
            assert!(text.starts_with("m.safetensors: ") && text.contains(family) && text.contains(advice), "{text}");
        }
    }

    #[test]
    fn markers() {
        let key = ("conditioner.embedders.1.model.ln_final.bias", &[1][..]);
        let plain = split(&file(&[key])).unwrap();
        assert!(!plain.v_prediction && !plain.zero_snr);
        let marked = split(&file(&[key, ("v_pred", &[]), ("ztsnr", &[])])).unwrap();
        assert!(marked.v_prediction && marked.zero_snr && marked.unet.is_empty());
    }

    #[test]
    fn fused_projection_rows() {
        let mut weights = Weights::new("m");
        let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let prefix = "conditioner.embedders.1.model.";
        let insert = |weights: &mut Weights, name: &str, shape: &[usize]| {
            let name = format!("{prefix}{name}");
            weights.insert(name.clone(), Weight::from_f32(&values, shape, &name).unwrap()).unwrap();
        };
        insert(&mut weights, "transformer.resblocks.0.attn.in_proj_weight", &[6, 2]);
        insert(&mut weights, "text_projection", &[3, 4]);
        let text = split(&weights).unwrap().text_encoder_2;
        let layer = "text_model.encoder.layers.0.self_attn";
        assert_eq!(text.get(&format!("{layer}.q_proj.weight")).unwrap().to_f32(), [0., 1., 2., 3.]);
        assert_eq!(text.get(&format!("{layer}.v_proj.weight")).unwrap().to_f32(), [8., 9., 10., 11.]);
        let projection = text.get("text_projection.weight").unwrap();
        assert_eq!(projection.shape(), [4, 3]);
        assert_eq!(projection.to_f32()[..3], [0., 4., 8.]);
        insert(&mut weights, "transformer.resblocks.1.attn.in_proj_weight", &[4, 3]);
        assert!(split(&weights).unwrap_err().to_string().contains("resblocks.1.attn.in_proj_weight` is [4, 3]"));
    }

    #[test]
    fn vae_layouts() {
        let original =
            [("decoder.up.0.block.0.conv1.weight", &[1][..]), ("decoder.mid.attn_1.q.weight", &[2, 2, 1, 1])];
        let out = vae(&file(&original)).unwrap();
        assert!(out.get("decoder.up_blocks.0.resnets.0.conv1.weight").is_some());
        let old = [("decoder.up_blocks.0.x", &[1][..]), ("decoder.mid_block.attentions.0.proj_attn.weight", &[2, 2])];
        assert!(vae(&file(&old)).unwrap().get("decoder.mid_block.attentions.0.to_out.0.weight").is_some());
    }
}
