//! A whole SDXL with an IP-Adapter in random weights, in the formats and with the names of the published files.

use super::{Stored, TensorSpec, file, seed_of, write_safetensors, write_torch};
use crate::error::{Error, Result};
use crate::models::clip::{ClipTextConfig, ClipVisionConfig};
use crate::models::ip_adapter::AdapterConfig;
use crate::models::published;
use crate::models::unet::UnetConfig;
use crate::models::vae::VaeConfig;
use crate::tensor::DType;
use crate::weights::{TensorTable, keymap};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The progress of [`sdxl`].
#[derive(Debug, Clone)]
pub struct WriteProgress {
    /// The file that is being written.
    pub path: PathBuf,
    /// Its size in bytes, roughly (without its header).
    pub bytes: u64,
}

/// Writes `sdxl.safetensors`, `image_encoder/model.safetensors` with its `config.json`, and `ip-adapter_sdxl.bin`, all
/// fp16, into `dir`: 11.3 GB. `progress` is called before each file. The paths are returned in that order.
///
/// # Errors
/// [`Error::Io`] where a file cannot be written.
pub fn sdxl(dir: &Path, mut progress: impl FnMut(&WriteProgress)) -> Result<Vec<PathBuf>> {
    let mut report = |path: &Path, tensors: &[TensorSpec]| {
        let bytes = tensors.iter().filter_map(TensorSpec::bytes).sum::<usize>() as u64;
        progress(&WriteProgress { path: path.to_owned(), bytes });
    };
    let (checkpoint, tensors) = (dir.join("sdxl.safetensors"), checkpoint_tensors());
    report(&checkpoint, &tensors);
    write_safetensors(&checkpoint, &tensors, &BTreeMap::from([("modelspec.title".into(), "random weights".into())]))?;
    let (encoder, tensors) = (dir.join("image_encoder/model.safetensors"), vision_tensors());
    report(&encoder, &tensors);
    write_safetensors(&encoder, &tensors, &BTreeMap::from([("format".into(), "pt".into())]))?;
    let config = dir.join("image_encoder/config.json");
    file::write(&config, |out| {
        let text = serde_json::to_string_pretty(&vision_json()).unwrap_or_default();
        out.write_all(text.as_bytes()).map_err(Error::io("write", &config))
    })?;
    let (adapter, tensors) = (dir.join("ip-adapter_sdxl.bin"), adapter_tensors());
    report(&adapter, &tensors);
    write_torch(&adapter, &tensors)?;
    Ok(vec![checkpoint, encoder, config, adapter])
}

fn vision_json() -> serde_json::Value {
    let c = published::vision();
    json!({
        "architectures": ["CLIPVisionModelWithProjection"], "hidden_act": "gelu", "hidden_size": c.hidden_size,
        "image_size": c.image_size, "intermediate_size": c.intermediate_size, "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model", "num_attention_heads": c.num_attention_heads, "num_channels": 3,
        "num_hidden_layers": c.num_hidden_layers, "patch_size": c.patch_size, "projection_dim": c.projection_dim, "torch_dtype": "float16"
    })
}

/// Sizes of the models that make an SDXL with an IP-Adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// The UNet.
    pub unet: UnetConfig,
    /// The first text encoder.
    pub text: ClipTextConfig,
    /// The second text encoder.
    pub text_2: ClipTextConfig,
    /// The VAE.
    pub vae: VaeConfig,
    /// The image encoder.
    pub vision: ClipVisionConfig,
    /// The IP-Adapter.
    pub adapter: AdapterConfig,
}

impl Sizes {
    /// Those of the published files.
    pub fn published() -> Self {
        Self {
            unet: published::unet(),
            text: published::text(),
            text_2: published::text_2(),
            vae: published::vae(),
            vision: published::vision(),
            adapter: published::adapter(),
        }
    }

    /// The same structure, everything narrow and shallow: 10 M parameters, most of them the tokens' embeddings. Its
    /// sizes can be read off the tensors, as those of the published files can.
    pub fn small() -> Self {
        let full = Self::published();
        let text = ClipTextConfig {
            hidden_size: 64,
            num_hidden_layers: 3,
            num_attention_heads: 1,
            intermediate_size: 256,
            ..full.text
        };
        let unet = UnetConfig {
            block_out_channels: vec![32, 64, 128],
            transformer_layers_per_block: vec![0, 1, 2],
            num_attention_heads: vec![1, 1, 2],
            cross_attention_dim: 128,
            projection_class_embeddings_input_dim: 64 + 6 * full.unet.addition_time_embed_dim,
            ..full.unet
        };
        Self {
            text_2: ClipTextConfig { activation: full.text_2.activation, projection_dim: Some(64), ..text.clone() },
            text,
            vae: VaeConfig { block_out_channels: vec![32, 32, 64, 64], ..full.vae },
            vision: ClipVisionConfig {
                hidden_size: 128,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                intermediate_size: 256,
                image_size: 112,
                projection_dim: 128,
                ..full.vision
            },
            adapter: AdapterConfig {
                embedding_dim: 128,
                num_tokens: 4,
                cross_attention_dim: 128,
                widths: unet.cross_attention_widths(),
                resampler: None,
            },
            unet,
        }
    }

    /// The tensors of the single-file checkpoint, under the original names.
    pub fn checkpoint(&self) -> Vec<TensorSpec> {
        checkpoint(self)
    }

    /// The tensors of the image encoder's file.
    pub fn image_encoder(&self) -> Vec<TensorSpec> {
        self.vision.tensors().iter().map(|(n, s)| spec(n.clone(), n, s)).collect()
    }

    /// The tensors of the adapter's file.
    pub fn ip_adapter(&self) -> Vec<TensorSpec> {
        self.adapter.tensors().iter().map(|(n, s)| spec(n.clone(), n, s)).collect()
    }
}

/// The 2,515 tensors of `sdxl.safetensors` under the original names, as `sd_xl_base_1.0.safetensors` has them.
pub fn checkpoint_tensors() -> Vec<TensorSpec> {
    Sizes::published().checkpoint()
}

fn checkpoint(sizes: &Sizes) -> Vec<TensorSpec> {
    let mut out = Vec::new();
    let unet = &sizes.unet;
    let attention = |block: usize| unet.transformer_layers_per_block.iter().rev().nth(block).is_some_and(|&d| d > 0);
    let table = unet.tensors();
    original(&mut out, "model.diffusion_model.", &table, |n| {
        keymap::original_unet(n, unet.layers_per_block, attention)
    });
    let text = "conditioner.embedders.0.transformer.";
    original(&mut out, text, &sizes.text.tensors(), |n| Some(n.to_owned()));
    let mut ids = spec(format!("{text}text_model.embeddings.position_ids"), "position_ids", &[1, 77]);
    ids.dtype = Stored::Positions;
    out.push(ids);
    let text = "conditioner.embedders.1.model.";
    original(&mut out, text, &fused(sizes.text_2.tensors()), keymap::original_open_clip);
    let mut scale = spec(format!("{text}logit_scale"), "logit_scale", &[]);
    (scale.scale, scale.offset) = (0.0, 4.6052);
    out.push(scale);
    let vae = &sizes.vae;
    let table = [vae.encoder_tensors(), vae.decoder_tensors()].concat();
    let (levels, first) = (vae.block_out_channels.len(), out.len());
    original(&mut out, "first_stage_model.", &table, |n| keymap::original_vae(n, levels));
    // The original VAE computes its attention with 1x1 convolutions.
    for tensor in out.iter_mut().skip(first).filter(|t| t.name.contains(".attn_1.") && t.shape.len() == 2) {
        tensor.shape.extend([1, 1]);
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

/// Query, key and value of each layer as one tensor, under the query's name.
fn fused(table: TensorTable) -> TensorTable {
    let mut out = Vec::new();
    for (name, mut shape) in table {
        if name.contains(".k_proj.") || name.contains(".v_proj.") {
            continue;
        }
        if name.contains(".q_proj.") {
            shape[0] *= 3;
        }
        out.push((name, shape));
    }
    out
}

/// Adds a table's tensors under `prefix` and their original names.
fn original(out: &mut Vec<TensorSpec>, prefix: &str, table: &TensorTable, rename: impl Fn(&str) -> Option<String>) {
    let mut seen = BTreeSet::new();
    for (name, shape) in table {
        if let Some(renamed) = rename(name).filter(|n| seen.insert(n.clone())) {
            out.push(spec(format!("{prefix}{renamed}"), name, shape));
        }
    }
}

/// The tensors of `image_encoder/model.safetensors`.
pub fn vision_tensors() -> Vec<TensorSpec> {
    Sizes::published().image_encoder()
}

/// The tensors of `ip-adapter_sdxl.bin`.
pub fn adapter_tensors() -> Vec<TensorSpec> {
    Sizes::published().ip_adapter()
}

/// A tensor in fp16 with the values that [`rule`] gives for its diffusers name.
fn spec(name: String, diffusers: &str, shape: &[usize]) -> TensorSpec {
    let (scale, offset) = rule(diffusers, shape);
    let seed = seed_of(&name);
    TensorSpec { name, shape: shape.to_vec(), dtype: Stored::Float(DType::F16), scale, offset, seed }
}

/// Half the width and the middle of the interval of a tensor's uniform values.
///
/// A matrix of gain 1 keeps the variance: scale = sqrt(3 / fan_in). The last layer of a residual branch is damped, so
/// that the sum grows slowly over dozens of blocks and fp16 has room. Cross-attention is not, and its keys and values
/// are raised, so that the prompt and the reference image change the image visibly; so is the embedding of the
/// timestep. The VAE's last convolution is damped, so that few pixels are clamped.
///
/// Measured with diffusers in f32 at 192x192, 8 steps of Euler, guidance 5: the largest activation of the UNet's blocks
/// is below 100, of the VAE's below 1000; another prompt changes the UNet's output by 45 %, another image prompt by 25
/// to 38 %.
fn rule(name: &str, shape: &[usize]) -> (f32, f32) {
    let has = |parts: &[&str]| parts.iter().any(|p| name.contains(p));
    if name.ends_with(".bias") {
        return (0.05, 0.0);
    }
    if shape.len() <= 1 {
        return if has(&["norm", "layrnorm"]) { (0.1, 1.0) } else { (0.5, 0.0) };
    }
    if has(&["token_embedding", "position_embedding"]) {
        return (0.5, 0.0);
    }
    let gain = if has(&["attn2.to_out"]) {
        1.0
    } else if has(&["attn2.to_q", "attn2.to_k", "attn2.to_v", "to_k_ip", "to_v_ip"]) {
        1.5
    } else if has(&["time_embedding.linear_2", "time_emb_proj"]) {
        2.0
    } else if has(&["self_attn.out_proj", "decoder.conv_out."]) {
        0.5
    } else if has(&[".conv2.", ".to_out.", ".ff.net.2.", ".proj_out.", ".fc2."]) {
        0.3
    } else {
        1.0
    };
    let fan_in: usize = shape[1..].iter().product();
    (gain * (3.0 / fan_in.max(1) as f32).sqrt(), 0.0)
}

#[cfg(test)]
mod tests {
    use super::super::safetensors;
    use super::*;

    #[test]
    fn counts() {
        let bytes = |tensors: &[TensorSpec]| tensors.iter().map(|t| t.bytes().unwrap()).sum::<usize>();
        let checkpoint = checkpoint_tensors();
        assert_eq!(checkpoint.len(), 2515);
        assert_eq!(bytes(&checkpoint), 6_937_676_352);
        assert_eq!(vision_tensors().len(), 776);
        assert_eq!(adapter_tensors().len(), 144);
        assert_eq!(bytes(&adapter_tensors()), 702_570_496);
    }

    /// Names, shapes, types and order of the files, as they were when the tables of tensors were written by hand.
    #[test]
    fn stable_headers() {
        let crc = |tensors: &[TensorSpec], metadata: &[(&str, &str)]| {
            let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            crc32fast::hash(&safetensors::header(Path::new("f"), tensors, &metadata).unwrap())
        };
        assert_eq!(crc(&checkpoint_tensors(), &[("modelspec.title", "random weights")]), 0x6d06_879f);
        assert_eq!(crc(&vision_tensors(), &[("format", "pt")]), 0xcc48_a1cb);
        let names: Vec<String> = adapter_tensors().into_iter().map(|tensor| tensor.name).collect();
        let first = ["proj.weight", "proj.bias", "norm.weight", "norm.bias"].map(|name| format!("image_proj.{name}"));
        assert_eq!(names[..4], first);
        let layers =
            (0..70).flat_map(|i| ["k", "v"].map(|part| format!("ip_adapter.{}.to_{part}_ip.weight", 2 * i + 1)));
        assert!(names[4..].iter().eq(layers.collect::<Vec<_>>().iter()));
    }

    #[test]
    fn rules() {
        let (scale, offset) = rule("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2.weight", &[640, 2560]);
        assert_eq!((scale, offset), (0.3 * (3.0f32 / 2560.0).sqrt(), 0.0));
        assert_eq!(rule("conv_norm_out.weight", &[320]), (0.1, 1.0));
        assert_eq!(rule("vision_model.pre_layrnorm.weight", &[1664]), (0.1, 1.0));
        assert_eq!(rule("vision_model.embeddings.class_embedding", &[1664]), (0.5, 0.0));
        assert_eq!(rule("conv_in.weight", &[320, 4, 3, 3]).0, (3.0f32 / 36.0).sqrt());
    }
}
