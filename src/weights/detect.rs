//! What a set of tensors is, judged by names and shapes.

use super::Weights;
use super::adapter::{self, AdapterKind};
use std::fmt;

/// The kind of file that a set of tensors comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelFamily {
    /// A whole SDXL base checkpoint with its original names.
    Sdxl,
    /// An SDXL checkpoint for inpainting or another task: its UNet takes more than four channels.
    SdxlInpaint,
    /// The SDXL refiner.
    SdxlRefiner,
    /// The UNet of SDXL with its original names, without text encoders.
    SdxlUnet,
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
    /// None of these.
    Unknown,
}

impl fmt::Display for ModelFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sdxl => "an SDXL base checkpoint",
            Self::SdxlInpaint => "an SDXL inpainting checkpoint",
            Self::SdxlRefiner => "an SDXL refiner checkpoint",
            Self::SdxlUnet => "the UNet of an SDXL checkpoint without its text encoders",
            Self::Playground => "a Playground v2.5 checkpoint",
            Self::Sd1 => "a Stable Diffusion 1.x checkpoint",
            Self::Sd2 => "a Stable Diffusion 2.x checkpoint",
            Self::Sd3 => "a Stable Diffusion 3 checkpoint",
            Self::Flux => "a Flux checkpoint",
            Self::DiffusersSdxlUnet => "an SDXL UNet with diffusers' names",
            Self::DiffusersUnet => "a UNet with diffusers' names that is not SDXL's",
            Self::ControlNet => "a ControlNet",
            Self::Vae => "a VAE",
            Self::TextEncoder => "a CLIP text encoder",
            Self::VisionEncoder => "a CLIP image encoder",
            Self::OpenClipVision => "a CLIP image encoder with OpenCLIP's names",
            Self::Adapter(kind) => return kind.fmt(f),
            Self::Lora => "a LoRA",
            Self::Unknown => "no kind of file that is known here",
        })
    }
}

/// Judges a set of tensors.
pub fn detect(weights: &Weights) -> ModelFamily {
    let any = |test: &dyn Fn(&str) -> bool| weights.iter().any(|(name, _)| test(name));
    let begins = |prefix: &str| any(&|name| name.starts_with(prefix));
    if let Some(kind) = adapter::kind(weights) {
        return ModelFamily::Adapter(kind);
    }
    if any(&is_lora) {
        return ModelFamily::Lora;
    }
    if any(&|n| n.contains("double_blocks.0.img_attn.")) {
        return ModelFamily::Flux;
    }
    if any(&|n| n.contains("joint_blocks.0.")) {
        return ModelFamily::Sd3;
    }
    if begins("control_model.") || begins("controlnet_cond_embedding.") || begins("input_hint_block.") {
        return ModelFamily::ControlNet;
    }
    if begins("model.diffusion_model.") || begins("conditioner.embedders.") || begins("cond_stage_model.") {
        return checkpoint(weights, &begins);
    }
    if begins("vision_model.") {
        return ModelFamily::VisionEncoder;
    }
    if begins("visual.") {
        return ModelFamily::OpenClipVision;
    }
    if begins("text_model.") || begins("embeddings.token_embedding.") {
        return ModelFamily::TextEncoder;
    }
    if begins("down_blocks.") && weights.get("conv_in.weight").is_some() {
        let sdxl = weights.get("add_embedding.linear_1.weight").is_some();
        return if sdxl { ModelFamily::DiffusersSdxlUnet } else { ModelFamily::DiffusersUnet };
    }
    if begins("decoder.up_blocks.") || begins("decoder.up.") || begins("first_stage_model.") {
        return ModelFamily::Vae;
    }
    ModelFamily::Unknown
}

fn is_lora(name: &str) -> bool {
    ["lora_unet_", "lora_te", "lycoris_"].iter().any(|p| name.starts_with(p))
        || [".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", "_lora.down.", "_lora.up.", ".lora.down.", ".lora.up."]
            .iter()
            .any(|p| name.contains(p))
}

/// Tells whole checkpoints of the original layout from one another.
fn checkpoint(weights: &Weights, begins: &dyn Fn(&str) -> bool) -> ModelFamily {
    let channels = weights.get("model.diffusion_model.input_blocks.0.0.weight").and_then(|w| w.shape().get(1).copied());
    if begins("conditioner.embedders.1.") {
        return match channels {
            Some(n) if n != 4 => ModelFamily::SdxlInpaint,
            _ if weights.get("edm_mean").is_some() => ModelFamily::Playground,
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
    let context = weights
        .iter()
        .find(|(n, _)| n.starts_with("model.diffusion_model.") && n.ends_with(".attn2.to_k.weight"))
        .and_then(|(_, w)| w.shape().get(1).copied());
    match (begins("model.diffusion_model.label_emb."), context) {
        (true, Some(1280)) => ModelFamily::SdxlRefiner,
        (true, Some(2048)) => ModelFamily::SdxlUnet,
        (false, Some(1024)) => ModelFamily::Sd2,
        (false, Some(768)) => ModelFamily::Sd1,
        _ => ModelFamily::Unknown,
    }
}
