//! Names of the original Stable Diffusion checkpoints against those of diffusers and transformers.
//!
//! Every function takes a name without the model's prefix (`model.diffusion_model.` and so on) and gives `None` for one
//! that no model reads. Source: the published files and diffusers' `loaders/single_file_utils.py`, against which
//! `tests/models/layouts.rs` compares every name of SDXL.

/// Beginnings of UNet names outside the blocks: original, diffusers.
const UNET: [(&str, &str); 7] = [
    ("time_embed.0.", "time_embedding.linear_1."),
    ("time_embed.2.", "time_embedding.linear_2."),
    ("label_emb.0.0.", "add_embedding.linear_1."),
    ("label_emb.0.2.", "add_embedding.linear_2."),
    ("input_blocks.0.0.", "conv_in."),
    ("out.0.", "conv_norm_out."),
    ("out.2.", "conv_out."),
];

/// Layers of a UNet resnet.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time_emb_proj."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "conv_shortcut."),
];

/// Layers of an OpenCLIP block, without the fused projection.
const OPEN_CLIP: [(&str, &str); 5] = [
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];

/// Layers of either half of the VAE outside its levels.
const VAE: [(&str, &str); 10] = [
    ("conv_in.", "conv_in."),
    ("conv_out.", "conv_out."),
    ("norm_out.", "conv_norm_out."),
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
    ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
    ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
    ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
];

/// Replaces the beginning of `name` that `table` lists on its left.
fn forward(table: &[(&str, &str)], name: &str) -> Option<String> {
    table.iter().find_map(|(old, new)| Some(format!("{new}{}", name.strip_prefix(old)?)))
}

/// Replaces the beginning of `name` that `table` lists on its right.
fn backward(table: &[(&str, &str)], name: &str) -> Option<String> {
    table.iter().find_map(|(old, new)| Some(format!("{old}{}", name.strip_prefix(new)?)))
}

/// Splits off the number that `name` begins with; the rest follows its dot.
pub(crate) fn index(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.split_once('.')?;
    let plain = !number.is_empty() && number.len() <= 4 && number.bytes().all(|b| b.is_ascii_digit());
    Some((number.parse().ok().filter(|_| plain)?, rest))
}

/// Maps an original UNet name to diffusers'; `layers` is the number of resnets of a down block.
pub(crate) fn unet(name: &str, layers: usize) -> Option<String> {
    if let Some(renamed) = forward(&UNET, name) {
        return Some(renamed);
    }
    if let Some(rest) = name.strip_prefix("input_blocks.") {
        let (n, rest) = index(rest)?;
        let (block, layer) = (n.checked_sub(1)? / (layers + 1), (n - 1) % (layers + 1));
        let (part, rest) = index(rest)?;
        return match (part, rest.strip_prefix("op.")) {
            (0, Some(rest)) => Some(format!("down_blocks.{block}.downsamplers.0.conv.{rest}")),
            (0, None) => Some(format!("down_blocks.{block}.resnets.{layer}.{}", forward(&RESNET, rest)?)),
            (1, None) => Some(format!("down_blocks.{block}.attentions.{layer}.{rest}")),
            _ => None,
        };
    }
    if let Some(rest) = name.strip_prefix("middle_block.") {
        let (n, rest) = index(rest)?;
        return Some(match n % 2 {
            0 => format!("mid_block.resnets.{}.{}", n / 2, forward(&RESNET, rest)?),
            _ => format!("mid_block.attentions.{}.{rest}", n / 2),
        });
    }
    let (n, rest) = index(name.strip_prefix("output_blocks.")?)?;
    let (block, layer) = (n / (layers + 1), n % (layers + 1));
    let (part, rest) = index(rest)?;
    match (part, rest.strip_prefix("conv.")) {
        (0, _) => Some(format!("up_blocks.{block}.resnets.{layer}.{}", forward(&RESNET, rest)?)),
        (1 | 2, Some(rest)) => Some(format!("up_blocks.{block}.upsamplers.0.conv.{rest}")),
        (1, None) => Some(format!("up_blocks.{block}.attentions.{layer}.{rest}")),
        _ => None,
    }
}

/// Inverts [`unet`]; `attention(block)` says whether that up block has cross-attention.
pub(crate) fn original_unet(name: &str, layers: usize, attention: impl Fn(usize) -> bool) -> Option<String> {
    if let Some(renamed) = backward(&UNET, name) {
        return Some(renamed);
    }
    if let Some(rest) = name.strip_prefix("mid_block.resnets.") {
        let (n, rest) = index(rest)?;
        return Some(format!("middle_block.{}.{}", 2 * n, backward(&RESNET, rest)?));
    }
    if let Some(rest) = name.strip_prefix("mid_block.attentions.") {
        let (n, rest) = index(rest)?;
        return Some(format!("middle_block.{}.{rest}", 2 * n + 1));
    }
    let down = name.strip_prefix("down_blocks.");
    let (block, rest) = index(down.or_else(|| name.strip_prefix("up_blocks."))?)?;
    let side = if down.is_some() { "input_blocks" } else { "output_blocks" };
    let first = block * (layers + 1) + usize::from(down.is_some());
    if let Some(rest) = rest.strip_prefix("downsamplers.0.conv.") {
        return Some(format!("{side}.{}.0.op.{rest}", first + layers));
    }
    if let Some(rest) = rest.strip_prefix("upsamplers.0.conv.") {
        return Some(format!("{side}.{}.{}.conv.{rest}", first + layers, 1 + usize::from(attention(block))));
    }
    if let Some(rest) = rest.strip_prefix("resnets.") {
        let (layer, rest) = index(rest)?;
        return Some(format!("{side}.{}.0.{}", first + layer, backward(&RESNET, rest)?));
    }
    let (layer, rest) = index(rest.strip_prefix("attentions.")?)?;
    Some(format!("{side}.{}.1.{rest}", first + layer))
}

/// The name or names that an OpenCLIP text tensor takes in transformers, and its form there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OpenClipName {
    /// The tensor as it is.
    Plain(String),
    /// The transpose of the tensor.
    Transposed(String),
    /// The three thirds of the tensor along the rows.
    Thirds([String; 3]),
}

/// Maps an OpenCLIP text name to transformers'.
pub(crate) fn open_clip(name: &str) -> Option<OpenClipName> {
    let plain = |name: &str| Some(OpenClipName::Plain(name.to_owned()));
    match name {
        "token_embedding.weight" => return plain("text_model.embeddings.token_embedding.weight"),
        "positional_embedding" => return plain("text_model.embeddings.position_embedding.weight"),
        "ln_final.weight" => return plain("text_model.final_layer_norm.weight"),
        "ln_final.bias" => return plain("text_model.final_layer_norm.bias"),
        // Stored as the right factor of a product; a few tools store it as a linear layer instead.
        "text_projection" => return Some(OpenClipName::Transposed("text_projection.weight".into())),
        "text_projection.weight" => return plain(name),
        _ => {}
    }
    let (n, rest) = index(name.strip_prefix("transformer.resblocks.")?)?;
    let layer = format!("text_model.encoder.layers.{n}");
    match rest.strip_prefix("attn.in_proj_") {
        Some(leaf @ ("weight" | "bias")) => {
            Some(OpenClipName::Thirds(["q", "k", "v"].map(|part| format!("{layer}.self_attn.{part}_proj.{leaf}"))))
        }
        Some(_) => None,
        None => Some(OpenClipName::Plain(format!("{layer}.{}", forward(&OPEN_CLIP, rest)?))),
    }
}

/// Inverts [`open_clip`]; for a third of a fused tensor the name of the whole.
pub(crate) fn original_open_clip(name: &str) -> Option<String> {
    match name {
        "text_projection.weight" => return Some("text_projection".into()),
        "text_model.embeddings.position_embedding.weight" => return Some("positional_embedding".into()),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("text_model.embeddings.") {
        return Some(rest.into());
    }
    if let Some(rest) = name.strip_prefix("text_model.final_layer_norm.") {
        return Some(format!("ln_final.{rest}"));
    }
    let (n, rest) = index(name.strip_prefix("text_model.encoder.layers.")?)?;
    let fused = ["q", "k", "v"].iter().find_map(|p| rest.strip_prefix(&format!("self_attn.{p}_proj.")));
    let rest = match fused {
        Some(leaf) => format!("attn.in_proj_{leaf}"),
        None => backward(&OPEN_CLIP, rest)?,
    };
    Some(format!("transformer.resblocks.{n}.{rest}"))
}

/// Maps an original VAE name to diffusers'; `levels` is the number of the decoder's levels.
pub(crate) fn vae(name: &str, levels: usize) -> Option<String> {
    if name.starts_with("quant_conv.") || name.starts_with("post_quant_conv.") {
        return Some(name.to_owned());
    }
    let (side, rest) = name.split_once('.')?;
    let renamed = match (side, rest.strip_prefix("down."), rest.strip_prefix("up.")) {
        ("encoder", Some(rest), _) => {
            let (level, rest) = index(rest)?;
            match rest.strip_prefix("block.") {
                Some(rest) => format!("down_blocks.{level}.resnets.{rest}"),
                None => format!("down_blocks.{level}.downsamplers.0.{}", rest.strip_prefix("downsample.")?),
            }
        }
        ("decoder", _, Some(rest)) => {
            let (level, rest) = index(rest)?;
            let block = levels.checked_sub(level + 1)?;
            match rest.strip_prefix("block.") {
                Some(rest) => format!("up_blocks.{block}.resnets.{rest}"),
                None => format!("up_blocks.{block}.upsamplers.0.{}", rest.strip_prefix("upsample.")?),
            }
        }
        ("encoder" | "decoder", None, None) => forward(&VAE, rest)?,
        _ => return None,
    };
    Some(format!("{side}.{}", renamed.replace("nin_shortcut.", "conv_shortcut.")))
}

/// Inverts [`vae`].
pub(crate) fn original_vae(name: &str, levels: usize) -> Option<String> {
    if name.starts_with("quant_conv.") || name.starts_with("post_quant_conv.") {
        return Some(name.to_owned());
    }
    let (side, rest) = name.split_once('.')?;
    let renamed = if let Some(rest) = rest.strip_prefix("down_blocks.") {
        let (level, rest) = index(rest)?;
        format!("down.{level}.{}", rest.replace("resnets.", "block.").replace("downsamplers.0.", "downsample."))
    } else if let Some(rest) = rest.strip_prefix("up_blocks.") {
        let (block, rest) = index(rest)?;
        let level = levels.checked_sub(block + 1)?;
        format!("up.{level}.{}", rest.replace("resnets.", "block.").replace("upsamplers.0.", "upsample."))
    } else {
        backward(&VAE, rest)?
    };
    Some(format!("{side}.{}", renamed.replace("conv_shortcut.", "nin_shortcut.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_structures() {
        // One resnet a level: the second entry of each level is its downsampling.
        assert_eq!(unet("input_blocks.2.0.op.bias", 1).unwrap(), "down_blocks.0.downsamplers.0.conv.bias");
        assert_eq!(unet("output_blocks.3.1.conv.bias", 1).unwrap(), "up_blocks.1.upsamplers.0.conv.bias");
        assert_eq!(
            unet("output_blocks.3.1.transformer_blocks.0.norm1.bias", 1).unwrap(),
            "up_blocks.1.attentions.1.transformer_blocks.0.norm1.bias"
        );
        assert_eq!(vae("decoder.up.1.upsample.conv.bias", 2).unwrap(), "decoder.up_blocks.0.upsamplers.0.conv.bias");
        assert_eq!(vae("decoder.up.2.upsample.conv.bias", 2), None);
    }

    #[test]
    fn unread_names() {
        for name in
            ["", ".", "input_blocks", "input_blocks.", "input_blocks.x.0.y", "input_blocks.1", "middle_block.0.x"]
        {
            assert_eq!(unet(name, 2), None, "{name}");
        }
        for name in [
            "logit_scale",
            "attn_mask",
            "transformer.resblocks.0.attn.in_proj_x",
            "transformer.resblocks.99999999999999999999.ln_1.bias",
        ] {
            assert_eq!(open_clip(name), None, "{name}");
        }
        assert_eq!(vae("decoder.up.99999999999999999999.block.0.conv1.bias", 4), None);
        assert_eq!(vae("loss.discriminator.main.0.weight", 4), None);
    }
}
