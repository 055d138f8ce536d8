//! Detection of the model that a set of tensors belongs to, by names and shapes.

use super::lora::keys::is_lora;
use super::taesd_names::is_taesd;
use super::textual_inversion::names::is_textual_inversion;
use super::weight::Weights;
use std::fmt;

/// The kind of file that a set of tensors comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelFamily {
    /// A whole SDXL base checkpoint with its original names.
    Sdxl,
    /// An SDXL checkpoint for inpainting: its UNet takes nine channels.
    SdxlInpaint,
    /// An SDXL checkpoint for another task: its UNet takes neither four channels nor nine.
    SdxlOther,
    /// The SDXL refiner.
    SdxlRefiner,
    /// The UNet of SDXL with its original names, without text encoders.
    SdxlUnet,
    /// CosXL: SDXL's layout, trained for EDM's continuous noise levels.
    CosXl,
    /// Playground v2.5: SDXL's layout, another noise schedule and other latents.
    Playground,
    /// Stable Diffusion 1.x.
    Sd1,
    /// Stable Diffusion 2.x.
    Sd2,
    /// Stable Diffusion 3.x.
    Sd3,
    /// Flux.
    Flux,
    /// A UNet with diffusers' names that takes SDXL's added conditions.
    DiffusersSdxlUnet,
    /// Another UNet with diffusers' names.
    DiffusersUnet,
    /// A ControlNet.
    ControlNet,
    /// A VAE.
    Vae,
    /// TAESD, the tiny autoencoder, or one half of it.
    Taesd,
    /// A CLIP text encoder.
    TextEncoder,
    /// A CLIP image encoder with transformers' names.
    VisionEncoder,
    /// A CLIP image encoder with OpenCLIP's names.
    OpenClipVision,
    /// An IP-Adapter.
    Adapter(AdapterKind),
    /// A LoRA or one of its relatives.
    Lora,
    /// A textual inversion.
    TextualInversion,
    /// An image-prompt file.
    ImagePrompt,
    /// None of these.
    Unknown,
}

impl fmt::Display for ModelFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sdxl => "an SDXL base checkpoint",
            Self::SdxlInpaint => "an SDXL inpainting checkpoint",
            Self::SdxlOther => "an SDXL checkpoint for another task",
            Self::SdxlRefiner => "an SDXL refiner checkpoint",
            Self::SdxlUnet => "the UNet of an SDXL checkpoint without its text encoders",
            Self::CosXl => "a CosXL checkpoint, trained for EDM's noise levels",
            Self::Playground => "a Playground v2.5 checkpoint",
            Self::Sd1 => "a Stable Diffusion 1.x checkpoint",
            Self::Sd2 => "a Stable Diffusion 2.x checkpoint",
            Self::Sd3 => "a Stable Diffusion 3 checkpoint",
            Self::Flux => "a Flux checkpoint",
            Self::DiffusersSdxlUnet => "an SDXL UNet with diffusers' names",
            Self::DiffusersUnet => "a UNet with diffusers' names that is not SDXL's",
            Self::ControlNet => "a ControlNet",
            Self::Vae => "a VAE",
            Self::Taesd => "TAESD, a tiny autoencoder",
            Self::TextEncoder => "a CLIP text encoder",
            Self::VisionEncoder => "a CLIP image encoder",
            Self::OpenClipVision => "a CLIP image encoder with OpenCLIP's names",
            Self::Adapter(kind) => return kind.fmt(f),
            Self::Lora => "a LoRA",
            Self::TextualInversion => "a textual inversion",
            Self::ImagePrompt => "an image-prompt file",
            Self::Unknown => "an unknown kind of file",
        })
    }
}

/// The architecture of an IP-Adapter, told by its image projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterKind {
    /// One linear layer and a norm on the image embedding (`ip-adapter_sdxl`, `ip-adapter_sdxl_vit-h`).
    Base,
    /// Base for Stable Diffusion 1.x, whose text is 768 wide.
    BaseSd1,
    /// A resampler on the encoder's hidden states (`ip-adapter-plus*`).
    Plus,
    /// Plus for Stable Diffusion 1.x, whose text is 768 wide.
    PlusSd1,
    /// A perceptron on the encoder's hidden states (`ip-adapter-full-face`).
    FullFace,
    /// On a face recognition embedding (`ip-adapter-faceid`).
    FaceId,
    /// On a face recognition embedding and hidden states (`ip-adapter-faceid-plus`).
    FaceIdPlus,
    /// An image projection that is none of these.
    Other,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Base => "a base IP-Adapter for SDXL",
            Self::BaseSd1 => "an IP-Adapter for Stable Diffusion 1.x",
            Self::Plus => "an IP-Adapter Plus",
            Self::PlusSd1 => "an IP-Adapter Plus for Stable Diffusion 1.x",
            Self::FullFace => "an IP-Adapter Full Face",
            Self::FaceId => "an IP-Adapter FaceID",
            Self::FaceIdPlus => "an IP-Adapter FaceID Plus",
            Self::Other => "an IP-Adapter of an unknown kind",
        })
    }
}

/// The `format` of an image-prompt file's metadata.
pub(crate) const IMAGE_PROMPT_FORMAT: &str = "braid-image-prompt";

/// Detects the kind of file that the tensors come from: what most of them are, whatever their element types, since a
/// tool may have left a stray tensor of another kind.
pub fn detect(weights: &Weights) -> ModelFamily {
    if weights.metadata().get("format").is_some_and(|format| format == IMAGE_PROMPT_FORMAT) {
        return ModelFamily::ImagePrompt;
    }
    let any = |test: &dyn Fn(&str) -> bool| weights.names().any(test);
    let begins = |prefix: &str| any(&|name| name.starts_with(prefix));
    let count = |test: &dyn Fn(&str) -> bool| weights.names().filter(|name| test(name)).count();
    let loras = count(&is_lora);
    let adapters = count(&|n| strip(&ADAPTER_ATTENTION, n).is_some() || strip(&ADAPTER_PROJECTION, n).is_some());
    let whole = count(&|n| CHECKPOINT.iter().any(|prefix| n.starts_with(prefix)));
    let controls = count(&|n| n.starts_with("control_model."));
    if any(&|n| n.contains("double_blocks.0.img_attn.")) {
        return ModelFamily::Flux;
    }
    if any(&|n| n.contains("joint_blocks.0.")) {
        return ModelFamily::Sd3;
    }
    if whole > adapters.max(loras) && whole > 4 * controls {
        return checkpoint(weights, &begins);
    }
    if let Some(kind) = adapter_kind(weights).filter(|_| adapters >= loras) {
        return ModelFamily::Adapter(kind);
    }
    if 2 * loras >= weights.names().count().max(1) {
        return ModelFamily::Lora;
    }
    if controls > 0 || begins("controlnet_cond_embedding.") || begins("input_hint_block.") {
        return ModelFamily::ControlNet;
    }
    if begins("vision_model.") || weights.contains("embeddings.patch_embedding.weight") {
        return ModelFamily::VisionEncoder;
    }
    if begins("visual.") {
        return ModelFamily::OpenClipVision;
    }
    if begins("text_model.") || begins("embeddings.token_embedding.") {
        return ModelFamily::TextEncoder;
    }
    if begins("down_blocks.") && weights.contains("conv_in.weight") {
        let sdxl = weights.contains("add_embedding.linear_1.weight");
        return if sdxl { ModelFamily::DiffusersSdxlUnet } else { ModelFamily::DiffusersUnet };
    }
    if ["decoder.up_blocks.", "decoder.up.", "first_stage_model.", "vae.decoder."].into_iter().any(begins) {
        return ModelFamily::Vae;
    }
    if any(&is_taesd) {
        return ModelFamily::Taesd;
    }
    if is_textual_inversion(weights) {
        return ModelFamily::TextualInversion;
    }
    ModelFamily::Unknown
}

/// Prefixes of whole checkpoints of the original layout.
const CHECKPOINT: [&str; 3] = ["model.diffusion_model.", "conditioner.embedders.", "cond_stage_model."];

/// Tells how the weights of a file are quantised; `None` where they are not. Quantised are integers, and floats of 8 or 4
/// bits that need a scale, in the place of a model's weights.
pub(crate) fn quantised(weights: &Weights) -> Option<&'static str> {
    const TOOLS: [(&str, &str); 8] = [
        (".SCB", "INT8 by bitsandbytes"),
        (".quant_state.bitsandbytes__nf4", "NF4 by bitsandbytes"),
        (".quant_state.bitsandbytes__fp4", "FP4 by bitsandbytes"),
        (".absmax", "4 bits by bitsandbytes"),
        (".weight._data", "quanto"),
        (".qweight", "GPTQ, AWQ or Nunchaku"),
        (".weight_scale", "a tool that stores `weight_scale`"),
        (".scale_weight", "scaled FP8 by ComfyUI"),
    ];
    let small = |dtype: &str| {
        ["I8", "U8", "int8", "uint8"].contains(&dtype)
            || dtype.starts_with("F8")
            || dtype.starts_with("float8")
            || dtype.starts_with("F4")
    };
    let matrix =
        |name: &str| name.ends_with(".weight") || name.ends_with(".weight._data") || name.ends_with(".qweight");
    weights.skipped().find(|(name, dtype)| small(dtype) && matrix(name))?;
    let tool = TOOLS.iter().find(|(end, _)| weights.names().any(|name| name.ends_with(end)));
    Some(tool.map_or("integers or small floats by an unknown tool", |(_, tool)| tool))
}

/// Tells whole checkpoints of the original layout from one another.
fn checkpoint(weights: &Weights, begins: &dyn Fn(&str) -> bool) -> ModelFamily {
    let channels = weights.get("model.diffusion_model.input_blocks.0.0.weight").and_then(|w| w.shape().get(1).copied());
    if begins("conditioner.embedders.1.") {
        return match channels {
            Some(n) if n != 4 && n != 9 => ModelFamily::SdxlOther,
            _ if weights.contains("edm_mean") => ModelFamily::Playground,
            _ if weights.names().any(|name| name.starts_with("edm_vpred.")) => ModelFamily::CosXl,
            Some(9) => ModelFamily::SdxlInpaint,
            _ => ModelFamily::Sdxl,
        };
    }
    if begins("conditioner.embedders.0.model.") {
        return ModelFamily::SdxlRefiner;
    }
    if begins("cond_stage_model.model.") {
        return ModelFamily::Sd2;
    }
    if begins("cond_stage_model.") {
        return ModelFamily::Sd1;
    }
    let cross_attention_dim = weights
        .iter()
        .find(|(n, _)| n.starts_with("model.diffusion_model.") && n.ends_with(".attn2.to_k.weight"))
        .and_then(|(_, w)| w.shape().get(1).copied());
    match (begins("model.diffusion_model.label_emb."), cross_attention_dim) {
        (true, Some(1280)) => ModelFamily::SdxlRefiner,
        (true, Some(2048)) => ModelFamily::SdxlUnet,
        (false, Some(1024)) => ModelFamily::Sd2,
        (false, Some(768)) => ModelFamily::Sd1,
        _ => ModelFamily::Unknown,
    }
}

/// Prefixes of an IP-Adapter's attention matrices, then of its projection: as published, and as the training script
/// leaves them.
pub(super) const ADAPTER_ATTENTION: [&str; 3] = ["ip_adapter.adapter_modules.", "ip_adapter.", "adapter_modules."];
pub(super) const ADAPTER_PROJECTION: [&str; 2] = ["image_proj.", "image_proj_model."];

pub(super) fn strip<'a>(prefixes: &[&str], name: &'a str) -> Option<&'a str> {
    prefixes.iter().find_map(|p| name.strip_prefix(p))
}

/// Tells the kind of IP-Adapter; `None` where the tensors are no IP-Adapter's.
pub fn adapter_kind(weights: &Weights) -> Option<AdapterKind> {
    if !weights.names().any(|n| strip(&ADAPTER_ATTENTION, n).is_some() || strip(&ADAPTER_PROJECTION, n).is_some()) {
        return None;
    }
    let has = |leaf: &str| ADAPTER_PROJECTION.iter().any(|p| weights.contains(&format!("{p}{leaf}")));
    let cross_attention_dim =
        weights.iter().find(|(n, _)| n.ends_with(".to_k_ip.weight")).and_then(|(_, w)| w.shape().get(1));
    let sd1 = cross_attention_dim == Some(&768);
    // The order is diffusers': a Plus file has none of the earlier keys, a FaceID file has only the norm.
    Some(if has("proj.weight") {
        if sd1 { AdapterKind::BaseSd1 } else { AdapterKind::Base }
    } else if has("proj.3.weight") {
        AdapterKind::FullFace
    } else if has("perceiver_resampler.proj_in.weight") {
        AdapterKind::FaceIdPlus
    } else if has("latents") {
        if sd1 { AdapterKind::PlusSd1 } else { AdapterKind::Plus }
    } else if has("norm.weight") {
        AdapterKind::FaceId
    } else {
        AdapterKind::Other
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(names: &[(&str, &[usize])]) -> Weights {
        Weights::absent("a.bin", names)
    }

    #[test]
    fn kinds_by_key() {
        let pair: (&str, &[usize]) = ("ip_adapter.1.to_k_ip.weight", &[640, 2048]);
        for (key, expected) in [
            ("proj.weight", AdapterKind::Base),
            ("proj.3.weight", AdapterKind::FullFace),
            ("perceiver_resampler.proj_in.weight", AdapterKind::FaceIdPlus),
            ("latents", AdapterKind::Plus),
            ("norm.weight", AdapterKind::FaceId),
            ("x", AdapterKind::Other),
        ] {
            let file = adapter(&[(&format!("image_proj.{key}"), &[8192, 1280]), pair]);
            assert_eq!(adapter_kind(&file), Some(expected), "{key}");
        }
        let file = adapter(&[("image_proj.proj.weight", &[3072, 1024]), ("ip_adapter.1.to_k_ip.weight", &[320, 768])]);
        assert_eq!(adapter_kind(&file), Some(AdapterKind::BaseSd1));
        assert_eq!(adapter_kind(&adapter(&[("vision_model.x", &[1])])), None);
    }
}
