//! Configurations from the `config.json` of diffusers and transformers.
//!
//! A field that is missing has the default of the class that reads it there (diffusers 0.42.1, transformers 5). A value
//! that the engine cannot obey is an error that names it; fields that do not change inference are passed over.

use super::config::{Activation, ClipTextConfig, ClipVisionConfig, UnetConfig, VaeConfig};
use super::infer::{LARGEST, LARGEST_IMAGE, LARGEST_PATCH};
use crate::error::{Error, Message, Result, escape};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The most layers of a CLIP encoder (bigG's image encoder has 48).
const MOST_LAYERS: usize = 256;
/// The most resnets of a block (SDXL has 2).
const MOST_RESNETS: usize = 16;
/// The most layers of one of the UNet's transformers (SDXL has 10).
const MOST_DEPTH: usize = 64;

/// The fields of one file.
struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(path: &'a Path, value: &'a Value) -> Result<Self> {
        let map = value.as_object();
        Ok(Self { path, map: map.ok_or_else(|| Error::malformed(path, "not a JSON object"))? })
    }

    /// The value, where it is there and not null.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn bad<T>(&self, field: &str, expected: impl Into<Message>) -> Result<T> {
        let value = self.map.get(field).map_or("missing".into(), |v| escape(&v.to_string()));
        Err(Error::Config { path: self.path.into(), field: field.into(), value, expected: expected.into() })
    }

    fn size_of(value: &Value) -> Option<usize> {
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok())?;
        (1..=LARGEST).contains(&n).then_some(n)
    }

    /// A size from 1 to [`LARGEST`].
    fn size(&self, field: &str, default: Option<usize>) -> Result<usize> {
        let found = self.get(field).map_or(default, Self::size_of);
        found.map_or_else(|| self.bad(field, format!("a number from 1 to {LARGEST} is needed")), Ok)
    }

    /// A number of layers from 1 to `most`: names are made for each, so it must be bounded before any file is looked at.
    fn count(&self, field: &str, default: usize, most: usize) -> Result<usize> {
        let n = self.equal_sizes(field, default)?;
        if n <= most { Ok(n) } else { self.bad(field, format!("a number from 1 to {most} is needed")) }
    }

    /// A size, also as a list of equal ones.
    fn equal_sizes(&self, field: &str, default: usize) -> Result<usize> {
        match self.get(field).and_then(Value::as_array) {
            None => self.size(field, Some(default)),
            Some(list) => match list.first().and_then(Self::size_of) {
                Some(n) if list.iter().all(|v| Self::size_of(v) == Some(n)) => Ok(n),
                _ => self.bad(field, "one number, or a list of equal numbers, is supported"),
            },
        }
    }

    /// A list of sizes; `each` is the length to which a single number is repeated, and which a list must have.
    fn sizes(&self, field: &str, default: &[usize], each: Option<usize>) -> Result<Vec<usize>> {
        let list = match (self.get(field), each) {
            (None, _) => Some(default.to_vec()),
            (Some(Value::Array(list)), _) if list.len() <= 16 => list.iter().map(Self::size_of).collect(),
            (Some(value), Some(n)) => Self::size_of(value).map(|v| vec![v; n]),
            _ => None,
        };
        match (list, each) {
            (Some(list), Some(n)) if list.len() == n => Ok(list),
            (Some(list), None) if !list.is_empty() => Ok(list),
            (_, Some(n)) => {
                self.bad(field, format!("a number, or a list of {n} numbers (one for each level), is supported"))
            }
            _ => self.bad(field, "a list of 1 to 16 numbers is needed"),
        }
    }

    /// Transformer layers of each level, by default one; 0 where `cross` says that the level has no cross-attention,
    /// whatever the list says there.
    fn depths(&self, field: &str, cross: &[bool]) -> Result<Vec<usize>> {
        let list = match self.get(field) {
            None => vec![&Value::Null; cross.len()],
            Some(Value::Array(list)) => list.iter().collect(),
            Some(value) => vec![value; cross.len()],
        };
        let depth = |(value, &cross): (&Value, &bool)| match value {
            _ if !cross => Some(0),
            Value::Null => Some(1),
            value => Self::size_of(value).filter(|n| *n <= MOST_DEPTH),
        };
        let depths: Option<Vec<_>> = list.iter().copied().zip(cross).map(depth).collect();
        match depths.filter(|_| list.len() == cross.len()) {
            Some(depths) => Ok(depths),
            None => self.bad(
                field,
                format!(
                    "a number up to {MOST_DEPTH}, or a list of {} such (one for each level), is supported",
                    cross.len()
                ),
            ),
        }
    }

    fn float(&self, field: &str, default: f32) -> Result<f32> {
        let found = self.get(field).map_or(Some(f64::from(default)), Value::as_f64);
        match found.filter(|v| v.abs() < 1e6) {
            Some(v) => Ok(v as f32),
            None => self.bad(field, "a number is needed"),
        }
    }

    fn positive(&self, field: &str, default: f32) -> Result<f32> {
        let v = self.float(field, default)?;
        if v > 0.0 { Ok(v) } else { self.bad(field, "a number above 0 is needed") }
    }

    fn bool(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field).map_or(Some(default), Value::as_bool) {
            Some(v) => Ok(v),
            None => self.bad(field, "true or false is needed"),
        }
    }

    /// Demands that a field is missing, null or has one of `allowed`; numbers compare by value.
    fn only(&self, field: &str, allowed: &[Value]) -> Result<()> {
        let same = |a: &Value, b: &Value| a == b || (a.is_number() && a.as_f64() == b.as_f64());
        match self.get(field) {
            Some(value) if !allowed.iter().any(|a| same(a, value)) => {
                let names: Vec<_> = allowed.iter().map(Value::to_string).chain(["null".into()]).collect();
                self.bad(field, format!("only {} is supported", names.join(" or ")))
            }
            _ => Ok(()),
        }
    }

    /// A list of block types as booleans: whether each is `yes` (else it must be `no`).
    fn blocks(&self, field: &str, default: &[&str], yes: &str, no: &str) -> Result<Vec<bool>> {
        let bad = || self.bad(field, format!("a list of {no} and {yes} is supported"));
        let names: Option<Vec<&str>> = match self.get(field) {
            None => Some(default.to_vec()),
            Some(value) => value.as_array().and_then(|list| list.iter().map(Value::as_str).collect()),
        };
        let Some(names) = names else { return bad() };
        if names.is_empty() || names.len() > 16 || names.iter().any(|n| *n != yes && *n != no) {
            return bad();
        }
        Ok(names.into_iter().map(|n| n == yes).collect())
    }

    fn activation(&self) -> Result<Activation> {
        match self.get("hidden_act").map_or(Some("quick_gelu"), Value::as_str) {
            Some("gelu") => Ok(Activation::Gelu),
            Some("quick_gelu") => Ok(Activation::QuickGelu),
            _ => self.bad("hidden_act", "gelu and quick_gelu are supported"),
        }
    }

    /// Sizes that both CLIP encoders have: width, layers, heads, width of the perceptron.
    fn clip(&self, defaults: [usize; 4]) -> Result<[usize; 4]> {
        let names = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"];
        let mut out = [0; 4];
        for ((out, name), default) in out.iter_mut().zip(names).zip(defaults) {
            *out = self.size(name, Some(default))?;
        }
        self.count(names[1], defaults[1], MOST_LAYERS)?;
        if out[0] % out[2] != 0 {
            return self.bad(names[2], format!("a divisor of hidden_size, {}, is needed", out[0]));
        }
        Ok(out)
    }

    /// Channels must divide into the groups of a norm.
    fn divisible(&self, channels: &[usize], groups: usize) -> Result<()> {
        match channels.iter().find(|&c| c % groups != 0) {
            Some(c) => {
                self.bad("norm_num_groups", format!("a divisor of every block_out_channels, also of {c}, is needed"))
            }
            None => Ok(()),
        }
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
        let f = Fields::new(path, nested(value, "text_config"))?;
        f.only("model_type", &[json!("clip_text_model"), json!("clip")])?;
        let [hidden, layers, heads, intermediate] = f.clip([512, 12, 8, 2048])?;
        Ok(Self {
            hidden_size: hidden,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            intermediate_size: intermediate,
            activation: f.activation()?,
            eps: f.positive("layer_norm_eps", 1e-5)?,
            vocab_size: f.size("vocab_size", Some(49408))?,
            max_position_embeddings: f.size("max_position_embeddings", Some(77))?,
            projection_dim: if projected { Some(f.size("projection_dim", Some(512))?) } else { None },
            eos_token_id: match f
                .get("eos_token_id")
                .map_or(Some(49407), Value::as_u64)
                .and_then(|v| u32::try_from(v).ok())
            {
                Some(eos) => eos,
                None => return f.bad("eos_token_id", "one token's number is supported"),
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
        let f = Fields::new(path, nested(value, "vision_config"))?;
        f.only("model_type", &[json!("clip_vision_model"), json!("clip")])?;
        f.only("num_channels", &[json!(3)])?;
        let [hidden, layers, heads, intermediate] = f.clip([768, 12, 12, 3072])?;
        let (image, patch) = (f.equal_sizes("image_size", 224)?, f.equal_sizes("patch_size", 32)?);
        if image > LARGEST_IMAGE {
            return f.bad("image_size", format!("at most {LARGEST_IMAGE} is supported"));
        }
        if image < patch || patch > LARGEST_PATCH {
            return f
                .bad("patch_size", format!("a size within the picture's {image} and up to {LARGEST_PATCH} is needed"));
        }
        Ok(Self {
            hidden_size: hidden,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            intermediate_size: intermediate,
            activation: f.activation()?,
            eps: f.positive("layer_norm_eps", 1e-5)?,
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
        let f = Fields::new(path, value)?;
        f.only("_class_name", &[json!("UNet2DConditionModel")])?;
        if f.get("addition_embed_type") != Some(&json!("text_time")) {
            return f.bad("addition_embed_type", "\"text_time\" is needed: this is not SDXL's UNet");
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
            if f.map.get(field).is_some_and(Value::is_null) {
                return f.bad(field, "null is not supported");
            }
        }
        let down = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"];
        let up = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"];
        let down = f.blocks("down_block_types", &down, "CrossAttnDownBlock2D", "DownBlock2D")?;
        let up = f.blocks("up_block_types", &up, "CrossAttnUpBlock2D", "UpBlock2D")?;
        let levels = down.len();
        if !down.iter().eq(up.iter().rev()) {
            return f.bad("up_block_types", "the mirror image of down_block_types is supported");
        }
        if down.last() != Some(&true) {
            // The depth of the middle is the last level's.
            return f.bad("down_block_types", "a CrossAttnDownBlock2D at the end is supported, as in SDXL");
        }
        let channels = f.sizes("block_out_channels", &[320, 640, 1280, 1280], None)?;
        if channels.len() != levels {
            return f
                .bad("block_out_channels", format!("one entry for each of the {levels} down_block_types is needed"));
        }
        let depths = f.depths("transformer_layers_per_block", &down)?;
        let heads = f.sizes("attention_head_dim", &vec![8; levels], Some(levels))?;
        if let Some((c, h)) = channels.iter().zip(&heads).find(|(c, h)| *c % *h != 0) {
            return f.bad("attention_head_dim", format!("a divisor of the level's {c} channels is needed, not {h}"));
        }
        let groups = f.size("norm_num_groups", Some(32))?;
        f.divisible(&channels, groups)?;
        // Half of an embedding is sines, half cosines.
        if channels[0] % 2 != 0 {
            return f.bad("block_out_channels", "an even first number is needed");
        }
        let addition_time = f.size("addition_time_embed_dim", None)?;
        if addition_time % 2 != 0 {
            return f.bad("addition_time_embed_dim", "an even number is needed");
        }
        let freq_shift = f.float("freq_shift", 0.0)?;
        let half = channels[0].min(addition_time) / 2;
        if freq_shift < 0.0 || freq_shift >= half as f32 {
            return f.bad("freq_shift", format!("a number from 0 to below {half} is needed"));
        }
        Ok(Self {
            in_channels: f.size("in_channels", Some(4))?,
            out_channels: f.size("out_channels", Some(4))?,
            block_out_channels: channels,
            layers_per_block: f.count("layers_per_block", 2, MOST_RESNETS)?,
            transformer_layers_per_block: depths,
            num_attention_heads: heads,
            cross_attention_dim: f.equal_sizes("cross_attention_dim", 1280)?,
            norm_num_groups: groups,
            norm_eps: f.positive("norm_eps", 1e-5)?,
            addition_time_embed_dim: addition_time,
            projection_class_embeddings_input_dim: f.size("projection_class_embeddings_input_dim", None)?,
            flip_sin_to_cos: f.bool("flip_sin_to_cos", true)?,
            freq_shift,
            // diffusers' pipeline takes 128 where the model has none.
            sample_size: f.equal_sizes("sample_size", 128)?,
        })
    }
}

impl VaeConfig {
    /// Reads `vae/config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is not supported; [`Error::Malformed`] for what is no object.
    pub fn from_json(path: &Path, value: &Value) -> Result<Self> {
        let f = Fields::new(path, value)?;
        f.only("_class_name", &[json!("AutoencoderKL")])?;
        f.only("act_fn", &[json!("silu"), json!("swish")])?;
        f.only("out_channels", &[json!(3)])?;
        for field in ["latents_mean", "latents_std", "shift_factor"] {
            f.only(field, &[])?;
        }
        let ups = f.blocks("up_block_types", &["UpDecoderBlock2D"], "UpDecoderBlock2D", "UpDecoderBlock2D")?;
        f.blocks("down_block_types", &["DownEncoderBlock2D"], "DownEncoderBlock2D", "DownEncoderBlock2D")?;
        let channels = f.sizes("block_out_channels", &[64], None)?;
        if channels.len() != ups.len() || channels.len() > 8 {
            return f.bad(
                "block_out_channels",
                format!("one entry for each of the {} up_block_types, at most 8, is needed", ups.len()),
            );
        }
        let groups = f.size("norm_num_groups", Some(32))?;
        f.divisible(&channels, groups)?;
        Ok(Self {
            out_channels: 3,
            latent_channels: f.size("latent_channels", Some(4))?,
            block_out_channels: channels,
            layers_per_block: f.count("layers_per_block", 1, MOST_RESNETS)?,
            norm_num_groups: groups,
            scaling_factor: f.positive("scaling_factor", 0.18215)?,
            post_quant_conv: f.bool("use_post_quant_conv", true)?,
            mid_attention: f.bool("mid_block_add_attention", true)?,
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
