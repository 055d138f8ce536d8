//! Configurations of every model, from JSON and from tensors.

use super::clip::{Activation, ClipTextConfig, ClipVisionConfig};
use super::ip_adapter::AdapterConfig;
use super::published;
use super::taesd::TaesdSide;
use super::unet::UnetConfig;
use super::vae::VaeConfig;
use crate::error::Error;
use crate::weights::Weights;
use serde_json::{Value, json};
use std::path::Path;

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
    // The published taesdxl's parameters.
    for (side, parameters) in [(TaesdSide::Encoder, 1_222_532), (TaesdSide::Decoder, 1_222_531)] {
        let tensors = published::taesd(side).tensors();
        let count: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(count, parameters, "{side:?}");
    }
}

#[test]
fn defaults_of_the_classes() {
    let text = ClipTextConfig::from_json(path(), &json!({})).unwrap();
    assert_eq!(
        (text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size, text.eos_token_id),
        (512, 12, 8, 2048, 49407)
    );
    assert_eq!((text.activation, text.projection_dim, text.vocab_size), (Activation::QuickGelu, None, 49408));
    let vision = ClipVisionConfig::from_json(path(), &json!({})).unwrap();
    assert_eq!((vision.hidden_size, vision.patch_size, vision.image_size, vision.projection_dim), (768, 32, 224, 512));
    let vae = VaeConfig::from_json(path(), &json!({})).unwrap();
    assert_eq!((vae.block_out_channels, vae.layers_per_block, vae.scaling_factor), (vec![64], 1, 0.18215));
    // With everything at its default the down blocks end without attention.
    let unet = json!({"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64});
    assert!(UnetConfig::from_json(path(), &unet).unwrap_err().to_string().contains("down_block_types"));
}

#[test]
fn one_value_for_all_levels() {
    let mut value = unet();
    value["attention_head_dim"] = json!(5);
    value["transformer_layers_per_block"] = json!(3);
    value["use_linear_projection"] = json!(false);
    let config = UnetConfig::from_json(path(), &value).unwrap();
    value["transformer_layers_per_block"] = json!([0, 3, 3]);
    assert_eq!(UnetConfig::from_json(path(), &value).unwrap(), config);
    assert_eq!((config.num_attention_heads, config.transformer_layers_per_block), (vec![5, 5, 5], vec![0, 3, 3]));
}

/// SSD-1B's and a middle without a block; lists that say the same for all blocks are SDXL's own structure.
#[test]
fn pruned_unets() {
    let mut value = unet();
    value["transformer_layers_per_block"] = json!([1, [2, 2], [4, 4]]);
    value["reverse_transformer_layers_per_block"] = json!([[4, 4, 10], [2, 1, 1], 1]);
    value["mid_block_type"] = json!("UNetMidBlock2D");
    let config = UnetConfig::from_json(path(), &value).unwrap();
    let pruned = config.pruned.clone().unwrap();
    assert_eq!(pruned.up, [vec![4, 4, 10], vec![2, 1, 1], vec![0; 3]]);
    assert_eq!((pruned.mid_layers, pruned.mid_resnets), (0, 1));
    assert_eq!((config.resnets().len(), config.cross_layers().len()), (16, 4 + 8 + 18 + 4));
    value["mid_block_type"] = json!(null);
    assert_eq!(UnetConfig::from_json(path(), &value).unwrap().resnets().len(), 15);
    value["reverse_transformer_layers_per_block"] = json!(null);
    let text = UnetConfig::from_json(path(), &value).unwrap_err().to_string();
    assert!(text.contains("reverse_transformer_layers_per_block"), "{text}");
    let mut same = unet();
    same["transformer_layers_per_block"] = json!([1, [2, 2], 10]);
    same["reverse_transformer_layers_per_block"] = json!([[10, 10, 10], 2, 1]);
    assert_eq!(UnetConfig::from_json(path(), &same).unwrap(), UnetConfig::from_json(path(), &unet()).unwrap());
}

#[test]
fn unsupported_values() {
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
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("norm_eps", json!(0)),
        ("norm_num_groups", json!(null)),
        ("norm_num_groups", json!(48)),
        ("num_attention_heads", json!(8)),
        ("resnet_out_scale_factor", json!(1.5)),
        ("reverse_transformer_layers_per_block", json!([4, 3])),
        ("reverse_transformer_layers_per_block", json!([[4, 3], 2, 1])),
        ("time_cond_proj_dim", json!(256)),
        ("transformer_layers_per_block", json!([1, 2, [4, 4, 4]])),
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

fn file(names: &[(&str, &[usize])]) -> Weights {
    Weights::absent("f", names)
}

#[test]
fn hostile_shapes() {
    let huge: &[&[usize]] = &[&[], &[0], &[usize::MAX, 0], &[usize::MAX, 0, 1, 1], &[0, 0, 0, 0], &[3]];
    for shape in huge {
        let f = file(&[("conv_in.weight", shape), ("add_embedding.linear_1.weight", shape)]);
        UnetConfig::from_tensors(&f, Some(usize::MAX)).unwrap_err();
        ClipTextConfig::from_tensors(
            &file(&[("text_model.embeddings.token_embedding.weight", shape)]),
            Activation::Gelu,
        )
        .unwrap_err();
        ClipVisionConfig::from_tensors(&file(&[("vision_model.embeddings.patch_embedding.weight", shape)]))
            .unwrap_err();
        VaeConfig::from_tensors(&file(&[("decoder.up_blocks.0.resnets.0.conv2.weight", shape)])).unwrap_err();
        AdapterConfig::from_tensors(&file(&[("image_proj.proj.weight", shape), ("image_proj.norm.weight", shape)]))
            .unwrap_err();
    }
}

#[test]
fn missing_values() {
    let text = UnetConfig::from_tensors(&file(&[]), None).unwrap_err().to_string();
    assert!(text.contains("conv_in.weight missing"), "{text}");
    let text = UnetConfig::from_tensors(&file(&[("conv_in.weight", &[320, 4, 3, 3])]), None).unwrap_err().to_string();
    assert!(text.contains("not SDXL's"), "{text}");
    assert!(VaeConfig::from_tensors(&file(&[])).unwrap_err().to_string().contains("holds no VAE"));
    let text = ClipVisionConfig::from_tensors(&file(&[("image_proj.latents", &[1])])).unwrap_err().to_string();
    assert!(text.contains("IP-Adapter Plus") && text.contains("image_encoder"), "{text}");
}
