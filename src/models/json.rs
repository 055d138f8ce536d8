//! Configurations from the `config.json` of diffusers and transformers.
//!
//! A field that is missing has the default of the class that reads it there (diffusers 0.42.1, transformers 5). A value
//! that the engine cannot obey is an error that names it; fields that do not change inference are passed over.

use super::config::{Activation, ClipTextConfig, ClipVisionConfig, UnetConfig, VaeConfig};
use super::infer::{LARGEST_IMAGE, LARGEST_PATCH};
use crate::config_json::{Fields, as_size};
#[cfg(test)]
use crate::error::Error;
use crate::error::Result;
use serde_json::{Value, json};
use std::path::Path;

/// The most layers of a CLIP encoder (bigG's image encoder has 48).
const MOST_LAYERS: usize = 256;
/// The most resnets of a block (SDXL has 2).
const MOST_RESNETS: usize = 16;
/// The most layers of one of the UNet's transformers (SDXL has 10).
const MOST_DEPTH: usize = 64;

/// The activation of a CLIP encoder.
fn activation(f: &Fields<'_>) -> Result<Activation> {
    match f.present("hidden_act").map_or(Some("quick_gelu"), Value::as_str) {
        Some("gelu") => Ok(Activation::Gelu),
        Some("quick_gelu") => Ok(Activation::QuickGelu),
        _ => Err(f.refuse("hidden_act", "gelu and quick_gelu are supported")),
    }
}

/// The sizes that both CLIP encoders have: width, layers, heads, width of the perceptron.
fn clip_sizes(f: &Fields<'_>, defaults: [usize; 4]) -> Result<[usize; 4]> {
    let names = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"];
    let mut out = [0; 4];
    for ((out, name), default) in out.iter_mut().zip(names).zip(defaults) {
        *out = f.size(name, Some(default))?;
    }
    f.num_layers(names[1], defaults[1], MOST_LAYERS)?;
    if out[0] % out[2] != 0 {
        return Err(f.refuse(names[2], format!("a divisor of hidden_size, {}, is needed", out[0])));
    }
    Ok(out)
}

/// Transformer layers of each level, by default one; 0 where `cross` says that the level has no cross-attention,
/// whatever the list says there.
fn transformer_layers(f: &Fields<'_>, name: &str, cross: &[bool]) -> Result<Vec<usize>> {
    let list = match f.present(name) {
        None => vec![&Value::Null; cross.len()],
        Some(Value::Array(list)) => list.iter().collect(),
        Some(value) => vec![value; cross.len()],
    };
    let depth = |(value, &cross): (&Value, &bool)| match value {
        _ if !cross => Some(0),
        Value::Null => Some(1),
        value => as_size(value).filter(|n| *n <= MOST_DEPTH),
    };
    let depths: Option<Vec<_>> = list.iter().copied().zip(cross).map(depth).collect();
    depths.filter(|_| list.len() == cross.len()).ok_or_else(|| {
        let levels = cross.len();
        let expected =
            format!("a number up to {MOST_DEPTH}, or a list of {levels} such (one for each level), is supported");
        f.refuse(name, expected)
    })
}

/// Demands that channels divide into the groups of a norm.
fn divisible(f: &Fields<'_>, channels: &[usize], groups: usize) -> Result<()> {
    match channels.iter().find(|&c| c % groups != 0) {
        Some(c) => {
            let expected = format!("a divisor of every block_out_channels, also of {c}, is needed");
            Err(f.refuse("norm_num_groups", expected))
        }
        None => Ok(()),
    }
}

/// The part of a `CLIPConfig` that the model's own class takes from it.
fn nested<'a>(value: &'a Value, part: &str) -> &'a Value {
    match value.get(part) {
        Some(inner) if value.get("model_type").and_then(Value::as_str) == Some("clip") => inner,
        _ => value,
    }
}

impl ClipTextConfig {
    /// Reads `text_encoder/config.json` or `text_encoder_2/config.json`. [`Self::projection_dim`] is set where
    /// `architectures` says `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is not supported; [`Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let projected =
            value["architectures"].as_array().is_some_and(|a| a.contains(&json!("CLIPTextModelWithProjection")));
        let f = Fields::of_value(path, nested(value, "text_config"))?;
        f.only("model_type", &[json!("clip_text_model"), json!("clip")])?;
        let [hidden, layers, heads, intermediate] = clip_sizes(&f, [512, 12, 8, 2048])?;
        Ok(Self {
            hidden_size: hidden,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            intermediate_size: intermediate,
            activation: activation(&f)?,
            eps: f.positive_float("layer_norm_eps", 1e-5)?,
            vocab_size: f.size("vocab_size", Some(49408))?,
            max_position_embeddings: f.size("max_position_embeddings", Some(77))?,
            projection_dim: if projected { Some(f.size("projection_dim", Some(512))?) } else { None },
            eos_token_id: match f
                .get("eos_token_id")
                .map_or(Some(49407), Value::as_u64)
                .and_then(|v| u32::try_from(v).ok())
            {
                Some(eos) => eos,
                None => return Err(f.refuse("eos_token_id", "one token's number is supported")),
            },
        })
    }
}

impl ClipVisionConfig {
    /// Reads `image_encoder/config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is not supported; [`Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let f = Fields::of_value(path, nested(value, "vision_config"))?;
        f.only("model_type", &[json!("clip_vision_model"), json!("clip")])?;
        f.only("num_channels", &[json!(3)])?;
        let [hidden, layers, heads, intermediate] = clip_sizes(&f, [768, 12, 12, 3072])?;
        let (image, patch) = (f.uniform_size("image_size", 224)?, f.uniform_size("patch_size", 32)?);
        if image > LARGEST_IMAGE {
            return Err(f.refuse("image_size", format!("at most {LARGEST_IMAGE} is supported")));
        }
        if image < patch || patch > LARGEST_PATCH {
            return Err(f.refuse(
                "patch_size",
                format!("a size within the picture's {image} and up to {LARGEST_PATCH} is needed"),
            ));
        }
        Ok(Self {
            hidden_size: hidden,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            intermediate_size: intermediate,
            activation: activation(&f)?,
            eps: f.positive_float("layer_norm_eps", 1e-5)?,
            image_size: image,
            patch_size: patch,
            projection_dim: f.size("projection_dim", Some(512))?,
        })
    }
}

impl UnetConfig {
    /// Reads `unet/config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is not supported; [`Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let f = Fields::of_value(path, value)?;
        f.only("_class_name", &[json!("UNet2DConditionModel")])?;
        if f.present("addition_embed_type") != Some(&json!("text_time")) {
            return Err(f.refuse("addition_embed_type", "\"text_time\" is needed: this is not SDXL's UNet"));
        }
        for (field, allowed) in [
            ("act_fn", &[json!("silu"), json!("swish")][..]),
            ("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")]),
            ("center_input_sample", &[json!(false)]),
            ("only_cross_attention", &[json!(false)]),
            ("mid_block_only_cross_attention", &[json!(false)]),
            ("dual_cross_attention", &[json!(false)]),
            ("class_embeddings_concat", &[json!(false)]),
            ("resnet_skip_time_act", &[json!(false)]),
            ("resnet_time_scale_shift", &[json!("default")]),
            ("time_embedding_type", &[json!("positional")]),
            ("attention_type", &[json!("default")]),
            ("downsample_padding", &[json!(1)]),
            ("mid_block_scale_factor", &[json!(1)]),
            ("resnet_out_scale_factor", &[json!(1)]),
            ("conv_in_kernel", &[json!(3)]),
            ("conv_out_kernel", &[json!(3)]),
            ("class_embed_type", &[]),
            ("num_class_embeds", &[]),
            ("encoder_hid_dim", &[]),
            ("encoder_hid_dim_type", &[]),
            ("num_attention_heads", &[]),
            ("reverse_transformer_layers_per_block", &[]),
            ("time_embedding_dim", &[]),
            ("time_embedding_act_fn", &[]),
            ("timestep_post_act", &[]),
            ("time_cond_proj_dim", &[]),
            ("cross_attention_norm", &[]),
        ] {
            f.only(field, allowed)?;
        }
        // Null means something else than the default here: a norm without groups, a middle without a block.
        for field in ["norm_num_groups", "mid_block_type", "attention_head_dim"] {
            if f.get(field).is_some_and(Value::is_null) {
                return Err(f.refuse(field, "null is not supported"));
            }
        }
        let down = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"];
        let up = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"];
        let down = f.either("down_block_types", &down, "CrossAttnDownBlock2D", "DownBlock2D")?;
        let up = f.either("up_block_types", &up, "CrossAttnUpBlock2D", "UpBlock2D")?;
        let levels = down.len();
        if !down.iter().eq(up.iter().rev()) {
            return Err(f.refuse("up_block_types", "the mirror image of down_block_types is supported"));
        }
        if down.last() != Some(&true) {
            // The depth of the middle is the last level's.
            return Err(f.refuse("down_block_types", "a CrossAttnDownBlock2D at the end is supported, as in SDXL"));
        }
        let channels = f.sizes("block_out_channels", &[320, 640, 1280, 1280])?;
        if channels.len() != levels {
            return Err(f.refuse(
                "block_out_channels",
                format!("one entry for each of the {levels} down_block_types is needed"),
            ));
        }
        let depths = transformer_layers(&f, "transformer_layers_per_block", &down)?;
        let heads = f.sizes_per_level("attention_head_dim", 8, levels)?;
        if let Some((c, h)) = channels.iter().zip(&heads).find(|(c, h)| *c % *h != 0) {
            return Err(
                f.refuse("attention_head_dim", format!("a divisor of the level's {c} channels is needed, not {h}"))
            );
        }
        let groups = f.size("norm_num_groups", Some(32))?;
        divisible(&f, &channels, groups)?;
        // Half of an embedding is sines, half cosines.
        if channels[0] % 2 != 0 {
            return Err(f.refuse("block_out_channels", "an even first number is needed"));
        }
        let addition_time = f.size("addition_time_embed_dim", None)?;
        if addition_time % 2 != 0 {
            return Err(f.refuse("addition_time_embed_dim", "an even number is needed"));
        }
        let freq_shift = f.float("freq_shift", 0.0)?;
        let half = channels[0].min(addition_time) / 2;
        if freq_shift < 0.0 || freq_shift >= half as f32 {
            return Err(f.refuse("freq_shift", format!("a number from 0 to below {half} is needed")));
        }
        Ok(Self {
            in_channels: f.size("in_channels", Some(4))?,
            out_channels: f.size("out_channels", Some(4))?,
            block_out_channels: channels,
            layers_per_block: f.num_layers("layers_per_block", 2, MOST_RESNETS)?,
            transformer_layers_per_block: depths,
            num_attention_heads: heads,
            cross_attention_dim: f.uniform_size("cross_attention_dim", 1280)?,
            norm_num_groups: groups,
            norm_eps: f.positive_float("norm_eps", 1e-5)?,
            addition_time_embed_dim: addition_time,
            projection_class_embeddings_input_dim: f.size("projection_class_embeddings_input_dim", None)?,
            flip_sin_to_cos: f.optional_flag("flip_sin_to_cos")?.unwrap_or(true),
            freq_shift,
            // diffusers' pipeline takes 128 where the model has none.
            sample_size: f.uniform_size("sample_size", 128)?,
        })
    }
}

impl VaeConfig {
    /// Reads `vae/config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is not supported; [`Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let f = Fields::of_value(path, value)?;
        f.only("_class_name", &[json!("AutoencoderKL")])?;
        f.only("act_fn", &[json!("silu"), json!("swish")])?;
        f.only("out_channels", &[json!(3)])?;
        for field in ["latents_mean", "latents_std", "shift_factor"] {
            f.only(field, &[])?;
        }
        let ups = f.either("up_block_types", &["UpDecoderBlock2D"], "UpDecoderBlock2D", "UpDecoderBlock2D")?;
        f.either("down_block_types", &["DownEncoderBlock2D"], "DownEncoderBlock2D", "DownEncoderBlock2D")?;
        let channels = f.sizes("block_out_channels", &[64])?;
        if channels.len() != ups.len() || channels.len() > 8 {
            return Err(f.refuse(
                "block_out_channels",
                format!("one entry for each of the {} up_block_types, at most 8, is needed", ups.len()),
            ));
        }
        let groups = f.size("norm_num_groups", Some(32))?;
        divisible(&f, &channels, groups)?;
        Ok(Self {
            out_channels: 3,
            latent_channels: f.size("latent_channels", Some(4))?,
            block_out_channels: channels,
            layers_per_block: f.num_layers("layers_per_block", 1, MOST_RESNETS)?,
            norm_num_groups: groups,
            scaling_factor: f.positive_float("scaling_factor", 0.18215)?,
            post_quant_conv: f.optional_flag("use_post_quant_conv")?.unwrap_or(true),
            mid_attention: f.optional_flag("mid_block_add_attention")?.unwrap_or(true),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::published;

    fn path() -> &'static Path {
        Path::new("config.json")
    }

    /// unet/config.json as published with SDXL base 1.0.
    fn unet() -> Value {
        let text = r#"{
            "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
            "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "center_input_sample": false,
            "class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3, "conv_out_kernel": 3,
            "cross_attention_dim": 2048, "cross_attention_norm": null,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1,
            "dual_cross_attention": false, "encoder_hid_dim": null, "encoder_hid_dim_type": null, "flip_sin_to_cos": true,
            "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_only_cross_attention": null,
            "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-05,
            "norm_num_groups": 32, "num_attention_heads": null, "num_class_embeds": null, "only_cross_attention": false,
            "out_channels": 4, "projection_class_embeddings_input_dim": 2816, "resnet_out_scale_factor": 1.0,
            "resnet_skip_time_act": false, "resnet_time_scale_shift": "default", "sample_size": 128,
            "time_cond_proj_dim": null, "time_embedding_act_fn": null, "time_embedding_dim": null,
            "time_embedding_type": "positional", "timestep_post_act": null, "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
            "use_linear_projection": true
        }"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn sdxl() {
        assert_eq!(UnetConfig::from_json(path(), &unet()).unwrap(), published::unet());
        let vae = json!({
            "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
            "scaling_factor": 0.13025, "force_upcast": true, "sample_size": 1024
        });
        assert_eq!(VaeConfig::from_json(path(), &vae).unwrap(), published::vae());
        let text = json!({
            "architectures": ["CLIPTextModelWithProjection"], "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu",
            "hidden_size": 1280, "intermediate_size": 5120, "model_type": "clip_text_model", "num_attention_heads": 20,
            "num_hidden_layers": 32, "pad_token_id": 1, "projection_dim": 1280
        });
        assert_eq!(ClipTextConfig::from_json(path(), &text).unwrap(), published::text_2());
        let vision = json!({"model_type": "clip", "vision_config": {
            "hidden_act": "gelu", "hidden_size": 1664, "intermediate_size": 8192, "num_attention_heads": 16,
            "num_hidden_layers": 48, "patch_size": 14, "projection_dim": 1280
        }});
        assert_eq!(ClipVisionConfig::from_json(path(), &vision).unwrap(), published::vision());
    }

    #[test]
    fn defaults_of_the_classes() {
        let text = ClipTextConfig::from_json(path(), &json!({})).unwrap();
        assert_eq!(
            (
                text.hidden_size,
                text.num_hidden_layers,
                text.num_attention_heads,
                text.intermediate_size,
                text.eos_token_id
            ),
            (512, 12, 8, 2048, 49407)
        );
        assert_eq!((text.activation, text.projection_dim, text.vocab_size), (Activation::QuickGelu, None, 49408));
        let vision = ClipVisionConfig::from_json(path(), &json!({})).unwrap();
        assert_eq!(
            (vision.hidden_size, vision.patch_size, vision.image_size, vision.projection_dim),
            (768, 32, 224, 512)
        );
        let vae = VaeConfig::from_json(path(), &json!({})).unwrap();
        assert_eq!((vae.block_out_channels, vae.layers_per_block, vae.scaling_factor), (vec![64], 1, 0.18215));
        // With everything at its default the down blocks end without attention.
        let unet = json!({"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64});
        assert!(UnetConfig::from_json(path(), &unet).unwrap_err().to_string().contains("down_block_types"));
    }

    #[test]
    fn one_number_for_all_levels() {
        let mut value = unet();
        value["attention_head_dim"] = json!(5);
        value["transformer_layers_per_block"] = json!(3);
        value["use_linear_projection"] = json!(false);
        let config = UnetConfig::from_json(path(), &value).unwrap();
        value["transformer_layers_per_block"] = json!([0, 3, 3]);
        assert_eq!(UnetConfig::from_json(path(), &value).unwrap(), config);
        assert_eq!((config.num_attention_heads, config.transformer_layers_per_block), (vec![5, 5, 5], vec![0, 3, 3]));
    }

    #[test]
    fn what_is_not_supported() {
        for (field, value) in [
            ("act_fn", json!("gelu")),
            ("addition_embed_type", json!(null)),
            ("addition_time_embed_dim", json!(null)),
            ("attention_head_dim", json!([5, 10])),
            ("attention_head_dim", json!(7)),
            ("attention_head_dim", json!(null)),
            ("attention_type", json!("gated")),
            ("block_out_channels", json!([320, 640])),
            ("block_out_channels", json!([])),
            ("class_embed_type", json!("timestep")),
            ("cross_attention_dim", json!([2048, 1024, 2048])),
            ("down_block_types", json!(["DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D"])),
            ("down_block_types", json!(7)),
            ("encoder_hid_dim_type", json!("ip_image_proj")),
            ("freq_shift", json!("x")),
            ("in_channels", json!(-4)),
            ("layers_per_block", json!([1, 2, 2])),
            ("layers_per_block", json!(1u64 << 60)),
            ("mid_block_type", json!("UNetMidBlock2D")),
            ("mid_block_type", json!(null)),
            ("norm_eps", json!(0)),
            ("norm_num_groups", json!(null)),
            ("norm_num_groups", json!(48)),
            ("num_attention_heads", json!(8)),
            ("resnet_out_scale_factor", json!(1.5)),
            ("reverse_transformer_layers_per_block", json!([4, 3, 2])),
            ("time_cond_proj_dim", json!(256)),
            ("transformer_layers_per_block", json!([1, 2, [4, 4]])),
            ("transformer_layers_per_block", json!([1, 0, 2])),
            ("transformer_layers_per_block", json!([1, 2])),
            ("transformer_layers_per_block", json!(0)),
            ("up_block_types", json!(["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"])),
        ] {
            let mut config = unet();
            config[field] = value.clone();
            match UnetConfig::from_json(path(), &config) {
                Err(Error::Config { field: found, .. }) => {
                    let fits = found == field || (field == "block_out_channels" && found.ends_with("dim"));
                    assert!(fits, "{field}: {value}: {found}");
                }
                other => panic!("{field}: {value}: {other:?}"),
            }
        }
        for value in
            [json!({"latents_mean": [0.0]}), json!({"shift_factor": 0.1}), json!({"scaling_factor": -1}), json!([])]
        {
            VaeConfig::from_json(path(), &value).unwrap_err();
        }
        let text = ClipTextConfig::from_json(path(), &json!({"hidden_act": "gelu_new"})).unwrap_err().to_string();
        assert_eq!(text, "config.json: `hidden_act` is \"gelu_new\": gelu and quick_gelu are supported");
        ClipVisionConfig::from_json(path(), &json!({"model_type": "siglip_vision_model"})).unwrap_err();
        ClipVisionConfig::from_json(path(), &json!({"image_size": [224, 336]})).unwrap_err();
    }
}
