//! Configurations read off the tensors, for files that come without a `config.json`.
//!
//! Names are those of diffusers and transformers. What no tensor tells is taken from the published models: group norms
//! of 32 groups, 64 channels to an attention head, CLIP-L's and bigG's activations.

use super::config::{Activation, AdapterConfig, ClipTextConfig, ClipVisionConfig, UnetConfig, VaeConfig};
use crate::config_json::MAX_SIZE;
use crate::error::{Error, Result};
use crate::weights::{Weights, detect::detect};
use std::collections::BTreeSet;

/// Sides of an image encoder's picture and of its patches; the published ones take 224 or 336, and 14 to 32.
pub(crate) const LARGEST_IMAGE: usize = 4096;
pub(crate) const LARGEST_PATCH: usize = 128;

/// Looks at the tensors of one model.
struct Probe<'a> {
    weights: &'a Weights,
    names: BTreeSet<&'a str>,
    model: &'static str,
}

impl<'a> Probe<'a> {
    fn new(weights: &'a Weights, model: &'static str) -> Self {
        Self { weights, names: weights.iter().map(|(n, _)| n).collect(), model }
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The size of dimension `axis` of the tensor `name`, which must have `rank` dimensions.
    fn dim(&self, name: &str, rank: usize, axis: usize) -> Result<usize> {
        let problem = match self.weights.get(name) {
            None => format!("{name} missing"),
            Some(weight) => match weight.shape().get(axis) {
                Some(&d) if weight.shape().len() == rank && (1..=MAX_SIZE).contains(&d) => return Ok(d),
                _ => format!("{name} is {:?}, expected {rank} dimensions", weight.shape()),
            },
        };
        Err(Error::Tensors {
            path: self.weights.path().to_owned(),
            model: self.model.to_owned(),
            problems: vec![problem],
        })
    }

    /// How many `{prefix}0.`, `{prefix}1.`, ... follow one another.
    fn count(&self, prefix: &str) -> usize {
        let any = |i: usize| {
            let start = format!("{prefix}{i}.");
            self.names.range(start.as_str()..).next().is_some_and(|n| n.starts_with(&start))
        };
        (0..).take_while(|&i| any(i)).count()
    }

    fn mismatch<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Error::mismatch(self.weights.path(), what))
    }
}

/// The UNet's configuration. `pooled` is the width of the pooled text ([`ClipTextConfig::projection_dim`] of the second text
/// encoder) from which the width of the time ids' embedding follows; 256 where it is not given or does not fit.
///
/// # Errors
/// [`Error::Tensors`] where tensors that tell sizes are missing; [`Error::Mismatch`] where this is not a UNet of SDXL's
/// structure.
pub fn unet(weights: &Weights, pooled: Option<usize>) -> Result<UnetConfig> {
    let p = Probe::new(weights, "UNet");
    let in_channels = p.dim("conv_in.weight", 4, 1)?;
    if !p.has("add_embedding.linear_1.weight") {
        return p.mismatch("this UNet takes no pooled text and time ids, so it is not SDXL's; an SDXL UNet is needed");
    }
    let levels = p.count("down_blocks.");
    let mut channels = Vec::new();
    let mut transformer_layers = Vec::new();
    for i in 0..levels {
        channels.push(p.dim(&format!("down_blocks.{i}.resnets.0.conv1.weight"), 4, 0)?);
        transformer_layers.push(p.count(&format!("down_blocks.{i}.attentions.0.transformer_blocks.")));
    }
    let layers = p.count("down_blocks.0.resnets.");
    let key = p.names.iter().find(|n| n.ends_with(".attn2.to_k.weight"));
    let Some(key) = key else {
        return p.mismatch("this UNet has no cross-attention; an SDXL UNet is needed");
    };
    let context = p.dim(key, 2, 1)?;
    // Distilled relatives (SSD-1B, Segmind Vega) leave out layers here and there, which the configuration cannot say.
    let depth = |place: &str| p.count(&format!("{place}.transformer_blocks."));
    let mut places = vec![("mid_block.attentions.0".to_owned(), transformer_layers.last().copied())];
    for (i, &expected) in transformer_layers.iter().rev().enumerate() {
        places.extend((0..=layers).map(|j| (format!("up_blocks.{i}.attentions.{j}"), Some(expected))));
    }
    for (i, &expected) in transformer_layers.iter().enumerate() {
        places.extend((0..layers).map(|j| (format!("down_blocks.{i}.attentions.{j}"), Some(expected))));
    }
    for (place, expected) in places {
        let (found, expected) = (depth(&place), expected.unwrap_or(0));
        if found != expected {
            return p.mismatch(format!(
                "{place} has {found} transformer layers, the other blocks of its level {expected}: a UNet with layers \
                 removed (SSD-1B, Segmind Vega) is not supported; SDXL's own structure is needed"
            ));
        }
    }
    let addition_input = p.dim("add_embedding.linear_1.weight", 2, 1)?;
    let rest = addition_input.checked_sub(pooled.unwrap_or(0)).filter(|r| pooled.is_some() && *r > 0 && r % 12 == 0);
    let config = UnetConfig {
        in_channels,
        out_channels: p.dim("conv_out.weight", 4, 0)?,
        num_attention_heads: channels.iter().map(|c| (c / 64).max(1)).collect(),
        block_out_channels: channels,
        layers_per_block: layers,
        transformer_layers_per_block: transformer_layers,
        cross_attention_dim: context,
        norm_num_groups: 32,
        norm_eps: 1e-5,
        addition_time_embed_dim: rest.map_or(256, |r| r / 6),
        projection_class_embeddings_input_dim: addition_input,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        sample_size: 128,
    };
    match config
        .block_out_channels
        .iter()
        .zip(&config.num_attention_heads)
        .find(|&(c, heads)| c % 32 != 0 || c % heads != 0)
    {
        Some((c, heads)) => p.mismatch(format!(
            "a level of this UNet is {c} channels wide: not a multiple of 32 groups and {heads} heads"
        )),
        None => Ok(config),
    }
}

/// The configuration of a CLIP text encoder; its activation is not told by any tensor: [`Activation::QuickGelu`] for
/// SDXL's first (CLIP-L), [`Activation::Gelu`] for its second (OpenCLIP bigG).
///
/// # Errors
/// [`Error::Tensors`] where tensors that tell sizes are missing.
pub fn clip_text(weights: &Weights, activation: Activation) -> Result<ClipTextConfig> {
    let p = Probe::new(weights, "text encoder");
    let hidden = p.dim("text_model.embeddings.token_embedding.weight", 2, 1)?;
    let projection = p.has("text_projection.weight").then(|| p.dim("text_projection.weight", 2, 0)).transpose()?;
    Ok(ClipTextConfig {
        hidden_size: hidden,
        num_hidden_layers: p.count("text_model.encoder.layers."),
        num_attention_heads: (hidden / 64).max(1),
        intermediate_size: p.dim("text_model.encoder.layers.0.mlp.fc1.weight", 2, 0)?,
        activation,
        eps: 1e-5,
        vocab_size: p.dim("text_model.embeddings.token_embedding.weight", 2, 0)?,
        max_position_embeddings: p.dim("text_model.embeddings.position_embedding.weight", 2, 0)?,
        projection_dim: projection,
        // What SDXL's published configurations of both encoders say.
        eos_token_id: 2,
    })
}

/// The configuration of a CLIP image encoder. Heads: 16 for widths 1280 (ViT-H) and 1664 (ViT-bigG), else width / 64.
///
/// # Errors
/// [`Error::Tensors`] where tensors that tell sizes are missing; [`Error::Mismatch`] where the file is another kind.
pub fn clip_vision(weights: &Weights) -> Result<ClipVisionConfig> {
    let p = Probe::new(weights, "image encoder");
    let embedding = "vision_model.embeddings.patch_embedding.weight";
    if !p.has(embedding) {
        let advice = "the image encoder of the IP-Adapter release is needed (image_encoder/model.safetensors)";
        return p.mismatch(format!("this is {}; {advice}", detect(weights)));
    }
    let (hidden, patch) = (p.dim(embedding, 4, 0)?, p.dim(embedding, 4, 2)?);
    let positions = p.dim("vision_model.embeddings.position_embedding.weight", 2, 0)?;
    let side = (positions - 1).isqrt();
    if patch > LARGEST_PATCH || side * patch > LARGEST_IMAGE {
        return p.mismatch(format!("pictures of {side} patches of {patch} pixels on a side are too large"));
    }
    if side == 0 || side * side + 1 != positions {
        return p.mismatch(format!("{positions} positions are not a class token and a square of patches"));
    }
    if !p.has("visual_projection.weight") {
        return p.mismatch(
            "this image encoder has no visual_projection; IP-Adapters need CLIPVisionModelWithProjection, the image \
             encoder of their own release",
        );
    }
    Ok(ClipVisionConfig {
        hidden_size: hidden,
        num_hidden_layers: p.count("vision_model.encoder.layers."),
        num_attention_heads: if matches!(hidden, 1280 | 1664) { 16 } else { (hidden / 64).max(1) },
        intermediate_size: p.dim("vision_model.encoder.layers.0.mlp.fc1.weight", 2, 0)?,
        activation: Activation::Gelu,
        eps: 1e-5,
        image_size: side * patch,
        patch_size: patch,
        projection_dim: p.dim("visual_projection.weight", 2, 0)?,
    })
}

/// The configuration of a VAE's decoder, with SDXL's scaling factor.
///
/// # Errors
/// [`Error::Mismatch`] where there are no tensors; [`Error::Tensors`] where tensors that tell sizes are missing.
pub fn vae(weights: &Weights) -> Result<VaeConfig> {
    let p = Probe::new(weights, "VAE");
    if weights.is_empty() {
        return p.mismatch("the file holds no VAE (first_stage_model.*); a checkpoint with its VAE is needed");
    }
    let levels = p.count("decoder.up_blocks.");
    let width = |i: usize| p.dim(&format!("decoder.up_blocks.{i}.resnets.0.conv2.weight"), 4, 0);
    let channels = (0..levels).rev().map(width).collect::<Result<Vec<_>>>()?;
    if let Some(c) = channels.iter().find(|&&c| c % 32 != 0) {
        return p.mismatch(format!("a level of this VAE is {c} channels wide: not a multiple of 32"));
    }
    if channels.is_empty() || channels.len() > 8 {
        return p.mismatch(format!("{levels} levels in the decoder, expected 1 to 8 (SDXL's VAE has 4)"));
    }
    let out_channels = p.dim("decoder.conv_out.weight", 4, 0)?;
    if out_channels != 3 {
        return p.mismatch(format!("this VAE makes pictures of {out_channels} channels; SDXL's makes 3"));
    }
    Ok(VaeConfig {
        out_channels,
        latent_channels: p.dim("decoder.conv_in.weight", 4, 1)?,
        block_out_channels: channels,
        layers_per_block: p.count("decoder.up_blocks.0.resnets.").saturating_sub(1),
        norm_num_groups: 32,
        scaling_factor: 0.13025,
        post_quant_conv: p.has("post_quant_conv.weight"),
        mid_attention: p.count("decoder.mid_block.attentions.") > 0,
    })
}

/// The configuration of a base IP-Adapter, from the tensors that [`crate::weights::adapter::base`] gives.
///
/// # Errors
/// [`Error::Tensors`] where tensors are missing or have other ranks; [`Error::Mismatch`] where their sizes contradict
/// one another.
pub fn adapter(weights: &Weights) -> Result<AdapterConfig> {
    let p = Probe::new(weights, "IP-Adapter");
    let (rows, embedding) = (p.dim("image_proj.proj.weight", 2, 0)?, p.dim("image_proj.proj.weight", 2, 1)?);
    let context = p.dim("image_proj.norm.weight", 1, 0)?;
    if rows % context != 0 {
        return p
            .mismatch(format!("image_proj.proj.weight has {rows} rows: not a multiple of the token width {context}"));
    }
    let mut widths = Vec::new();
    while p.has(&format!("ip_adapter.{}.to_k_ip.weight", 2 * widths.len() + 1)) {
        let name = format!("ip_adapter.{}.to_k_ip.weight", 2 * widths.len() + 1);
        let taken = p.dim(&name, 2, 1)?;
        if taken != context {
            return p.mismatch(format!("{name} takes tokens {taken} wide, the image projection gives {context}"));
        }
        widths.push(p.dim(&name, 2, 0)?);
    }
    Ok(AdapterConfig { embedding_dim: embedding, num_tokens: rows / context, cross_attention_dim: context, widths })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Weight;

    fn file(names: &[(&str, &[usize])]) -> Weights {
        let mut weights = Weights::new("f");
        for (name, shape) in names {
            weights.insert(*name, Weight::absent(shape, *name)).unwrap();
        }
        weights
    }

    #[test]
    fn hostile_shapes() {
        let huge: &[&[usize]] = &[&[], &[0], &[usize::MAX, 0], &[usize::MAX, 0, 1, 1], &[0, 0, 0, 0], &[3]];
        for shape in huge {
            let f = file(&[("conv_in.weight", shape), ("add_embedding.linear_1.weight", shape)]);
            unet(&f, Some(usize::MAX)).unwrap_err();
            clip_text(&file(&[("text_model.embeddings.token_embedding.weight", shape)]), Activation::Gelu).unwrap_err();
            clip_vision(&file(&[("vision_model.embeddings.patch_embedding.weight", shape)])).unwrap_err();
            vae(&file(&[("decoder.up_blocks.0.resnets.0.conv2.weight", shape)])).unwrap_err();
            adapter(&file(&[("image_proj.proj.weight", shape), ("image_proj.norm.weight", shape)])).unwrap_err();
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = unet(&file(&[]), None).unwrap_err().to_string();
        assert!(text.contains("conv_in.weight missing"), "{text}");
        let text = unet(&file(&[("conv_in.weight", &[320, 4, 3, 3])]), None).unwrap_err().to_string();
        assert!(text.contains("not SDXL's"), "{text}");
        assert!(vae(&file(&[])).unwrap_err().to_string().contains("holds no VAE"));
        let text = clip_vision(&file(&[("image_proj.latents", &[1])])).unwrap_err().to_string();
        assert!(text.contains("IP-Adapter Plus") && text.contains("image_encoder"), "{text}");
    }
}
