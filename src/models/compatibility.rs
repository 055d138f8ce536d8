//! Checks of files against each other: whether their models fit together, judged by sizes.

use super::clip::{ClipTextConfig, ClipVisionConfig};
use super::ip_adapter::AdapterConfig;
use super::unet::UnetConfig;
use super::vae::VaeConfig;
use crate::error::{Error, Result};
use std::path::Path;

/// Names a published image encoder by the width of its hidden states.
fn encoder_name(hidden: usize) -> &'static str {
    match hidden {
        1664 => "ViT-bigG",
        1280 => "ViT-H",
        1024 => "ViT-L",
        _ => "an encoder of its own",
    }
}

/// The image encoder that an IP-Adapter needs, in words.
pub fn encoder_of(adapter: &AdapterConfig) -> &'static str {
    match (adapter.takes_hidden_states(), adapter.embedding_dim) {
        (false, 1280) | (true, 1664) => "ViT-bigG, sdxl_models/image_encoder of h94/IP-Adapter",
        (false, 1024) | (true, 1280) => "ViT-H, models/image_encoder of h94/IP-Adapter",
        (true, 1024) => "CLIP's ViT-L",
        (true, 512) => "no CLIP encoder, but a face recognition (InstantID), which is not supported",
        _ => "the image encoder that it was trained with",
    }
}

/// Checks that an IP-Adapter takes the embeddings, or the hidden states, of an image encoder.
///
/// # Errors
/// [`Error::Mismatch`] for the adapter's file, naming the encoder that it needs and the one given.
pub fn adapter_with_image_encoder(adapter: (&Path, &AdapterConfig), encoder: (&Path, &ClipVisionConfig)) -> Result<()> {
    let (what, have) = match adapter.1.takes_hidden_states() {
        true => ("hidden states", encoder.1.hidden_size),
        false => ("image embeddings", encoder.1.projection_dim),
    };
    let (need, path) = (adapter.1.embedding_dim, encoder.0.display());
    if need == have {
        return Ok(());
    }
    let (needed, name) = (encoder_of(adapter.1), encoder_name(encoder.1.hidden_size));
    Err(Error::mismatch(
        adapter.0,
        format!("this adapter needs {what} {need} wide: {needed}; the encoder given, {path}, gives {have} ({name})"),
    ))
}

/// Checks that an IP-Adapter has a pair of matrices for each cross-attention of a UNet.
///
/// # Errors
/// [`Error::Mismatch`] for the adapter's file.
pub fn adapter_with_unet(adapter: (&Path, &AdapterConfig), unet: (&Path, &UnetConfig)) -> Result<()> {
    let fail = |what: String| {
        let model = unet.0.display();
        Err(Error::mismatch(adapter.0, format!("{what}: this adapter was made for another model than {model}")))
    };
    if adapter.1.cross_attention_dim != unet.1.cross_attention_dim {
        let (a, u) = (adapter.1.cross_attention_dim, unet.1.cross_attention_dim);
        return fail(format!("image tokens are {a} wide, the UNet's text tokens {u}"));
    }
    let widths = unet.1.cross_attention_widths();
    if adapter.1.widths.len() != widths.len() {
        let (a, u) = (adapter.1.widths.len(), widths.len());
        return fail(format!("{a} pairs of matrices for the UNet's {u} cross-attentions"));
    }
    match adapter.1.widths.iter().zip(&widths).enumerate().find(|(_, (a, u))| a != u) {
        Some((i, (a, u))) => {
            fail(format!("ip_adapter.{}.to_k_ip.weight is {a} wide, the cross-attention {u}", 2 * i + 1))
        }
        None => Ok(()),
    }
}

/// Checks that a UNet takes the text of two encoders: their widths add up to `cross_attention_dim`, and the second
/// one's pooled text and six time ids make its added embedding.
///
/// # Errors
/// [`Error::Mismatch`] for the UNet's file.
pub fn text_encoders_with_unet(
    first: &ClipTextConfig,
    second: &ClipTextConfig,
    unet: (&Path, &UnetConfig),
) -> Result<()> {
    let fail = |what: String| {
        Err(Error::mismatch(unet.0, format!("{what}; the text encoders of this UNet's own model are needed")))
    };
    let given = first.hidden_size.saturating_add(second.hidden_size);
    if given != unet.1.cross_attention_dim {
        let (a, b, need) = (first.hidden_size, second.hidden_size, unet.1.cross_attention_dim);
        return fail(format!("the text encoders give tokens {a} + {b} = {given} wide, the UNet takes {need}"));
    }
    let Some(pooled) = second.projection_dim else {
        return fail("the second text encoder has no text_projection".into());
    };
    let given = unet.1.addition_time_embed_dim.saturating_mul(6).saturating_add(pooled);
    if given != unet.1.projection_class_embeddings_input_dim {
        let (time, need) = (unet.1.addition_time_embed_dim, unet.1.projection_class_embeddings_input_dim);
        return fail(format!(
            "pooled text {pooled} wide and six time ids of {time} make {given}, the UNet takes {need}"
        ));
    }
    Ok(())
}

/// Checks that a VAE decodes a UNet's latents.
///
/// # Errors
/// [`Error::Mismatch`] for the VAE's file.
pub fn vae_with_unet(vae: (&Path, &VaeConfig), unet: (&Path, &UnetConfig)) -> Result<()> {
    let (need, have) = (unet.1.out_channels, vae.1.latent_channels);
    if unet.1.in_channels != need && !unet.1.is_inpainting() {
        let what = format!("this UNet takes {} channels and gives {need}", unet.1.in_channels);
        return Err(Error::mismatch(
            unet.0,
            format!("{what}: as many, or {} in a model for inpainting, are supported", 2 * need + 1),
        ));
    }
    if need == have {
        return Ok(());
    }
    let model = unet.0.display();
    let like = match have {
        16 => ", as those of Stable Diffusion 3 and Flux do",
        _ => "",
    };
    let what = format!("this VAE decodes latents of {have} channels{like}; the UNet of {model} gives {need}");
    Err(Error::mismatch(vae.0, format!("{what}; an SDXL VAE is needed")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ip_adapter::ResamplerConfig;
    use crate::models::published;

    #[test]
    fn wrong_encoder() {
        let (adapter, encoder) = (Path::new("ip-adapter_sdxl_vit-h.bin"), Path::new("bigg.safetensors"));
        let config = AdapterConfig { embedding_dim: 1024, ..published::adapter() };
        let text =
            adapter_with_image_encoder((adapter, &config), (encoder, &published::vision())).unwrap_err().to_string();
        let expected = "ip-adapter_sdxl_vit-h.bin: this adapter needs image embeddings 1024 wide: ViT-H, models/image_encoder \
                        of h94/IP-Adapter; the encoder given, bigg.safetensors, gives 1280 (ViT-bigG)";
        assert_eq!(text, expected);
        adapter_with_image_encoder((adapter, &published::adapter()), (encoder, &published::vision())).unwrap();
    }

    /// ViT-H's hidden states are as wide as bigG's embedding: a Plus adapter is judged by the first.
    #[test]
    fn encoder_of_a_plus_adapter() {
        let (adapter, encoder) = (Path::new("plus.bin"), Path::new("encoder"));
        let resampler = ResamplerConfig { hidden_dim: 1280, heads: 20, intermediate: vec![5120; 4] };
        let plus = AdapterConfig { num_tokens: 16, resampler: Some(resampler), ..published::adapter() };
        let bigg = published::vision();
        let text = adapter_with_image_encoder((adapter, &plus), (encoder, &bigg)).unwrap_err().to_string();
        let expected = "plus.bin: this adapter needs hidden states 1280 wide: ViT-H, models/image_encoder of h94/IP-Adapter; \
                        the encoder given, encoder, gives 1664 (ViT-bigG)";
        assert_eq!(text, expected);
        let vit_h = ClipVisionConfig { hidden_size: 1280, num_hidden_layers: 32, projection_dim: 1024, ..bigg };
        adapter_with_image_encoder((adapter, &plus), (encoder, &vit_h)).unwrap();
        let face = AdapterConfig { embedding_dim: 512, ..plus };
        let text = adapter_with_image_encoder((adapter, &face), (encoder, &vit_h)).unwrap_err().to_string();
        assert!(text.contains("face recognition"), "{text}");
    }

    #[test]
    fn wrong_unet() {
        let (adapter, model) = (Path::new("a.bin"), Path::new("m.safetensors"));
        let unet = published::unet();
        let config = published::adapter();
        adapter_with_unet((adapter, &config), (model, &unet)).unwrap();
        let text =
            |config: AdapterConfig| adapter_with_unet((adapter, &config), (model, &unet)).unwrap_err().to_string();
        assert!(
            text(AdapterConfig { cross_attention_dim: 768, ..config.clone() })
                .contains("768 wide, the UNet's text tokens 2048")
        );
        let mut widths = config.widths.clone();
        widths.swap(3, 4);
        assert!(text(AdapterConfig { widths, ..config.clone() }).contains("ip_adapter.7.to_k_ip.weight is 1280 wide"));
        let widths = config.widths[..16].to_vec();
        assert!(text(AdapterConfig { widths, ..config }).contains("16 pairs of matrices for the UNet's 70"));
    }

    #[test]
    fn text_and_vae() {
        let path = Path::new("m");
        let (unet, text, text_2) = (published::unet(), published::text(), published::text_2());
        text_encoders_with_unet(&text, &text_2, (path, &unet)).unwrap();
        assert!(
            text_encoders_with_unet(&text_2, &text_2, (path, &unet))
                .unwrap_err()
                .to_string()
                .contains("1280 + 1280 = 2560")
        );
        vae_with_unet((path, &published::vae()), (path, &unet)).unwrap();
        let unet_of = |in_channels| UnetConfig { in_channels, ..published::unet() };
        vae_with_unet((path, &published::vae()), (path, &unet_of(9))).unwrap();
        let text = vae_with_unet((path, &published::vae()), (path, &unet_of(8))).unwrap_err().to_string();
        assert!(
            text.contains("takes 8 channels and gives 4") && text.contains("or 9 in a model for inpainting"),
            "{text}"
        );
        let flux = VaeConfig { latent_channels: 16, ..published::vae() };
        assert!(vae_with_unet((path, &flux), (path, &unet)).unwrap_err().to_string().contains("16 channels"));
    }
}
